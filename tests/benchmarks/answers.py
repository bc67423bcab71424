"""How alike the answers of folds, and to mirrored tiles, are, beside how right the result is.

python -m tests.benchmarks.answers --cases FOLDER [--models BUNDLE] [--folds 0 1] [--tta]

FOLDER holds NAME/imaging.nii.gz, and NAME/segmentation.nii.gz or kidneys.nii.gz where there is a truth.
"""

import argparse
import time
from pathlib import Path

from kits_cascade.inference.cascade import Cascade, Speed
from kits_cascade.inference.certainty import FOLDS, MIRRORS
from kits_cascade.inference.plausibility_certainty import measure
from kits_cascade.volumes.nifti import read_labels
from tests.benchmarks.shipped_networks import dice


def truth_of(folder):
    """The true labels; None where there are none."""
    found = [folder / name for name in ("segmentation.nii.gz", "kidneys.nii.gz") if (folder / name).is_file()]
    return read_labels(found[0]).array if found else None


def main():
    """One row a case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=Path, required=True)
    parser.add_argument("--models", type=Path)
    parser.add_argument("--folds", type=int, nargs="*")
    parser.add_argument("--tta", action="store_true")
    given = parser.parse_args()
    cascade = Cascade(given.models, folds=given.folds, speed=Speed(tta=given.tta))
    print("| case | kidney Dice | masses Dice | kidneys alike | masses alike | processor s | findings |")
    print("|---" * 7 + "|")
    for path in sorted(given.cases.glob("*/imaging.nii.gz")):
        start = time.process_time()
        prediction = cascade(path)
        seconds, found = time.process_time() - start, measure(prediction.result)
        truth = truth_of(path.parent)
        right = [dice(truth, prediction.labels, labels) if truth is not None else float("nan")
                 for labels in ((1, 2, 3), (2, 3))]  # fmt: skip
        among = MIRRORS if given.tta else FOLDS
        alike = [found.get(f"{stage}_{among}", float("nan")) for stage in ("kidney", "masses")]
        checks = {finding.check for finding in prediction.findings if finding.check.startswith("networks")}
        cells = [f"{value:.3f}" for value in (*right, *alike)]
        print(f"| {path.parent.name} | {' | '.join(cells)} | {seconds:.1f} | {', '.join(sorted(checks))} |", flush=True)


if __name__ == "__main__":
    main()
