"""What the resampling alone costs: painted kidneys, to the fine spacing and back, in the regions and in the whole scan.

    python -m tests.benchmarks.region_grids --masks ../shared/kits23/masks --cases case_00053 case_00091

No network: a voxel is kidney where it is above the threshold that the networks of the speed benchmark have. The
regions are those that the cascade makes of the true mask at the coarse spacing; (before) without their surroundings.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from kits_cascade.inference.nnunet.resample import Method, new_shape, resample
from kits_cascade.inference.roi import FineGrid, mask_on_grid, surroundings
from kits_cascade.stages import ROI_MARGIN_MM
from kits_cascade.volumes.geometry import Box
from kits_cascade.volumes.nifti import read_labels, read_volume
from kits_cascade.volumes.roi_boxes import boxes_in_volume
from tests.benchmarks.bench_models import REAL, write_image
from tests.benchmarks.threshold_unet import CLIP, IS_KIDNEY

CASES = ["case_00053", "case_00091", "case_00155", "case_00263", "case_00294", "case_00528"]  # above 130 million voxels
FINE = (REAL.spacing,) * 3
GRID = FineGrid(FINE, REAL.patch, 0.75)


def regions(truth, spacing, suit):
    coarse = new_shape(truth.shape, spacing, (REAL.coarse_spacing,) * 3)
    boxes = boxes_in_volume(mask_on_grid(truth, Box.full(coarse), coarse), spacing, truth.shape, ROI_MARGIN_MM)
    return [(box, surroundings(box, spacing, GRID, truth.shape) if suit else box) for box in boxes]


def there_and_back(image, spacing):
    fine = resample(image, new_shape(image.shape, spacing, FINE), Method(3))
    logits = (fine.clip(CLIP["percentile_00_5"], CLIP["percentile_99_5"]) - IS_KIDNEY) / 20
    return resample(logits.astype(np.float16), image.shape, Method(1)) > 0


def dice(image, truth, spacing, boxes):
    found = np.zeros(truth.shape, bool)
    for box, crop in boxes:
        answer = there_and_back(crop.crop(image), spacing)
        box.paste(found, box.seen_from(crop).crop(answer))
    return 2 * np.count_nonzero(found & truth) / (np.count_nonzero(found) + np.count_nonzero(truth))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--masks", type=Path, required=True)
    parser.add_argument("--cases", nargs="*", default=CASES)
    given = parser.parse_args()
    print("| case | spacing | regions before | regions | whole scan | regions - whole |\n|---|---|---|---|---|---|")
    differences = []
    for case in given.cases:
        with tempfile.TemporaryDirectory() as folder:
            files = Path(folder) / "image_0000.nii.gz", Path(folder) / "truth.nii.gz"
            write_image(given.masks / case / "segmentation.nii.gz", *files)
            volume, truth = read_volume(files[0]), read_labels(files[1]).array > 0
        ways = [regions(truth, volume.spacing, suit) for suit in (False, True)] + [[(Box.full(truth.shape),) * 2]]
        scores = [dice(volume.array, truth, volume.spacing, boxes) for boxes in ways]
        differences.append(scores[1] - scores[2])
        cells = [case, " ".join(f"{s:.4g}" for s in volume.spacing), *(f"{score:.5f}" for score in scores)]
        print(f"| {' | '.join(cells)} | {differences[-1]:+.5f} |", flush=True)
    print(f"\nmean difference {np.mean(differences):+.5f}")


if __name__ == "__main__":
    main()
