"""A KiTS folder into nnU-Net's raw format: Dataset220_KiTS, every case checked before it goes in."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from kits_cascade import labels as kits
from kits_cascade.data.source_case import case_facts, identity, label_voxels, place, read_case
from kits_cascade.data.source_dataset import ConvertOptions, SourceDataset, source_folder
from kits_cascade.errors import CaseError, DatasetError, UsageError
from kits_cascade.nnunet_folders import NnunetFolders
from kits_cascade.parallel import Outcome, Progress, run_cases
from kits_cascade.stages import SOURCE_ID
from kits_cascade.volumes.kits import KitsCase, find_kits_cases, kits19_test_cases
from kits_cascade.volumes.nifti import write_volume

_FATAL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


@dataclass
class ConvertReport:
    """What became of each case."""

    folder: Path
    converted: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)  # put in by an earlier run, and unchanged since
    unselected: dict[str, str] = field(default_factory=dict)  # sound, but outside the selection
    bad: dict[str, str] = field(default_factory=dict)
    links: dict[str, int] = field(
        default_factory=dict
    )  # how the images came in: hard link, symbolic link, copy, packed
    notes: list[str] = field(default_factory=list)
    total: int = 0  # cases in the dataset now

    @property
    def exit_code(self) -> int:
        """1 when a case had to be left out."""
        return 1 if self.bad else 0


@dataclass(frozen=True)
class _Task:
    case: KitsCase
    image: Path
    label: Path
    options: ConvertOptions
    copy: bool


@dataclass(frozen=True)
class _Done:
    """Facts of a case that is in, or the reason why the selection leaves it out."""

    facts: dict[str, Any] = field(default_factory=dict)
    unselected: str | None = None


def convert_dataset(
    source: Path,
    folders: NnunetFolders,
    *,
    dataset_id: int = SOURCE_ID,
    drop_cyst: bool = False,
    max_slices: int | None = None,
    hu_range: tuple[float, float] | None = None,
    limit: int | None = None,
    copy: bool = False,
    strict: bool = False,
    cases: list[str] | None = None,
    jobs: int | None = 1,
    progress: Progress | None = None,
) -> ConvertReport:
    """Put the cases of ``source`` into nnU-Net's raw folder as ``Dataset<dataset_id>_KiTS``.

    A case that is already there, made from the same files with the same options, is kept; other options on the same
    dataset are an error. A bad case is left out and reported, or, with ``strict``, raised. ``limit`` takes the first
    cases that are sound and selected.
    """
    options = ConvertOptions(drop_cyst, max_slices, hu_range)
    _check_numbers(options, limit)
    found = _chosen(find_kits_cases(source), cases)
    folder = source_folder(folders.raw, dataset_id)
    _check_apart(folder, found)
    dataset = SourceDataset(folder, source.resolve(), options)
    report = ConvertReport(dataset.folder)
    report.unselected.update(dict.fromkeys(sorted(kits19_test_cases(found)), "KiTS19 test case, no mask published"))
    todo = [case for case in found if case.name not in report.unselected]
    try:
        for batch in _batches(todo, report, limit):
            _run(dataset, batch, report, copy=copy, strict=strict, jobs=jobs, progress=progress)
        dataset.finish()
    except OSError as error:
        raise DatasetError(f"cannot write to {dataset.folder}: {error.strerror or error}") from error
    except BaseException:
        dataset.save()  # stopped, by --strict or by the user: what is in is remembered
        raise
    _conclude(dataset, report)
    return report


def _check_numbers(options: ConvertOptions, limit: int | None) -> None:
    for name, value in (("--limit", limit), ("--max-slices", options.max_slices)):
        if value is not None and value < 1:
            raise UsageError(f"{name} {value}: it must be at least 1")
    if options.hu_range is not None and options.hu_range[0] >= options.hu_range[1]:
        low, high = options.hu_range
        raise UsageError(f"--hu-range {low:g} {high:g}: the lower bound comes first, and is below the upper one")


def _chosen(found: list[KitsCase], names: list[str] | None) -> list[KitsCase]:
    if names is None:
        return found
    unknown = sorted(set(names) - {case.name for case in found})
    if unknown:
        raise UsageError(f"not in the source folder: {', '.join(unknown)}")
    return [case for case in found if case.name in set(names)]


def _check_apart(folder: Path, found: list[KitsCase]) -> None:
    """Nothing may be made from the dataset's own files: replacing them would be their end."""
    inside = folder.resolve()
    for case in found:
        for path in (case.image, case.segmentation):
            if path is not None and inside in path.resolve().parents:
                raise UsageError(f"{path} is a file of {folder}, which would be written; give the published cases")


