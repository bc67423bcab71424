"""Dataset 220 into the stage datasets: 221 whole scans, 222 the ROI, 223 the ROI with the kidney mask.

Resumable: a case counts as done when it stands in its dataset's roi.json with the marks of the same source files, and
it is put there after its files. Killed at any moment and started again, the result is that of an undisturbed run.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from kits_cascade.data.datasets import (
    ROI_FILE,
    SPLITS_FILE,
    RawDataset,
    StageSelection,
    check_id,
    find_predictions,
    open_dataset,
    select_stages,
)
from kits_cascade.data.derive_case import JITTER_MM, CaseTask, DeriveOptions, case_files, derive_case
from kits_cascade.data.splits import CaseTraits, out_of_fold, read_splits, share_splits
from kits_cascade.errors import DatasetError, UsageError
from kits_cascade.files import read_json, sweep_temporary, write_json
from kits_cascade.nnunet_folders import NnunetFolders
from kits_cascade.parallel import Progress, run_cases
from kits_cascade.stages import READER, ROI_MARGIN_MM, SOURCE_ID, STAGES, Stage
from kits_cascade.volumes.kits import contrast_phase

_FORMAT: Final = 1
_REMEDY_SOURCE: Final = "make it with: kits-cascade convert DIR"
_MASSES: Final = STAGES[-1].key

Records = dict[str, dict[str, Any]]  # case -> its entry in roi.json


@dataclass
class DeriveReport:
    """What a run did."""

    stages: tuple[Stage, ...]
    folders: dict[str, Path]
    derived: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)  # case -> reason; left out of all stages of this run
    notes: list[str] = field(default_factory=list)
    splits: Path | None = None


@dataclass
class _Target:
    """A stage's raw folder while it is being filled."""

    stage: Stage
    folder: Path
    options: dict[str, Any]
    records: Records

    def write(self) -> None:
        cases = {name: self.records[name] for name in sorted(self.records)}
        write_json(self.folder / ROI_FILE, {"format": _FORMAT, "options": self.options, "cases": cases})


