"""Does the surface loss earn its place? Its weight and radius, on phantoms, at the same budget and with the same draws.

    python -m tests.benchmarks.ablation --work DIR [--seconds 300] [--markdown out.md]

The task is stage 223's, masses and tumour with the kidney mask as second channel. Per seed one network is trained
without the surface loss; from its weights, every configuration goes on for the same number of steps over the same
patches, as the term works where a network is nearly right. (``--from-scratch`` gives each configuration the whole
budget instead.) Scores are the challenge's, on held-out cases; intervals are bootstraps over the pairs of case and
seed, of the difference to the configuration without the surface loss. Each seed's runs are kept in a file in DIR, so
that they can be made in several pieces, by several processes.
"""

import argparse
import contextlib
import io
import os
import tempfile
from copy import deepcopy
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from kits_cascade.evaluation.statistics import mean_with_interval
from kits_cascade.evaluation.surface import SurfaceDistances
from kits_cascade.files import read_json, write_json
from kits_cascade.labels import REGIONS
from kits_cascade.training.base import KitsTrainer
from kits_cascade.training.trainers import SurfaceLossTrainer
from tests.training.tiny import folders_in, inline_workers, roi_case, write_tiny

SPACING = (3.0, 3.0, 3.0)
TRAINING, HELD_OUT = 8, 8
FIRST_HELD_OUT = 100
FEATURES = (16, 32, 64)
SCORED = REGIONS[1:]
# name -> weight, radius in voxels
CONFIGURATIONS = {
    "weight 0": (0.0, 1),
    "weight 0.25, r 1": (0.25, 1),
    "weight 0.5, r 1": (0.5, 1),
    "weight 1, r 1": (1.0, 1),
    "weight 0.5, r 0": (0.5, 0),
    "weight 0.5, r 2": (0.5, 2),
}


class Adam(KitsTrainer):
    """A few hundred steps want an optimizer that moves at once."""

    rate = 3e-3

    def configure_optimizers(self):
        from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler

        self.initial_lr = self.rate
        optimizer = torch.optim.AdamW(self.network.parameters(), self.initial_lr, weight_decay=1e-4)
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)


class Surface(Adam, SurfaceLossTrainer):
    """The same with the surface loss."""


class Refined(Surface):
    """For a network that is trained already."""

    rate = 1e-3


def budget(epochs, iterations):
    return {"num_epochs": epochs, "num_iterations_per_epoch": iterations, "num_val_iterations_per_epoch": 1}


def train(tiny, trainer, options, weights=None):
    """A trained trainer, its checkpoints not written; ``weights``: where the network starts."""
    plans = deepcopy(tiny.plans)
    plans["kits_cascade"] = options
    with contextlib.redirect_stdout(io.StringIO()), inline_workers():
        made = trainer(plans, "3d_fullres", 0, deepcopy(tiny.dataset_json), torch.device("cpu"))
        made.disable_checkpointing = True
        made.initialize()
        if weights is not None:
            made.network.load_state_dict(weights)
        made.run_training()
        made.set_deep_supervision_enabled(False)
    return made


@torch.no_grad()
def predict(made, channels):
    """Region masks of a whole ROI in one pass; the network is small and sees no border of a patch."""
    image = torch.from_numpy(np.stack(channels).astype(np.float32))
    properties = made.plans_manager.foreground_intensity_properties_per_channel["0"]
    low, high = properties["percentile_00_5"], properties["percentile_99_5"]
    image[0] = (image[0].clamp(low, high) - properties["mean"]) / properties["std"]
    pad = [(-n) % 4 for n in image.shape[1:]]
    padded = torch.nn.functional.pad(image, (0, pad[2], 0, pad[1], 0, pad[0]))
    made.network.eval()
    logits = made.network(padded[None])[0]
    return (logits[:, : image.shape[1], : image.shape[2], : image.shape[3]] > 0).numpy()


def dice(a, b):
    total = a.sum() + b.sum()
    return 1.0 if total == 0 else float(2 * (a & b).sum() / total)


def surface_dice(truth, prediction, tolerance, spacing):
    if not truth.any() or not prediction.any():
        return float(truth.any() == prediction.any())
    return SurfaceDistances.between(truth, prediction, spacing).dice(tolerance)


def scores(made, cases):
    """Per case: Dice and surface Dice of each region."""
    found = []
    for image, labels in cases:
        masks = predict(made, [image, labels > 0])
        entry = {}
        for region, mask in zip(SCORED, masks, strict=True):
            truth = np.isin(labels, region.labels)
            entry[f"{region.name} Dice"] = dice(truth, mask)
            entry[f"{region.name} surface"] = surface_dice(truth, mask, region.tolerance_mm, made.spacing)
        found.append(entry)
    return found


