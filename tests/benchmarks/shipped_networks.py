"""What the shipped networks are worth: on real CT, on painted CT that they have not seen, on slices of real CT.

    python -m tests.benchmarks.shipped_networks real --real DIR
    python -m tests.benchmarks.shipped_networks painted --masks DIR --anatomy DIR [-n 30]
    python -m tests.benchmarks.shipped_networks slices --real DIR

DIR of ``real`` holds ct_3mm/{imaging,kidneys}.nii.gz and, for false alarms, CTs without labels; that of ``slices``
kits_slices/. ``--models BUNDLE`` takes another bundle, ``--pictures DIR`` keeps a picture of each case.
"""

import argparse
import csv
import json
import time
from pathlib import Path

import numpy as np

from kits_cascade.evaluation.lesions import score_lesions
from kits_cascade.evaluation.metrics import LabelPair
from kits_cascade.inference.cascade import Cascade, Speed
from kits_cascade.labels import CYST, KIDNEY, TUMOR
from kits_cascade.report.figures import case_panel
from kits_cascade.synthetic.painted_cases import write_painted
from kits_cascade.synthetic.painter import Sources, make_options
from kits_cascade.volumes.components import components, dilated_mm
from kits_cascade.volumes.nifti import read_labels, read_volume
from kits_cascade.volumes.volume import volume_from_array

REGIONS = {"kidney": (KIDNEY, TUMOR, CYST), "masses": (TUMOR, CYST), "tumor": (TUMOR,)}


def dice(truth, found, labels):
    first, second = np.isin(truth, labels), np.isin(found, labels)
    total = first.sum() + second.sum()
    return 2 * (first & second).sum() / total if total else float("nan")


def false_parts(truth, found, spacing):
    """mL of the largest piece of what was found that lies outside of the kidneys."""
    outside = (found > 0) & ~dilated_mm(truth > 0, spacing, 5.0)
    sizes = np.bincount(components(outside).labels.ravel())[1:]
    return sizes.max() * np.prod(spacing) / 1000 if len(sizes) else 0.0


def held(truth, boxes):
    """Share of kidney voxels inside the boxes of the coarse stage."""
    inside = np.zeros(truth.shape, dtype=bool)
    for box in boxes:
        inside[box.slices] = True
    return (inside & (truth > 0)).sum() / max(1, (truth > 0).sum())


def judge(name, truth, prediction, spacing, seconds):
    found, boxes = prediction.labels, prediction.result.boxes
    row = {"case": name, **{region: dice(truth, found, labels) for region, labels in REGIONS.items()}}
    return row | {"false mL": false_parts(truth, found, spacing), "held": held(truth, boxes), "seconds": seconds}


