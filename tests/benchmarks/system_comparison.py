"""A whole comparison of systems by `kits-cascade compare`, with presets that two cores can train.

    python -m tests.benchmarks.system_comparison --work DIR [--systems LIST] [--folds 3] [--budget 4cpumin] [--cases 24]

Phantoms of 3 mm, split into as many folds as are asked for, so that each case is scored once. Networks are those of the
published recipes, but for UNETR and the 2D U-Net, which are made narrower; patches and voxels are a processor's (32 of
4 mm; 96 in 2D; the cascade as the demo's), all compute in bfloat16 where the processor can, none mirrors, and all have
the same optimizer. A second run goes on where the first stopped.
"""

import argparse
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from time import perf_counter

from kits_cascade.cli.app import app
from kits_cascade.data.datasets import SPLITS_FILE, open_dataset
from kits_cascade.data.splits import make_splits, source_traits
from kits_cascade.files import write_json
from kits_cascade.nnunet_folders import open_folders
from kits_cascade.recipes.budget import parse_budget
from kits_cascade.recipes.compare import compare
from kits_cascade.recipes.compare_steps import Comparison
from kits_cascade.recipes.steps import TWO_CORES
from kits_cascade.runs.executors import local_workers, worker_environments
from kits_cascade.stages import SOURCE_STAGE
from kits_cascade.systems import find_system
from tests.benchmarks.system_matrix import for_a_processor

SYSTEMS = "cascade,nnunet-2mm,medicalnet-resnet10,unetr2d,unet2d,resnet18-unet"
# The published optimizers are for days; minutes want one that moves at once, the same for all. The losses stay.
QUICK = {"optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 1e-4, "bfloat16": True, "mirror": False}
SIZES = {"2d": (96, 8, 4.0), "3d": (32, 2, 4.0)}  # patch, batch, mm
NARROWER = {
    "unetr2d": {"img_size": [96, 96], "hidden_size": 192, "mlp_dim": 768, "num_heads": 6},
    "unet2d": {"features": [32, 64, 128, 256, 512, 32]},
}


def phantoms(given):
    """nnU-Net's folders with the cases and their split."""
    folders = open_folders(given.work / "nnunet")
    made = given.work / "phantoms"
    if not (folders.raw / SOURCE_STAGE.dataset / SPLITS_FILE).is_file():
        size = ["--in-plane-mm", "3", "--slice-mm", "3"]
        for argv in (
            ["phantom", "-n", str(given.cases), *size, "-o", str(made)],
            ["convert", str(made), "--nnunet-dir", str(given.work / "nnunet")],
        ):
            app(argv, standalone_mode=False)
        raw = open_dataset(folders.raw, SOURCE_STAGE.dataset_id, "")
        write_json(raw.folder / SPLITS_FILE, make_splits(source_traits(raw), folds=given.folds))
    return folders


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--systems", default=SYSTEMS)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--budget", default="4cpumin", help="of a fold, over all of a system's networks")
    parser.add_argument("--cases", type=int, default=24)
    parser.add_argument("--workers", help="processes, each with a system at a time")
    given = parser.parse_args()
    given.work = given.work.resolve()
    given.work.mkdir(parents=True, exist_ok=True)
    folders = phantoms(given)
    rows = tuple(
        for_a_processor(find_system(name), given.work, SIZES, NARROWER, QUICK) for name in given.systems.split(",")
    )
    os.environ |= TWO_CORES
    budget, folds, number = parse_budget(given.budget), tuple(range(given.folds)), SOURCE_STAGE.dataset_id
    plan = Comparison(folders, given.work / "comparison", rows, folds, budget, number, "cpu", False)
    workers = local_workers(worker_environments(given.workers)) if given.workers else nullcontext((None, 0))
    begin = perf_counter()
    with workers as (executor, _):
        report = compare(plan, say=print, executor=executor)
    print((plan.out / "comparison.csv").read_text(encoding="utf-8"))
    print(
        f"{perf_counter() - begin:.0f} s; {len(report.steps)} steps; failed: {report.failed or 'none'}; {report.page}"
    )
    sys.exit(bool(report.failed))


if __name__ == "__main__":
    main()