def table(runs):
    """Means over cases and seeds; for the means over regions also the difference to weight 0 with its interval."""
    names = [f"{region.name} {kind}" for kind in ("Dice", "surface") for region in SCORED]
    titles = ["mean Dice", "mean surface Dice", *(f"{n} Dice" if n.endswith("surface") else n for n in names), "seeds"]
    lines = ["| configuration | " + " | ".join(titles) + " |", "|---" * (len(titles) + 1) + "|"]
    base = runs["weight 0"]
    for configuration, by_seed in runs.items():
        if not by_seed:
            continue
        cells = []
        for kind in ("Dice", "surface"):
            cells.append(f"{np.mean([mean_of(run, kind) for run in by_seed.values()]):.3f}")
            shared = sorted(set(by_seed) & set(base))
            if configuration != "weight 0" and shared:
                pairs = [np.subtract(mean_of(by_seed[s], kind), mean_of(base[s], kind)) for s in shared]
                found = mean_with_interval(list(np.concatenate(pairs)))
                cells[-1] += f" ({found['mean']:+.3f}: {found['low']:+.3f} to {found['high']:+.3f})"
        cells += [f"{np.mean([[case[n] for case in run] for run in by_seed.values()]):.3f}" for n in names]
        lines.append(f"| {configuration} | " + " | ".join(cells) + f" | {len(by_seed)} |")
    return "\n".join(lines) + "\n"


def mean_of(run, kind):
    """Per case, over the regions."""
    return [np.mean([case[f"{region.name} {kind}"] for region in SCORED]) for case in run]


def first_training(tiny, seed, options):
    """The weights that all configurations of a seed go on from."""
    chosen = {"surface_weight": 0.0, "seed": 1000 + seed, "prior_probability": 0.0}
    made = train(tiny, Surface, budget(options.epochs, options.iterations) | chosen)
    return deepcopy(made.network.state_dict())


def measure(tiny, held_out, seed, options, begin):
    """All configurations of one seed that are not there yet."""
    kept = options.work / f"seed-{seed}.json"
    settings = [
        options.spacing,
        options.patch,
        options.epochs,
        options.refine,
        options.iterations,
        options.from_scratch,
    ]
    stored = read_json(kept) if kept.exists() else {"settings": settings, "runs": {}}
    if stored["settings"] != settings:
        raise SystemExit(f"{kept} holds runs with other settings; give another --work")
    runs = stored["runs"]
    base = None
    for name, (weight, radius) in CONFIGURATIONS.items():
        if name in runs or perf_counter() - begin > options.seconds:
            continue
        start = perf_counter()
        chosen = {"surface_weight": weight, "surface_radius": [radius] * 3, "seed": seed, "prior_probability": 0.0}
        if options.from_scratch:
            made = train(tiny, Surface, budget(options.epochs, options.iterations) | chosen)
        else:
            base = base or first_training(tiny, seed, options)
            made = train(tiny, Refined, budget(options.refine, options.iterations) | chosen, base)
        runs[name] = scores(made, held_out)
        write_json(kept, stored)
        print(f"seed {seed}, {name}: {perf_counter() - start:.0f} s", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--from-scratch", action="store_true")
    parser.add_argument("--epochs", type=int, default=20, help="of the first training, or from scratch")
    parser.add_argument("--refine", type=int, default=6, help="epochs that a configuration goes on for")
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--spacing", type=float, default=SPACING[0], help="mm; what a radius in voxels means")
    parser.add_argument("--patch", type=int, default=24, help="voxels along each axis")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no run after this time; run again to go on")
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    begin = perf_counter()
    options.work.mkdir(parents=True, exist_ok=True)
    os.environ["nnUNet_n_proc_DA"] = "0"
    torch.set_num_threads(1)  # threads of a tiny network wait for each other more than they work
    with tempfile.TemporaryDirectory() as root:
        folders = folders_in(root)
        folders.export()
        plan = {"patch": options.patch, "features": FEATURES, "configurations": ["3d_fullres"]}
        spacing = (options.spacing,) * 3
        tiny = write_tiny(folders, 821, "masses", cases=TRAINING, spacing=spacing, **plan)
        held_out = [roi_case(0, FIRST_HELD_OUT + index, spacing) for index in range(HELD_OUT)]
        for seed in options.seeds:
            measure(tiny, held_out, seed, options, begin)
    runs = {name: {} for name in CONFIGURATIONS}
    for file in sorted(options.work.glob("seed-*.json")):
        for name, found in read_json(file)["runs"].items():
            runs[name][file.stem] = found
    text = table(runs)
    print(text)
    if options.markdown:
        options.markdown.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
