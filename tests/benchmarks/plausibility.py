"""How well the checks of plausibility tell what is to be believed.

python -m tests.benchmarks.plausibility alarms   --masks MASKS [--limit N]   true labels that are doubted
python -m tests.benchmarks.plausibility wrecks   --masks MASKS [--limit N]   wrecked labels that are found, kind by kind
python -m tests.benchmarks.plausibility inputs   --masks MASKS [--limit N]   scans that are no CT of an abdomen in HU
python -m tests.benchmarks.plausibility time     --case FILE                 seconds of all checks on one scan
python -m tests.benchmarks.plausibility verdicts --run OUT --truth FOLDER    verdicts of a run against its kidney Dice
python -m tests.benchmarks.plausibility reliability --run OUT --truth FOLDER how often lesions are right, by confidence

MASKS is a folder in KiTS layout. A CT is painted around each mask by ``synthetic.phantom.paint_ct``, unless an
imaging.nii.gz lies beside it. With --size-mm voxels are made coarser first, which is quicker; --all tells every case.
"""

import argparse
import json
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from kits_cascade.cli.app import app
from kits_cascade.inference.measure import measure_lesions, volumes_ml
from kits_cascade.inference.pipeline import CascadeResult
from kits_cascade.inference.plausibility import check_input, check_labels, refusal
from kits_cascade.inference.plausibility_facts import ImageFacts, every_mm
from kits_cascade.inference.plausibility_finding import PLAUSIBLE, verdict_of
from kits_cascade.labels import CYST, TUMOR
from kits_cascade.synthetic.phantom import paint_ct
from kits_cascade.volumes.components import components
from kits_cascade.volumes.geometry import Box
from kits_cascade.volumes.nifti import read_labels, read_volume
from kits_cascade.volumes.roi_boxes import kidney_boxes
from kits_cascade.volumes.volume import Volume, volume_from_array
from tests.benchmarks.odd_inputs import odd_inputs, true_inputs
from tests.benchmarks.wrecks import WRECKS, NotPossibleError

FALSE = 0.1  # share of a lesion below which it is none, as in the lesion tables
MASKS = Path(__file__).parent.parent.parent.parent / "shared" / "kits23" / "masks"


@dataclass(frozen=True)
class Case:
    """A true label map with its CT, and another case to mistake it for."""

    name: str
    volume: Volume
    labels: np.ndarray
    other: "Case | None" = None

    @property
    def image(self):
        """The CT's voxels."""
        return self.volume.array

    @property
    def spacing(self):
        """Of both."""
        return self.volume.spacing

    @cached_property
    def facts(self):
        """Of the scan: the same for all wrecks."""
        return ImageFacts.of(self.volume)


def coarser(volume, size_mm):
    """Every n-th voxel, so that none is larger than asked for."""
    steps = every_mm(volume.spacing, size_mm)
    affine = volume.affine @ np.diag([*(s.step for s in steps[::-1]), 1])
    return volume_from_array(np.ascontiguousarray(volume.array[steps]), affine)


def load(path, seed, size_mm):
    """A mask with its CT, painted where there is none."""
    labels = read_labels(path)
    labels = coarser(labels, size_mm) if size_mm else volume_from_array(labels.array, labels.affine)
    imaging = path.parent / "imaging.nii.gz"
    if imaging.is_file():
        volume = read_volume(imaging)
        volume = coarser(volume, size_mm) if size_mm else volume
    else:
        volume = paint_ct(labels, seed)
    return Case(path.parent.name, volume, labels.array)


def cases_of(arguments):
    """Cases one by one, each with the one before it as the other."""
    paths = sorted(arguments.masks.glob("*/segmentation.nii.gz"))[: arguments.limit]
    before = load(paths[-1], arguments.seed, arguments.size_mm) if len(paths) > 1 else None
    for path in paths:
        case = load(path, arguments.seed, arguments.size_mm)
        yield replace(case, other=before)
        before = replace(case, other=None)


def findings_of(case, labels):
    """What the checks say of labels that a cascade might have left."""
    volume = case.volume
    result = CascadeResult(labels, facts=case.facts, findings=check_input(case.facts))
    result.boxes = kidney_boxes(labels, volume.spacing, 20.0) if labels.any() else []
    bounds = result.bounds
    if bounds is None:
        return check_labels(result, None, [], {})
    inside, grey = bounds.crop(labels), bounds.crop(volume.array)
    lesions = measure_lesions(inside, grey, volume.spacing, volume.affine, bounds, volume.shape)
    return check_labels(result, grey, lesions, volumes_ml(inside, volume.spacing))


