"""The coarse stage in its tiles, and in one tile that holds the whole scan: time, and what becomes of the boxes.

    python -m tests.benchmarks.coarse_tiles -m MODELS --cases DIR [--limit N] [--precision bf16]

DIR holds folders with imaging.nii.gz, and segmentation.nii.gz or kidneys.nii.gz (any label counts). PyTorch, whose
networks take tiles of any size; processor time, so that it can be run beside other work.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from kits_cascade.inference.nnunet.engines import CPU, TORCH, Computing
from kits_cascade.inference.nnunet.stage import StageNetwork
from kits_cascade.inference.nnunet.tiles import TileOptions
from kits_cascade.inference.roi import mask_on_grid
from kits_cascade.models.choose import resolve_models
from kits_cascade.stages import ROI_MARGIN_MM
from kits_cascade.volumes.geometry import Box
from kits_cascade.volumes.nifti import read_labels, read_volume
from kits_cascade.volumes.roi_boxes import boxes_in_volume
from tests.inference.handmade import dice


def strides_of(stage):
    """What each axis of a tile must be a multiple of."""
    strides = stage.configuration.configuration["architecture"]["arch_kwargs"]["strides"]
    return [int(np.prod([s[axis] if isinstance(s, list) else s for s in strides])) for axis in range(3)]


def coarse(stage, patch, volume):
    """Processor seconds of the tiles, and the mask on the network's grid."""
    prepared = stage.prepare([volume.array], volume.spacing, {})
    shape = prepared.data.shape[1:]
    # One tile: no smaller than those that the network was trained on.
    whole = [max(n, -(-m // s) * s) for n, m, s in zip(patch, shape, strides_of(stage), strict=True)]
    found = []
    for tile in (patch, tuple(whole)):
        stage.predictor.patch = tile
        start = time.process_time()
        logits = stage.logits(prepared, None)
        found.append((time.process_time() - start, stage.labels(logits).transpose(stage.plans.transpose_backward)))
    stage.predictor.patch = patch
    return found


def held(mask, truth, spacing):
    """Share of the true kidneys inside of the boxes."""
    inside = np.zeros(truth.shape, dtype=bool)
    for box in boxes_in_volume(mask, spacing, truth.shape, ROI_MARGIN_MM):
        box.crop(inside)[...] = True
    return float((inside & truth).sum() / max(1, truth.sum()))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--models", type=Path)
    parser.add_argument("--cases", type=Path, required=True)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--precision", default="bf16")
    given = parser.parse_args()
    models = resolve_models(given.models)
    stage = StageNetwork(models.coarse, Computing(TORCH, given.precision, CPU), TileOptions(0.75, False, None))
    patch = stage.predictor.patch
    print("| case | seconds: tiles, one | Dice between | Dice with the truth: tiles, one | kidney in the boxes |")
    print("|---|---|---|---|---|")
    for folder in sorted(path.parent for path in given.cases.glob("*/imaging.nii.gz"))[: given.limit]:
        truths = [folder / name for name in ("segmentation.nii.gz", "kidneys.nii.gz") if (folder / name).is_file()]
        volume = read_volume(folder / "imaging.nii.gz")
        (tiled, first), (at_once, other) = coarse(stage, patch, volume)
        row = f"| {folder.name} | {tiled:.2f}, {at_once:.2f} | {dice(first > 0, other > 0):.3f} |"
        if truths:
            truth = read_labels(truths[0]).array > 0
            full = Box.full(truth.shape)
            scores = [dice(mask_on_grid(mask, full, truth.shape) > 0, truth) for mask in (first, other)]
            boxed = [held(mask, truth, volume.spacing) for mask in (first, other)]
            row += f" {scores[0]:.3f}, {scores[1]:.3f} | {boxed[0]:.1%}, {boxed[1]:.1%} |"
        print(row, flush=True)


if __name__ == "__main__":
    main()
