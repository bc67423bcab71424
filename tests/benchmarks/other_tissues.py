"""Phantoms of other tissues than the demo's networks were trained on: from the same, case by case, to quite others.

    python -m tests.benchmarks.other_tissues -n 40 -o DIR [--seed 0]

What is to be believed of such results is told by

    kits-cascade predict -i DIR -o OUT -m DEMO/nnunet/nnUNet_results --no-tta
    python -m tests.benchmarks.plausibility verdicts --run OUT --truth DIR

A tissue's HU is drawn from what contrast medium, from none to its arterial peak, and people make of it.
"""

import argparse
from pathlib import Path
from unittest.mock import patch

import numpy as np

from kits_cascade.synthetic import anatomy as body
from kits_cascade.synthetic import scanner
from kits_cascade.synthetic.phantom import make_case
from kits_cascade.volumes.nifti import write_volume

RANGES = {
    body.FAT: (-120, -80),
    body.MUSCLE: (40, 70),
    body.BONE: (350, 800),
    body.MARROW: (120, 260),
    body.LIVER: (45, 140),
    body.SPLEEN: (40, 160),
    body.VESSEL: (40, 320),
    body.BOWEL: (20, 80),
    body.BILE: (0, 20),
    body.SOLID: (25, 140),
    body.NECROSIS: (10, 40),
    body.WATER: (-5, 20),
}
CORTEX = (30, 230)
MEDULLA = (0.6, 1.0)  # of the cortex


def other(share, rng):
    """The scanner's table with each mean moved by a share of the way to another value."""
    means = {tissue: rng.uniform(*limits) for tissue, limits in RANGES.items()}
    means[body.CORTEX] = rng.uniform(*CORTEX)
    means[body.MEDULLA] = means[body.CORTEX] * rng.uniform(*MEDULLA)
    table = dict(scanner._HU)
    for tissue, mean in means.items():
        usual, spread = table[tissue]
        table[tissue] = (usual + share * (mean - usual), spread)
    return table


def main():
    """Write the cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=40)
    parser.add_argument("-o", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for index in range(given.n):
        table = other(index / max(1, given.n - 1), np.random.default_rng([given.seed, index, 1]))
        with patch.dict(scanner._HU, table):
            case = make_case(given.seed + 1000, index)
        write_volume(given.o / case.name / "imaging.nii.gz", case.image)
        write_volume(given.o / case.name / "segmentation.nii.gz", case.labels)


if __name__ == "__main__":
    main()
