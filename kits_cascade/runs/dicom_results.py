"""Results back into DICOM: SEG and SR of a case, beside its labels or made of them afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from kits_cascade.errors import UsageError
from kits_cascade.files import atomic_path, sha256
from kits_cascade.inference.measure import LesionRow, body_midline, measure_lesions, volumes_ml
from kits_cascade.runs.manifest import RunManifest
from kits_cascade.runs.records import DONE, STATE, CaseRecord, Records
from kits_cascade.volumes.cases import LoadedCase, check_same_grid, load_case
from kits_cascade.volumes.dicom_extra import load_highdicom
from kits_cascade.volumes.dicom_seg import FORMS, make_seg
from kits_cascade.volumes.dicom_source import read_source
from kits_cascade.volumes.dicom_sr import Findings, make_sr
from kits_cascade.volumes.find import InputCase, find_inputs
from kits_cascade.volumes.nifti import read_volume
from kits_cascade.volumes.volume import Array, Volume

SEG, SR = "seg", "sr"
KINDS: Final = (*FORMS, SR)
NEEDS_DICOM: Final = (
    "SEG and SR refer to the slices of a DICOM series, and this is none: it lacks the UIDs of study and "
    "slices. Give the folder of the original series"
)


def parse_kinds(text: str | None) -> tuple[str, ...]:
    """What to write, of a list with commas; a report brings the SEG along that it refers to."""
    if text is None:
        return ()
    asked = {part.strip().lower() for part in text.split(",") if part.strip()}
    unknown = sorted(asked - set(KINDS))
    if unknown or not asked:
        raise UsageError(f"--dicom {text}: give one or more of {', '.join(KINDS)}, with commas between them")
    return tuple(kind for kind in KINDS if kind in asked or (kind == SEG and SR in asked))


def with_dicom_sources(cases: Sequence[InputCase], kinds: Sequence[str]) -> list[InputCase]:
    """The cases, those that no DICOM can be written for with that as their problem; nothing is computed for them."""
    if not kinds:
        return list(cases)
    load_highdicom()  # better missed now than after the first case
    return [case if case.kind == "dicom" or case.problem else replace(case, problem=NEEDS_DICOM) for case in cases]


def remarks_on(record: CaseRecord) -> list[str]:
    """What a reader of the report should know."""
    verdict = [f"Verdict of the automatic checks: {record.verdict}."] if record.verdict else []
    doubts = [str(finding["text"]) for finding in record.findings if finding["severity"] != "note"]
    return [*verdict, *doubts, *record.warnings]


def write_dicom(
    folder: Path,
    series: Path,
    volume: Volume,
    labels: Array,
    findings: Findings,
    networks: str,
    kinds: Sequence[str],
) -> list[Path]:
    """Write what is asked for into ``folder``; where no label is set there is no SEG, and an older one goes away."""
    source = read_source(series)
    written, seg = [], None
    for kind in kinds:
        path = folder / f"{kind}.dcm"
        if kind == SR:
            dataset: Any = make_sr(source, findings, seg, networks)
        else:
            made = make_seg(source, volume, labels, networks, kind)
            seg = made if kind == SEG else seg
            dataset = None if made is None else made.dataset
        if dataset is None:
            path.unlink(missing_ok=True)
            continue
        with atomic_path(path) as temporary:
            dataset.save_as(temporary)
        written.append(path)
    return written


@dataclass(frozen=True)
class Result:
    """A label file of an output folder, and what is known of it."""

    out: Path
    path: Path
    record: CaseRecord


def find_results(given: Path) -> list[Result]:
    """The results in an output folder, or the one result that is given by its file or its case's name."""
    if (given / STATE).is_dir():
        return [Result(given, given / record.output, record) for record in _finished(given)]
    out = given.parent
    found = [
        Result(out, out / record.output, record)
        for record in _finished(out)
        if record.name == given.name or (out / record.output).name == given.name
    ]
    if not found:
        raise UsageError(
            f"{given}: no finished case of `kits-cascade predict`; give an output folder, or OUT/CASE in it"
        )
    return found


def _finished(out: Path) -> list[CaseRecord]:
    if not (out / STATE).is_dir():
        return []
    records = (CaseRecord.from_json(content) for content in Records(out).all())
    return sorted((record for record in records if record.status == DONE), key=lambda record: record.name)


def write_dicom_afterwards(result: Result, kinds: Sequence[str], series: Path | None = None) -> list[Path]:
    """SEG and SR of a finished case; what has been edited since is measured anew."""
    folder = series or Path(result.record.input)
    if not folder.is_dir():
        raise UsageError(f"{result.path}: was made of {folder}. {NEEDS_DICOM} with --series")
    labels = read_volume(result.path)
    array = labels.array.astype(np.uint8)
    findings = _findings(result, folder, labels)
    networks = RunManifest(result.out).networks_of(result.record)
    return write_dicom(result.out / "dicom" / result.record.name, folder, labels, array, findings, networks, kinds)


def _findings(result: Result, folder: Path, labels: Volume) -> Findings:
    record = result.record
    if sha256(result.path) == record.result:
        return Findings([LesionRow(**row) for row in record.lesions], record.volumes_ml, remarks_on(record))
    return _measure(load_case(find_inputs(folder)[0]), labels, record.warnings)  # the verdict was of other labels


def _measure(loaded: LoadedCase, labels: Volume, remarks: list[str]) -> Findings:
    check_same_grid(("the series", "the labels"), loaded.volume.stored, labels.stored)
    image, array = loaded.volume, labels.array.astype(np.uint8)
    midline = body_midline(image.array, image.affine)
    lesions = measure_lesions(array, image.array, image.spacing, image.affine, midline_x=midline)
    edited = "The labels have been changed after the networks made them."
    return Findings(lesions, volumes_ml(array, image.spacing), [edited, *remarks])