def grave(findings):
    """Names of what makes one doubt."""
    return sorted({f.check for f in findings if f.severity != "note"})


def alarms(arguments):
    """True labels."""
    flagged, total = [], 0
    for case in cases_of(arguments):
        findings = findings_of(case, case.labels)
        total += 1
        if verdict_of(findings) != PLAUSIBLE:
            flagged.append(case.name)
            print(
                f"{case.name}: {'; '.join(f.check + ': ' + f.text for f in findings if f.severity != 'note')}",
                flush=True,
            )
    print(f"true labels doubted: {len(flagged)} of {total} ({len(flagged) / max(1, total):.1%}); bar 2 %")


def wrecks(arguments):
    """Every kind of wreck from every case."""
    found, names = defaultdict(list), defaultdict(lambda: defaultdict(int))
    for case in cases_of(arguments):
        usual = set(grave(findings_of(case, case.labels)))
        for kind, make in WRECKS.items():
            if arguments.kind and kind not in arguments.kind:
                continue
            try:
                labels = make(case)
            except NotPossibleError:
                continue
            checks = grave(findings_of(case, labels))
            found[kind].append(bool(checks))
            for check in set(checks) - usual:
                names[kind][check] += 1
            if arguments.all:
                print(case.name, kind, checks, flush=True)
    rows = {kind: (sum(hits), len(hits)) for kind, hits in found.items()}
    print("| wreck | found | by |\n|---|---|---|")
    for kind, (hits, total) in rows.items():
        by = ", ".join(name for name, _ in sorted(names[kind].items(), key=lambda item: -item[1])[:4])
        print(f"| {kind} | {hits} of {total} | {by} |")
    hits, total = (sum(row[k] for row in rows.values()) for k in (0, 1))
    worst = min(rows, key=lambda kind: rows[kind][0] / rows[kind][1])
    print(f"found {hits} of {total} ({hits / total:.1%}); bar 95 %; worst kind: {worst}; bar 80 %")


def inputs(arguments):
    """Odd scans named, true ones not refused."""
    named, refused = defaultdict(list), defaultdict(list)
    for case in cases_of(arguments):
        for kind, volume, check in odd_inputs(case.volume):
            names = [finding.check for finding in check_input(ImageFacts.of(volume))]
            named[kind].append(check in names)
            if check not in names:
                print(f"{case.name} {kind}: {names}", flush=True)
        for kind, image in true_inputs(case.image, case.spacing):
            volume = volume_from_array(np.ascontiguousarray(image), case.volume.affine)
            findings = check_input(ImageFacts.of(volume))
            refused[kind].append(bool(refusal(findings)))
            if grave(findings):
                print(f"{case.name} {kind}: {grave(findings)}", flush=True)
    print("| input | named rightly |\n|---|---|")
    for kind, hits in named.items():
        print(f"| {kind} | {sum(hits)} of {len(hits)} |")
    print("\n| true CT | refused |\n|---|---|")
    for kind, hits in refused.items():
        print(f"| {kind} | {sum(hits)} of {len(hits)} |")


def time_checks(arguments):
    """Processor seconds of the checks on a scan, with its labels if there are some beside it."""
    case = load(arguments.case, arguments.seed, None)
    start = time.process_time()
    check_input(case.facts)
    middle = time.process_time()
    bounds = Box.around(case.labels)
    if bounds is not None:
        bounds = bounds.grown(20.0, case.spacing).clipped(case.labels.shape)
        result = CascadeResult(case.labels, [bounds], facts=case.facts)
        check_labels(result, bounds.crop(case.image), [], {})
    end = time.process_time()
    print(f"{case.name}: scan {middle - start:.2f} s, labels {end - middle:.2f} s of processor time")


@dataclass(frozen=True)
class Judged:
    """A case of a run: how good it is, what was said of it, and whether that is true."""

    name: str
    dice: float
    doubts: list[dict]
    mirrored: bool = False
    wrong: bool = False  # at least one doubt names a thing that is really wrong in the labels
    odd: bool = False  # the true labels of this scan get all of these doubts as well


