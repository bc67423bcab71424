"""How much a wrong kidney mask costs the masses network, trained with the clean label or with a perturbed one.

    python -m tests.benchmarks.prior_robustness --work DIR [--seconds 300] [--markdown out.md]

Both trainings of a seed start from the same weights. Scores are Dice of masses and tumour (their mean) on held-out
cases; a loss is the Dice with the true mask minus the Dice with the wrong one, its interval a bootstrap over cases and
seeds.
"""

import argparse
import os
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from kits_cascade.evaluation.statistics import mean_with_interval
from kits_cascade.files import read_json, write_json
from kits_cascade.labels import KIDNEY, REGIONS
from kits_cascade.training import augment
from tests.benchmarks.ablation import FEATURES, SPACING, TRAINING, Adam, budget, dice, predict, train
from tests.training.tiny import folders_in, roi_case, write_tiny

HELD_OUT = 12
PROBABILITIES = {"clean label": 0.0, "perturbed": 0.5}
SEEN = ("grown", "shrunk", "shifted", "part lost")
MASKS = {
    "true": lambda labels: labels > 0,
    "grown": lambda labels: augment.grown(labels > 0, SPACING),
    "shrunk": lambda labels: augment.shrunk(labels > 0, SPACING),
    "shifted": lambda labels: augment.shifted(labels > 0, SPACING),
    "part lost": lambda labels: augment.without_part(labels > 0, SPACING),
    # What a network that does not know the tumour as kidney leaves out; not among the perturbations as such.
    "masses missing": lambda labels: labels == KIDNEY,
    "empty": lambda labels: np.zeros_like(labels, bool),
}


def scores(made, cases):
    """Mean Dice of masses and tumour, per kind of mask and case; the same wrong masks for every network."""
    found = {}
    for name, mask_of in MASKS.items():
        found[name] = []
        for index, (image, labels) in enumerate(cases):
            np.random.seed(index)  # noqa: NPY002 - what the perturbations draw from
            masks = predict(made, [image, mask_of(labels)])
            truths = [np.isin(labels, region.labels) for region in REGIONS[1:]]
            found[name].append(float(np.mean([dice(t, m) for t, m in zip(truths, masks, strict=True)])))
    return found


def table(runs):
    lines = ["| kidney mask at test | " + " | ".join(f"trained with the {name}" for name in runs) + " |"]
    lines.append("|---" * (len(runs) + 1) + "|")
    columns = {
        name: {m: np.concatenate([s[m] for s in by_seed.values()]) for m in MASKS} for name, by_seed in runs.items()
    }
    lines.append("| true: Dice | " + " | ".join(f"{column['true'].mean():.3f}" for column in columns.values()) + " |")
    for mask in list(MASKS)[1:]:
        cells = [interval(column["true"] - column[mask]) for column in columns.values()]
        lines.append(f"| {mask}: loss of Dice | " + " | ".join(cells) + " |")
    cells = [interval(np.mean([c["true"] - c[m] for m in SEEN], axis=0)) for c in columns.values()]
    lines.append(f"| mean of {', '.join(SEEN)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def interval(values):
    found = mean_with_interval(list(values))
    return f"{found['mean']:+.3f} ({found['low']:+.3f} to {found['high']:+.3f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=1e9, help="start no run after this time; run again to go on")
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    begin = perf_counter()
    folders = folders_in(options.work)
    folders.export()
    os.environ["nnUNet_n_proc_DA"] = "0"
    torch.set_num_threads(1)  # threads of a tiny network wait for each other more than they work
    kept = options.work / "prior.json"
    runs = read_json(kept) if kept.exists() else {name: {} for name in PROBABILITIES}
    plan = {"patch": 24, "features": FEATURES, "configurations": ["3d_fullres"]}
    tiny = write_tiny(folders, 831, "masses", cases=TRAINING, spacing=SPACING, **plan)
    held_out = [roi_case(0, 100 + index, SPACING) for index in range(HELD_OUT)]
    for seed in range(options.seeds):
        for name, probability in PROBABILITIES.items():
            if str(seed) in runs[name] or perf_counter() - begin > options.seconds:
                continue
            start = perf_counter()
            chosen = {"prior_probability": probability, "seed": seed}
            made = train(tiny, Adam, budget(options.epochs, options.iterations) | chosen)
            runs[name][str(seed)] = scores(made, held_out)
            write_json(kept, runs)
            print(f"seed {seed}, {name}: {perf_counter() - start:.0f} s", flush=True)
    if all(runs.values()):
        text = table(runs)
        print(text)
        if options.markdown:
            options.markdown.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