def show(rows):
    print("| " + " | ".join(rows[0]) + " |")
    print("|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(v if isinstance(v, str) else f"{v:.3f}" for v in row.values()) + " |")
    if len(rows) > 1:
        numbers = [k for k, v in rows[0].items() if not isinstance(v, str)]
        print(
            "| mean | " + " | ".join(f"{np.nanmean([row[k] for row in rows]):.3f}" for k in numbers) + " |", flush=True
        )


def keep(given, name, image, truth, prediction):
    if given.pictures:
        given.pictures.mkdir(parents=True, exist_ok=True)
        case_panel(image, truth, image.with_array(prediction.labels), given.pictures / f"{name}.png", name)


def real(given, cascade):
    rows = []
    for folder in sorted(path.parent for path in given.real.glob("*/imaging.nii.gz")):
        image, begin = read_volume(folder / "imaging.nii.gz"), time.perf_counter()
        prediction = cascade(folder / "imaging.nii.gz")
        seconds = time.perf_counter() - begin
        truth = read_labels(folder / "kidneys.nii.gz") if (folder / "kidneys.nii.gz").is_file() else None
        keep(given, folder.name, image, truth, prediction)
        if truth is not None:
            rows.append(judge(folder.name, truth.array, prediction, image.spacing, seconds))
        parts = components(prediction.labels > 0)
        sizes = sorted((np.bincount(parts.labels.ravel())[1:] * image.voxel_mm3 / 1000).round(1), reverse=True)
        lesions = {n: round(float((prediction.labels == v).sum() * image.voxel_mm3 / 1000), 1) for n, v in
                   (("tumor", TUMOR), ("cyst", CYST))}  # fmt: skip
        print(f"{folder.name}: parts of {sizes[:6]} mL, lesions {lesions} mL, {seconds:.1f} s")
    show(rows)


def painted(given, cascade):
    sources = Sources.find(given.anatomy, given.masks, (given.only,))
    outcomes = write_painted(given.work, sources, given.number, 5, options=make_options(2.0, hard=True, view="abdomen"))
    rows, lesions = [], []
    for folder in sorted(o.result for o in outcomes if o.result is not None):
        truth, image = read_labels(folder / "segmentation.nii.gz"), read_volume(folder / "imaging.nii.gz")
        begin = time.perf_counter()
        prediction = cascade(folder / "imaging.nii.gz")
        rows.append(judge(folder.name, truth.array, prediction, truth.spacing, time.perf_counter() - begin))
        lesions.append(score_lesions(LabelPair(truth.array, prediction.labels, truth.spacing)))
        keep(given, folder.name, image, truth, prediction)
        print(json.dumps(rows[-1]), flush=True)
    show(rows)
    tumors = [lesion for case in lesions for lesion in case if lesion.kind == "tumor" and lesion.volume_ml > 1]
    there = [lesion.matched for lesion in tumors if lesion.source == "truth"]
    false = [lesion for lesion in tumors if lesion.source != "truth" and not lesion.matched]
    print(f"tumours over 1 mL: {sum(there)} of {len(there)} found, {len(false) / len(rows):.2f} false ones a case")
    print(f"boxes hold all of the kidneys in {sum(row['held'] >= 0.9999 for row in rows)} of {len(rows)} cases")


def slices(given, cascade):
    """Each slice repeated along z to a slab of 100 mm: a rough check, for a slice repeated is no CT."""
    folder = given.real / "kits_slices"
    content = np.load(folder / "slices.npz")
    rows = []
    with (folder / "slices.csv").open() as stream:
        about = list(csv.DictReader(stream))
    for line, image, label in zip(about, content["image"], content["label"], strict=True):
        spacing = (4.0, float(line["spacing_row"]), float(line["spacing_col"]))
        # Rows run from front to back, columns from the patient's right to the left; canonical arrays the other way.
        slab, truth = (np.repeat(part[None, ::-1, ::-1], 25, axis=0) for part in (image.astype(np.int16), label))
        slab = np.where(slab <= 0, -100, slab).astype(np.int16)  # clipped at 0: fat and air look alike
        prediction = cascade(volume_from_array(np.ascontiguousarray(slab), spacing=spacing))
        middle = prediction.labels[10:15]
        row = {region: dice(truth[10:15], middle, labels) for region, labels in REGIONS.items()}
        rows.append({"case": f"{line['case']}/{line['slice']}", **row})
    show(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["real", "painted", "slices"])
    parser.add_argument("--real", type=Path)
    parser.add_argument("--masks", type=Path)
    parser.add_argument("--anatomy", type=Path)
    parser.add_argument("--only", default="t1", help="the anatomy that training has not seen")
    parser.add_argument("-n", "--number", type=int, default=30)
    parser.add_argument("--models", type=Path)
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--work", type=Path, default=Path("/tmp/kits-cascade-painted"))
    given = parser.parse_args()
    cascade = Cascade(given.models, speed=Speed(tta=False))
    {"real": real, "painted": painted, "slices": slices}[given.what](given, cascade)


if __name__ == "__main__":
    main()