def verdicts(arguments):
    """Verdicts of a finished run, against the Dice of kidneys with masses."""
    records = json.loads((arguments.run / "run.json").read_text(encoding="utf-8"))["cases"]
    rows = sorted((judged(arguments, *item) for item in records.items()), key=lambda row: row.dice)
    for row in rows:
        told = [word for word in ("mirrored", "wrong", "odd") if getattr(row, word)]
        checks = sorted({finding["check"] for finding in row.doubts})
        print(f"{row.name}: Dice {row.dice:.3f} {', '.join(told)} {checks}")
    for what, bar, test in (("under 0.5", ">= 95 %", lambda d: d < 0.5), ("0.5 to 0.9", "none", None),
                            ("over 0.9", "<= 5 %", lambda d: d > 0.9)):  # fmt: skip
        some = [row for row in rows if (test(row.dice) if test else 0.5 <= row.dice <= 0.9)]
        tell_verdicts(f"kidney Dice {what}", some, bar)


def tell_verdicts(what, rows, bar):
    """As the bar counts, and why."""
    print(f"{what}: doubted {sum(bool(row.doubts) for row in rows)} of {len(rows)}; bar {bar}")
    straight = [row for row in rows if not row.mirrored]
    doubted = [row for row in straight if row.doubts]
    wrong, odd = (sum(test(row) for row in doubted) for test in (lambda r: r.wrong, lambda r: not r.wrong and r.odd))
    print(f"    without inputs that the painter mirrored: {len(doubted)} of {len(straight)}; of these")
    print(f"    what is doubted is wrong (a false kidney or lesion): {wrong}; as odd in the true labels: {odd}; "
          f"doubted though right: {len(doubted) - wrong - odd}", flush=True)  # fmt: skip


def judged(arguments, name, record):
    """A case of a run, against its truth."""
    if record["status"] != "done":
        return Judged(name, 0.0, [{"check": "failed"}])
    truth = read_labels(arguments.truth / name / "segmentation.nii.gz")
    mine = read_labels(arguments.run / record["output"]).array
    total = np.count_nonzero(truth.array) + np.count_nonzero(mine)
    dice = 2 * np.count_nonzero((truth.array > 0) & (mine > 0)) / total if total else 1.0
    about = arguments.truth / name / "painted.json"
    mirrored = about.is_file() and json.loads(about.read_text(encoding="utf-8")).get("mirrored", False)
    doubts = [finding for finding in record["findings"] if finding["severity"] != "note"]
    if not doubts:
        return Judged(name, dice, doubts, mirrored)
    wrong = any(names_what_is_wrong(finding, truth.array, mine) for finding in doubts)
    case = Case(name, read_volume(arguments.truth / name / "imaging.nii.gz"), truth.array)
    odd = {finding["check"] for finding in doubts} <= set(grave(findings_of(case, case.labels)))
    return Judged(name, dice, doubts, mirrored, wrong, odd)


def names_what_is_wrong(finding, truth, mine):
    """Whether the thing that a doubt points at is not there: a lesion that is none, or a kidney."""
    if finding["lesion"]:
        kind, number = finding["lesion"].split()
        label = {"tumor": TUMOR, "cyst": CYST}[kind]
        found = components(mine == label)
        piece = found.labels == np.argsort(-found.voxels, kind="stable")[int(number) - 1] + 1
        return bool((truth[piece] == label).mean() < FALSE)
    if finding["where"] is None or not finding["check"].startswith("kidneys"):
        return False
    found = components(mine > 0)
    places = np.argwhere(found.labels)
    near = places[np.abs(places - finding["where"]).sum(axis=1).argmin()]
    return bool((truth[found.labels == found.labels[tuple(near)]] > 0).mean() < 0.5)


def reliability(arguments):
    """The mean certainty of lesions against how often they are right; the curve is fitted on the other half."""
    command = ["models", "calibrate", str(arguments.run), "-g", str(arguments.truth), "--dry-run"]
    app(command, standalone_mode=False)


def main():
    """One subcommand."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = {
        "alarms": alarms,
        "wrecks": wrecks,
        "inputs": inputs,
        "time": time_checks,
        "verdicts": verdicts,
        "reliability": reliability,
    }
    parser.add_argument("what", choices=commands)
    parser.add_argument("--masks", type=Path, default=MASKS)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size-mm", type=float)
    parser.add_argument("--kind", nargs="*")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--case", type=Path)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--truth", type=Path)
    arguments = parser.parse_args()
    commands[arguments.what](arguments)


if __name__ == "__main__":
    main()
