"""Fingerprint, plans and preprocessing of the stages by nnU-Net's own code, in one step that can be interrupted."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from kits_cascade.data.datasets import SPLITS_FILE, RawDataset, StageSelection, check_id, open_dataset, select_stages
from kits_cascade.data.derive_case import file_signature
from kits_cascade.data.presets import Preset, apply_preset, load_preset
from kits_cascade.data.splits import split_source
from kits_cascade.errors import DatasetError
from kits_cascade.files import digest, link_or_copy, locked, read_json, sweep_temporary, write_json
from kits_cascade.nnunet_folders import NnunetFolders
from kits_cascade.parallel import Outcome, Progress, run_cases
from kits_cascade.stages import FINE_SPACING_MM, SOURCE_STAGE, STAGES, Stage

_STATE_FILE: Final = "kits_cascade_plan.json"
_LOCK_FILE: Final = ".kits_cascade_plan.lock"
_SMALL_BYTES: Final = 64 << 20  # less work than starting processes, each of which imports torch
_REMEDY: Final = "make it with: kits-cascade derive-stages (dataset 220: kits-cascade convert DIR)"

StageProgress = Callable[[str, int, int, str], None]  # what is being done, finished, total, case
# Raises where a configuration's network cannot be built; the second argument says where it stands.
NetworkCheck = Callable[[Mapping[str, Any], str], None]


@dataclass
class PlanReport:
    """What a run did for each stage."""

    plans: dict[str, Path] = field(default_factory=dict)
    preprocessed: dict[str, int] = field(default_factory=dict)  # cases done in this run
    unchanged: dict[str, int] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)  # what can be run next
    notes: list[str] = field(default_factory=list)


@dataclass
class _Work:
    """A stage that is being planned."""

    stage: Stage
    raw: RawDataset
    folder: Path  # in nnUNet_preprocessed
    signatures: dict[str, str]  # case -> mark of its files
    state: dict[str, Any]
    preset: Preset
    jobs: int | None
    progress: StageProgress | None

    @property
    def plans_file(self) -> Path:
        return self.folder / f"{self.preset.plans_name}.json"

    def save(self) -> None:
        write_json(self.folder / _STATE_FILE, self.state)

    def telling(self, what: str) -> Progress | None:
        tell = self.progress
        return (
            None if tell is None else lambda done, total, case: tell(f"{self.stage.dataset}: {what}", done, total, case)
        )


def plan_stages(
    folders: NnunetFolders,
    *,
    preset: str = "default",
    gpu_memory_gb: int | None = None,
    stages: StageSelection | None = None,
    known: Sequence[Stage] = STAGES,
    jobs: int | None = None,
    verify: bool = True,
    preprocess: bool = True,
    progress: StageProgress | None = None,
    check: NetworkCheck | None = None,
) -> PlanReport:
    """Plan and preprocess the stages, so that ``nnUNetv2_train`` can be run. What is done and unchanged is kept.

    ``known`` are the stages of the system (the cascade's by default), of which ``stages`` chooses. ``check`` sees the
    configurations of the preset before anything is written; see ``training.architecture``.
    """
    chosen = select_stages(stages, known)
    loaded = load_preset(preset, gpu_memory_gb)
    for stage in chosen:
        check_id(folders, stage)
    raws = {stage.key: open_dataset(folders.raw, stage.dataset_id, _REMEDY) for stage in chosen}
    if SOURCE_STAGE.key in raws:
        split_source(folders, raws[SOURCE_STAGE.key])
    folders.export()
    report = PlanReport()
    for stage in chosen:
        folder = folders.preprocessed / stage.dataset
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / _LOCK_FILE):  # several systems may be planned on one dataset at once
            work = _open(folder, stage, raws[stage.key], loaded, jobs, progress)
            _fingerprint(work, verify)
            _plan(work, folders, report, check)
            report.plans[stage.key] = work.plans_file
            if preprocess:
                _preprocess(work, report)
        report.commands.append(_command(stage, loaded))
    return report


def _open(
    folder: Path,
    stage: Stage,
    raw: RawDataset,
    preset: Preset,
    jobs: int | None,
    progress: StageProgress | None,
) -> _Work:
    sweep_temporary(folder)
    cases = raw.cases()
    if not cases:
        raise DatasetError(f"{raw.folder} has no training cases; {_REMEDY}")
    missing = [case for case in cases if not all(path.exists() for path in _paths(raw, case))]
    if missing or raw.content.get("numTraining") != len(cases):
        told = f"files of {', '.join(missing[:5])} are missing" if missing else "numTraining is not the number of cases"
        raise DatasetError(f"{raw.folder} is not complete ({told}); run derive-stages again to finish it")
    signatures = {case: digest([file_signature(path) for path in _paths(raw, case)]) for case in cases}
    path = folder / _STATE_FILE
    state: dict[str, Any] = {}
    with contextlib.suppress(ValueError):
        state = read_json(path) if path.is_file() else {}
    if jobs is None and sum(path.stat().st_size for case in cases for path in _paths(raw, case)) < _SMALL_BYTES:
        jobs = 1
    return _Work(stage, raw, folder, signatures, state, preset, jobs, progress)


def _paths(raw: RawDataset, case: str) -> list[Path]:
    return [*(raw.image(case, channel) for channel in range(raw.channels)), raw.label(case)]


def _case_files(raw: RawDataset, case: str) -> Any:
    from kits_cascade.data.lean import CaseFiles

    *images, label = map(str, _paths(raw, case))
    return CaseFiles(case, tuple(images), label)


def _fingerprint(work: _Work, verify: bool) -> None:
    """nnU-Net's fingerprint of the data, after its integrity checks. Kept while no file changes."""
    from kits_cascade.data.lean import ExamineTask, examine_case, fingerprint, samples_per_case

    path = work.folder / "dataset_fingerprint.json"
    mark = digest([work.raw.content, work.signatures])
    if path.is_file() and work.state.get("data") == mark and (work.state.get("verified") or not verify):
        return
    cases = list(work.signatures)
    samples = samples_per_case(len(cases))
    tasks = [
        (c, ExamineTask(_case_files(work.raw, c), work.raw.channels, _labels(work.raw), samples, verify)) for c in cases
    ]
    outcomes = _all_good(work, list(run_cases(examine_case, tasks, jobs=work.jobs, progress=work.telling("check"))))
    content = fingerprint([outcomes[case] for case in cases])
    write_json(path, _plain(content))
    work.state |= {"data": mark, "verified": verify}
    work.save()


def _labels(raw: RawDataset) -> tuple[int, ...]:
    values = {0}
    for value in raw.content["labels"].values():
        values |= set(value) if isinstance(value, list) else {value}
    return tuple(sorted(values))


def _all_good(work: _Work, outcomes: list[Outcome[Any]]) -> dict[str, Any]:
    bad = sorted((outcome.name, outcome.failure) for outcome in outcomes if outcome.failure is not None)
    if bad:
        told = "; ".join(f"{name}: {reason}" for name, reason in bad[:5])
        raise DatasetError(f"{work.raw.folder}: {len(bad)} of {len(outcomes)} cases cannot be used: {told}")
    return {outcome.name: outcome.result for outcome in outcomes}


def _plain(content: Any) -> Any:
    """numpy's numbers and arrays as JSON's."""
    if isinstance(content, dict):
        return {str(key): _plain(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_plain(value) for value in content]
    return content.item() if hasattr(content, "item") else content


def _plan(work: _Work, folders: NnunetFolders, report: PlanReport, check: NetworkCheck | None) -> None:
    """nnU-Net's planner, and the preset laid over its plans."""
    basis = [work.state["data"], work.preset.planner, work.preset.gpu_memory_gb, dict(work.preset.stages)]
    added = [work.preset.training, work.preset.intensities]
    mark = digest([*basis, *(dict(values) for values in added if values is not None)])
    plans_marks = work.state.setdefault("plans", {})
    if plans_marks.get(work.preset.plans_name) == mark and work.plans_file.is_file():
        return
    if any(folders.results.glob(f"{work.stage.dataset}/*__{work.preset.plans_name}__*/fold_*")):
        report.notes.append(f"{work.stage.dataset}: the plans are new; models trained with the old ones keep their own")
    plans = apply_preset(_planned(work), work.preset, work.stage.key)
    for name in work.preset.stages.get(work.stage.key, {}):
        if check is not None:
            check(plans["configurations"][name], f"preset {work.preset.name}, stage {work.stage.key}, {name}")
    write_json(work.plans_file, _plain(plans))
    plans_marks[work.preset.plans_name] = mark
    work.save()


def _planned(work: _Work) -> dict[str, Any]:
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
    from nnunetv2.experiment_planning.experiment_planners.residual_unets import residual_encoder_unet_planners as resenc

    planner = getattr(resenc, work.preset.planner, ExperimentPlanner)
    shared = work.raw.folder / SPLITS_FILE
    if shared.is_file():
        # nnU-Net copies this file where there is none, and ends when there is another: ours is the one that counts.
        write_json(work.folder / SPLITS_FILE, read_json(shared))
    with contextlib.redirect_stdout(io.StringIO()):
        made: dict[str, Any] = planner(
            work.raw.name,
            gpu_memory_target_in_gb=work.preset.gpu_memory_gb,
            plans_name=work.preset.plans_name,
            # Of the source dataset nnU-Net plans what it would without us.
            overwrite_target_spacing=None if work.stage.key == SOURCE_STAGE.key else [FINE_SPACING_MM] * 3,
            suppress_transpose=True,  # presets speak of z, y, x
        ).plan_experiment()
    return made


def _preprocess(work: _Work, report: PlanReport) -> None:
    """All cases that are not there yet, or whose files or plans have changed."""
    from kits_cascade.data.lean import PreprocessTask, case_outputs, preprocess_case

    plans = read_json(work.plans_file)
    configuration = plans["configurations"][work.stage.configuration]
    target = work.folder / configuration["data_identifier"]
    target.mkdir(exist_ok=True)
    strays = work.folder / f".work-{configuration['data_identifier']}"
    shutil.rmtree(strays, ignore_errors=True)
    done: dict[str, str] = work.state.setdefault("preprocessed", {}).setdefault(target.name, {})
    rule = _rule(plans, configuration)
    marks = {case: digest([rule, signature]) for case, signature in work.signatures.items()}
    for name in {path.name[:-4] for path in target.glob("*.pkl")} - set(marks):
        for file in case_outputs(target, name):
            file.unlink(missing_ok=True)
    wanted = [
        case
        for case, mark in marks.items()
        if done.get(case) != mark or not all(file.is_file() for file in case_outputs(target, case))
    ]
    tasks = [
        (c, PreprocessTask(_case_files(work.raw, c), plans, work.raw.content, work.stage.configuration, strays, target))
        for c in wanted
    ]
    failed = []
    for outcome in run_cases(preprocess_case, tasks, jobs=work.jobs, progress=work.telling("preprocess")):
        if outcome.failure is not None:
            failed.append(outcome)
            continue
        done[outcome.name] = marks[outcome.name]
        work.save()
    shutil.rmtree(strays, ignore_errors=True)
    _all_good(work, failed)
    for case in marks:
        _ground_truth(work, case)
    report.preprocessed[work.stage.key] = len(wanted)
    report.unchanged[work.stage.key] = len(marks) - len(wanted)


def _rule(plans: dict[str, Any], configuration: dict[str, Any]) -> dict[str, Any]:
    """The part of the plans that the preprocessed data depend on."""
    keys = ["spacing", "normalization_schemes", "use_mask_for_norm"]
    keys += (key for key in configuration if key.startswith(("resampling_fn_data", "resampling_fn_seg")))
    own = {key: configuration[key] for key in keys}
    return own | {key: plans[key] for key in ("transpose_forward", "foreground_intensity_properties_per_channel")}


def _ground_truth(work: _Work, case: str) -> None:
    """nnU-Net's validation reads the labels from here."""
    source, target = work.raw.label(case), work.folder / "gt_segmentations" / work.raw.label(case).name
    if not target.is_file() or file_signature(target) != file_signature(source):
        link_or_copy(source, target)


def _command(stage: Stage, preset: Preset) -> str:
    trainer = "" if stage.trainer == "nnUNetTrainer" else f" -tr {stage.trainer}"
    plans = "" if preset.plans_name == "nnUNetPlans" else f" -p {preset.plans_name}"
    return f"nnUNetv2_train {stage.dataset_id} {stage.configuration} 0{trainer}{plans}"