def _batches(todo: list[KitsCase], report: ConvertReport, limit: int | None) -> Iterator[list[KitsCase]]:
    """All at once; with a limit as many as are still wanted, until there are enough: the first ones, by name."""
    begin = 0
    while begin < len(todo):
        wanted = len(todo) if limit is None else limit - len(report.converted) - len(report.kept)
        if wanted <= 0:
            return
        yield todo[begin : begin + wanted]
        begin += wanted


def _run(
    dataset: SourceDataset,
    batch: list[KitsCase],
    report: ConvertReport,
    *,
    copy: bool,
    strict: bool,
    jobs: int | None,
    progress: Progress | None,
) -> None:
    kept = [case.name for case in batch if dataset.is_done(case, copy=copy)]
    report.kept += kept
    items = [
        (case.name, _Task(case, dataset.image(case.name), dataset.label(case.name), dataset.options, copy))
        for case in batch
        if case.name not in set(kept)
    ]
    for outcome in run_cases(_put_in, items, jobs=jobs, progress=progress):
        _note(dataset, report, outcome)
        if strict and outcome.failure is not None:
            raise CaseError(outcome.name, outcome.failure)


def _note(dataset: SourceDataset, report: ConvertReport, outcome: Outcome[_Done]) -> None:
    """Into the record and the report."""
    done = outcome.result
    if done is None:
        stays = "; what an earlier run made of it stays in the dataset" if dataset.has(outcome.name) else ""
        report.bad[outcome.name] = f"{outcome.failure}{stays}"
        return
    if done.unselected is not None:
        dataset.remove(outcome.name)
        report.unselected[outcome.name] = done.unselected
        return
    dataset.add(outcome.name, done.facts)
    report.converted.append(outcome.name)
    how = done.facts["image"]
    report.links[how] = report.links.get(how, 0) + 1


def _put_in(task: _Task) -> _Done:
    """Check a case, and put it in. Runs in a worker process."""
    case, options = task.case, task.options
    try:
        image, label = read_case(case)
        facts = case_facts(case.name, image, label)
        reason = _outside(options, facts)
        if reason is not None or case.image is None or case.segmentation is None:
            return _Done(unselected=reason)
        how = place(case.image, task.image, copy=task.copy)
        if options.drop_cyst and facts["label_voxels"][str(kits.CYST)]:
            label.array[label.array == kits.CYST] = kits.KIDNEY
            write_volume(task.label, label)
            facts["label_voxels"] = label_voxels(label)
        else:
            place(case.segmentation, task.label, copy=task.copy)
    except OSError as error:
        if error.errno in _FATAL:
            raise  # no fault of this case: the whole run ends
        raise CaseError(case.name, f"{error.strerror or error} ({error.filename or case.image})") from error
    return _Done({**facts, "image": how, "source": identity(case)})


def _outside(options: ConvertOptions, facts: dict[str, Any]) -> str | None:
    """Why the selection leaves a case out."""
    slices, (low, high) = facts["shape"][0], facts["hu"]
    if options.max_slices is not None and slices > options.max_slices:
        return f"{slices} slices, more than {options.max_slices}"
    if options.hu_range is not None and not options.hu_range[0] <= low <= high <= options.hu_range[1]:
        return f"HU {low:g} to {high:g}, outside {options.hu_range[0]:g} to {options.hu_range[1]:g}"
    return None


def _conclude(dataset: SourceDataset, report: ConvertReport) -> None:
    """What the user should know of the whole."""
    report.converted.sort()
    report.bad, report.unselected = dict(sorted(report.bad.items())), dict(sorted(report.unselected.items()))
    report.total = len(dataset.record)
    earlier = len(dataset.record.keys() - {*report.converted, *report.kept, *report.bad})
    if earlier:
        report.notes.append(f"{earlier} further cases, put in by earlier runs, stay in the dataset")
    if not dataset.record:
        raise DatasetError(_nothing(report))
    cysts = sum(facts["label_voxels"][str(kits.CYST)] for facts in dataset.record.values())
    if not cysts and not dataset.options.drop_cyst:
        report.notes.append(
            "no case has a cyst label (KiTS19 counts cysts as kidney): with --drop-cyst, dataset.json says so too"
        )


def _nothing(report: ConvertReport) -> str:
    reasons = {**report.bad, **report.unselected}
    listed = "".join(f"\n  {name}: {reason}" for name, reason in list(reasons.items())[:10])
    more = f"\n  and {len(reasons) - 10} more" if len(reasons) > 10 else ""
    return f"none of {len(reasons)} cases could be used:{listed}{more}"