def derive_stages(
    folders: NnunetFolders,
    *,
    source_id: int = SOURCE_ID,
    stages: StageSelection | None = None,
    margin_mm: float = ROI_MARGIN_MM,
    coarse_predictions: Path | None = None,
    kidney_predictions: Path | None = None,
    jobs: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> DeriveReport:
    """Make the datasets of the chosen stages from the source dataset; cases that are done already stay as they are.

    ``coarse_predictions`` and ``kidney_predictions`` are folders with one prediction for each case, or folders of a
    trained model, whose out-of-fold predictions (fold_X/validation) are then taken. Without them the ROI comes from the
    labels, with a seeded jitter, and so does the kidney channel. With other options than those of the files that are
    there, this raises and changes nothing, unless ``overwrite`` says to derive them anew.
    """
    if not 0 <= margin_mm < 1000:
        raise UsageError(f"the margin is {margin_mm} mm; it must be at least 0 (and is 20 by default)")
    chosen = select_stages(stages)
    for stage in chosen:
        check_id(folders, stage)
    source = open_dataset(folders.raw, source_id, _REMEDY_SOURCE)
    cases = source.cases()
    if not cases:
        raise DatasetError(f"{source.folder} has no training cases in imagesTr; {_REMEDY_SOURCE}")
    options = DeriveOptions(margin_mm, JITTER_MM, seed, coarse_predictions is not None, kidney_predictions is not None)
    splits = read_splits(source.folder / SPLITS_FILE)
    fold_of = None if splits is None else out_of_fold(splits)
    with_kidney = any(stage.key == _MASSES for stage in chosen)
    coarse = find_predictions(coarse_predictions, cases, source.ending, fold_of) if _any_cropped(chosen) else {}
    kidney = find_predictions(kidney_predictions, cases, source.ending, fold_of) if with_kidney else {}
    targets = {stage.key: _open_target(folders, stage, options.to_json(stage.key), overwrite) for stage in chosen}

    report = DeriveReport(chosen, {key: target.folder for key, target in targets.items()})
    tasks = [_task(source, case, coarse, kidney, targets, options) for case in cases]
    open_tasks = [task for task in tasks if task.targets]
    report.unchanged = [task.name for task in tasks if not task.targets]
    _drop_strangers(targets.values(), cases, source.ending)
    try:
        _work(open_tasks, targets, report, jobs, progress)
    finally:
        _sweep(targets.values())
    _finish(folders, source, targets, report, seed)
    return report


def _any_cropped(stages: Iterable[Stage]) -> bool:
    return any(stage.cropped for stage in stages)


def read_records(folder: Path) -> tuple[dict[str, Any], Records]:
    """Options and cases of a stage's roi.json."""
    path = folder / ROI_FILE
    try:
        content = read_json(path)
        if content["format"] != _FORMAT:
            raise DatasetError(f"{path} was written by another version of kits-cascade; derive again with --overwrite")
        return dict(content["options"]), dict(content["cases"])
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{path} cannot be read ({error}); derive again with --overwrite") from error


def _open_target(folders: NnunetFolders, stage: Stage, options: dict[str, Any], overwrite: bool) -> _Target:
    folder = folders.raw / stage.dataset
    records: Records = {}
    if (folder / ROI_FILE).is_file():
        try:
            before, records = read_records(folder)
            _check_options(folder, before, options)
        except DatasetError:
            if not overwrite:
                raise
            records = {}
            _clear(folder)
    target = _Target(stage, folder, options, records)
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    target.write()
    return target


def _clear(folder: Path) -> None:
    """Remove what was derived; roi.json, the sign that it is ours, goes last."""
    for part in ("imagesTr", "labelsTr"):
        if (folder / part).exists():
            shutil.rmtree(folder / part)
    (folder / "dataset.json").unlink(missing_ok=True)
    (folder / ROI_FILE).unlink()


def _check_options(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if changed:
        told = "; ".join(f"{key}: {before.get(key)} there, {now.get(key)} now" for key in changed)
        raise DatasetError(
            f"{folder} was derived with other options ({told}); nothing was changed. Use the same options to go on, or "
            "--overwrite to derive this dataset anew (then plan and train it again)"
        )


def _task(
    source: RawDataset,
    case: str,
    coarse: dict[str, Path],
    kidney: dict[str, Path],
    targets: dict[str, _Target],
    options: DeriveOptions,
) -> CaseTask:
    """What is still to be done for a case."""
    everything = CaseTask(
        case,
        source.image(case),
        source.label(case),
        coarse.get(case),
        kidney.get(case),
        {key: target.folder for key, target in targets.items()},
        source.ending,
        options,
    )
    if not everything.label.is_file():
        return everything  # the worker finds out, and says so
    left = {key: folder for key, folder in everything.targets.items() if not _done(everything, targets[key])}
    return CaseTask(**{**vars(everything), "targets": left})


def _done(task: CaseTask, target: _Target) -> bool:
    record = target.records.get(task.name)
    return (
        record is not None
        and all(path.exists() for path in task.files(target.stage.key))
        and record["source"] == task.signature(target.stage.key)
    )


def _drop_strangers(targets: Iterable[_Target], cases: Iterable[str], ending: str) -> None:
    """Remove what an earlier run derived from cases that the source no longer has."""
    for target in targets:
        for case in set(target.records) - set(cases):
            _remove(target, case, ending)
        target.write()


def _remove(target: _Target, case: str, ending: str) -> None:
    target.records.pop(case, None)
    for path in case_files(target.folder, target.stage.key, case, ending):
        path.unlink(missing_ok=True)


def _work(
    tasks: list[CaseTask],
    targets: dict[str, _Target],
    report: DeriveReport,
    jobs: int | None,
    progress: Progress | None,
) -> None:
    by_name = {task.name: task for task in tasks}
    # Large scans first: the last worker then never starts a long case while the others are idle.
    order = sorted(tasks, key=lambda task: (-_size(task.image), task.name))
    for outcome in run_cases(derive_case, [(task.name, task) for task in order], jobs=jobs, progress=progress):
        task = by_name[outcome.name]
        if outcome.result is None:
            report.failed[outcome.name] = outcome.failure or "unknown reason"
            for target in targets.values():
                _remove(target, outcome.name, task.ending)
            continue
        report.derived.append(outcome.name)
        for key, record in outcome.result.items():
            targets[key].records[outcome.name] = record
            targets[key].write()
            _note(report, outcome.name, record)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _note(report: DeriveReport, case: str, record: dict[str, Any]) -> None:
    notes = []
    if record.get("label_voxels_outside"):
        notes.append(f"{case}: {record['label_voxels_outside']} labelled voxels lie outside the predicted ROI")
    if "empty" in record.get("box_from", ""):
        notes.append(f"{case}: the coarse prediction is empty; the ROI comes from the labels")
    report.notes.extend(note for note in notes if note not in report.notes)


def _sweep(targets: Iterable[_Target]) -> None:
    """Remove what killed runs left behind."""
    for target in targets:
        for folder in (target.folder, target.folder / "imagesTr", target.folder / "labelsTr"):
            sweep_temporary(folder)


def _finish(
    folders: NnunetFolders, source: RawDataset, targets: dict[str, _Target], report: DeriveReport, seed: int
) -> None:
    """dataset.json and the splits: what makes the folders datasets, once all cases are there."""
    if report.failed and not any(target.records for target in targets.values()):
        first = next(iter(report.failed.items()))
        raise DatasetError(f"none of {len(report.failed)} cases could be derived; the first, {first[0]}: {first[1]}")
    for target in targets.values():
        write_json(target.folder / "dataset.json", _dataset_json(target, source.ending))
    report.splits, note = share_splits(folders, source, report.stages, _traits(targets.values()), seed)
    report.notes.extend(note)


def _dataset_json(target: _Target, ending: str) -> dict[str, Any]:
    stage = target.stage
    content = {"channel_names": stage.channels, "labels": stage.labels}
    if stage.regions_class_order is not None:
        content["regions_class_order"] = list(stage.regions_class_order)  # type: ignore[assignment]
    return {
        **content,
        "numTraining": len(target.records),
        "file_ending": ending,
        "overwrite_image_reader_writer": READER,
        "name": stage.dataset,
        "description": f"KiTS: {stage.title}",
        "converted_by": "kits-cascade derive-stages",
    }


def _traits(targets: Iterable[_Target]) -> dict[str, CaseTraits]:
    return {
        name: CaseTraits(contrast_phase(name) or "unknown", record["tumor_mm3"] + record["cyst_mm3"])
        for target in targets
        for name, record in target.records.items()
    }
