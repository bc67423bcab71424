"""The cascade against nnU-Net's own commands by hand, on real geometries and phantoms: Dice between the two results.

    python -m tests.benchmarks.predict_parity --results nnUNet_results --masks ../shared/kits23/masks [--phantoms 2]

Twice by hand: in the boxes that the cascade has used (the same settings), and in those of the full-size coarse mask.
"""

import argparse
from pathlib import Path

import numpy as np

from kits_cascade.inference.cascade import Speed
from kits_cascade.labels import REGIONS
from kits_cascade.models.choose import resolve_models
from kits_cascade.runs.predict import predict_folder
from kits_cascade.synthetic.phantom import make_case, paint_ct
from kits_cascade.volumes.nifti import read_labels, write_volume
from tests.inference.handmade import dice
from tests.inference.manual import manual_cascade, regions_of_run

CASES = ["case_00061", "case_00110", "case_00529", "case_00287", "case_00045", "case_00115"]
SPEED = Speed(tta=False, tile_step=0.5, coarse_tile_step=0.75, engine="torch", precision="fp32")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--masks", type=Path, required=True)
    parser.add_argument("--cases", nargs="*", default=CASES)
    parser.add_argument("--phantoms", type=int, default=2)
    parser.add_argument(
        "--own-boxes", action="store_true", help="also by hand in the boxes of the full-size coarse mask"
    )
    parser.add_argument("--work", type=Path, default=Path("/tmp/kits-cascade-parity"))
    given = parser.parse_args()
    images = given.work / "in"
    for name in given.cases:
        if not (images / f"{name}_0000.nii.gz").exists():
            labels = read_labels(given.masks / name / "segmentation.nii.gz")
            write_volume(images / f"{name}_0000.nii.gz", paint_ct(labels, 0))
    for index in range(given.phantoms):
        if not (images / f"phantom_{index}_0000.nii.gz").exists():
            write_volume(images / f"phantom_{index}_0000.nii.gz", make_case(77, index).image)
    predict_folder(images, given.work / "ours", resolve_models(given.results, folds=[0]), device="cpu", speed=SPEED)
    regions = regions_of_run(given.work / "ours" / "run.json")
    ways = {"same boxes": regions} | ({"own boxes": None} if given.own_boxes else {})
    print(
        f"| case | shape | mm | regions | {' | '.join(f'{way}: {r.name}' for way in ways for r in REGIONS)} |",
        flush=True,
    )
    print(f"|---|---|---|---|{'---|' * 3 * len(ways)}")
    for way, chosen in ways.items():
        manual_cascade(images, given.work / way.replace(" ", "_"), given.results, chosen)
    for name, found in regions.items():
        ours = read_labels(given.work / "ours" / f"{name}.nii.gz")
        cells = [name, "x".join(map(str, ours.shape)), " ".join(f"{s:.3g}" for s in ours.spacing), str(len(found))]
        for way in ways:
            theirs = read_labels(given.work / way.replace(" ", "_") / f"{name}.nii.gz").array
            for region in REGIONS:
                score = dice(np.isin(ours.array, region.labels), np.isin(theirs, region.labels))
                cells.append(f"{score:.5f} ({np.isin(theirs, region.labels).sum()})")
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
