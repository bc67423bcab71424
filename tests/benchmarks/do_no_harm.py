"""What the postprocessing does to the published truth: by volume in mm3, and by the published voxel counts.

python tests/benchmarks/do_no_harm.py [--masks FOLDER] [--markdown FILE]
"""

import argparse
import time
from pathlib import Path

import numpy as np

from kits_cascade.inference.postprocess import PostprocessOptions, postprocess
from kits_cascade.labels import CYST, LABEL_NAMES, REGIONS, TUMOR
from kits_cascade.volumes.geometry import Box
from kits_cascade.volumes.nifti import read_labels

REPOSITORY = Path(__file__).parent.parent.parent
RULES = {"by volume (default)": PostprocessOptions(), "by voxels": PostprocessOptions(min_voxels=(20000, 200, 50))}


def dice(truth, result, labels):
    """One region's Dice."""
    lookup = np.isin(np.arange(4), labels)
    a, b = lookup[truth], lookup[result]
    total = int(a.sum()) + int(b.sum())
    return 1.0 if total == 0 else 2 * int((a & b).sum()) / total


def measure(folder, options):
    """Per case: Dice of each region, the labels of which nothing is left, whether anything changed, seconds."""
    rows = []
    for case in sorted((folder / "masks").iterdir()):
        volume = read_labels(next(case.glob("*.nii.gz")))
        truth = Box.around(volume.array).crop(volume.array).copy()
        start = time.process_time()
        result = postprocess(truth, volume.spacing, options).labels
        seconds = time.process_time() - start
        lost = [LABEL_NAMES[n] for n in (TUMOR, CYST) if (truth == n).any() and not (result == n).any()]
        scores = {region.name: dice(truth, result, region.labels) for region in REGIONS}
        rows.append((case.name, scores, lost, bool((truth != result).any()), seconds))
    return rows


def table(results):
    """As markdown."""
    names = [region.name for region in REGIONS]
    lines = ["| rule | cases | changed | " + " | ".join(f"worst {n} Dice" for n in names) + " | loses | CPU |"]
    lines.append("|---" * (len(names) + 5) + "|")
    for rule, rows in results.items():
        worst = [min((scores[n], case) for case, scores, *_ in rows) for n in names]
        lost = ", ".join(f"last {what} of {case}" for case, _, gone, *_ in rows for what in gone) or "nothing"
        cells = [rule, len(rows), sum(row[3] for row in rows), *(f"{s:.5f} ({c})" for s, c in worst), lost]
        lines.append("| " + " | ".join(map(str, cells)) + f" | {sum(row[4] for row in rows):.1f} s |")
    return "\n".join(lines)


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--masks", type=Path, default=REPOSITORY.parent / "shared" / "kits23")
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    text = table({rule: measure(arguments.masks, options) for rule, options in RULES.items()})
    print(text)
    if arguments.markdown:
        arguments.markdown.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
