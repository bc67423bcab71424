"""Peak memory of predicting the largest KiTS geometry (1059x512x512), once and three times in a row; demo-sized models.

python -m tests.benchmarks.predict_memory --masks ../shared/kits23/masks
"""

import argparse
import os
import sys
from pathlib import Path

from kits_cascade.stages import COARSE
from tests.benchmarks.bench_models import DEMO, write_image, write_models
from tests.benchmarks.predict_speed import OURS, REPOSITORY, kidney_dice, measured


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--masks", type=Path, required=True)
    parser.add_argument("--case", default="case_00151")
    parser.add_argument("--work", type=Path, default=Path("/tmp/kits-cascade-memory"))
    parser.add_argument("--counts", type=int, nargs="*", default=[1, 3])
    given = parser.parse_args()
    results, truth = given.work / "nnUNet_results", given.work / "truth" / f"{given.case}.nii.gz"
    image = given.work / "image" / f"{given.case}_0000.nii.gz"
    if not (results / COARSE.dataset).exists():
        write_models(results, DEMO)
    if not truth.exists():
        write_image(given.masks / given.case / "segmentation.nii.gz", image, truth)
    environment = os.environ | {"nnUNet_results": str(results), "PYTHONPATH": str(REPOSITORY)}
    print("| cases | seconds | processor seconds | peak RSS (GiB) | Dice kidney+masses |\n|---|---|---|---|---|")
    for count in given.counts:
        source, out = given.work / f"in{count}", given.work / f"out{count}"
        source.mkdir(exist_ok=True)
        for number in range(count):
            link = source / f"copy_{number}_0000.nii.gz"
            if not link.exists():
                link.symlink_to(image)
        call = ["predict", "-i", str(source), "-o", str(out), "--device", "cpu", "--fast", "-q", "--overwrite"]
        seconds, processor, _, resident = measured([sys.executable, "-c", OURS, *call], environment)
        score = kidney_dice(out / "copy_0.nii.gz", truth)
        print(f"| {count} | {seconds:.1f} | {processor:.1f} | {resident:.2f} | {score:.4f} |", flush=True)


if __name__ == "__main__":
    main()
