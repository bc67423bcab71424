"""Systems side by side: each is planned, trained, run and scored on the same folds; one table and one page come out.

Each step is a command that one could type. What is done is kept: every command goes on where it was, and those that
ended well are not run again. A system that fails does not stop the others, and stands in the table with its reason.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from kits_cascade.data.datasets import SPLITS_FILE, RawDataset, open_dataset
from kits_cascade.data.presets import load_preset, preset_path
from kits_cascade.data.splits import Splits, read_splits, split_source
from kits_cascade.errors import KitsCascadeError, UsageError
from kits_cascade.evaluation.score import FULL_JSON, ScoreTable
from kits_cascade.files import digest, link_or_copy, read_json, write_json
from kits_cascade.nnunet_folders import VARIABLES, NnunetFolders
from kits_cascade.recipes.budget import Budget
from kits_cascade.recipes.steps import Step, find_program
from kits_cascade.report.comparison import Costs, SystemResult, write_comparison
from kits_cascade.systems import System

# nnU-Net's own trainer reads no options: where a budget must count, ours with the same loss takes its place.
_WITH_OPTIONS: Final = {"nnUNetTrainer": "KitsTrainer"}
_MEGA: Final = 1 << 20
Say = Callable[[str], None]


@dataclass(frozen=True)
class Usage:
    """What a command took."""

    code: int
    seconds: float = 0.0
    processor_s: float = 0.0
    peak_mb: float = 0.0


Measure = Callable[[Sequence[str], Mapping[str, str]], Usage]


def run_measured(argv: Sequence[str], environment: Mapping[str, str]) -> Usage:
    """Run a command with its output on the terminal; what it and its processes took."""
    program, *arguments = argv
    begin = time.monotonic()
    process = subprocess.Popen([*find_program(program), *arguments], env={**os.environ, **environment})
    try:
        if not hasattr(os, "wait4"):  # Windows
            return Usage(process.wait(), time.monotonic() - begin)
        _, status, used = os.wait4(process.pid, 0)
    except BaseException:
        process.wait()  # Ctrl-C reaches it too, and it ends tidily
        raise
    process.returncode = os.waitstatus_to_exitcode(status)
    peak = used.ru_maxrss * (1 if os.uname().sysname == "Darwin" else 1024)
    return Usage(process.returncode, time.monotonic() - begin, used.ru_utime + used.ru_stime, peak / _MEGA)


@dataclass(frozen=True)
class Comparison:
    """What is compared, and where everything lies."""

    folders: NnunetFolders
    out: Path
    systems: tuple[System, ...]
    folds: tuple[int, ...]
    budget: Budget
    source_id: int
    device: str
    tta: bool = True
    pictures: bool = True

    @property
    def raw(self) -> RawDataset:
        """The source dataset."""
        return open_dataset(self.folders.raw, self.source_id, "make it with: kits-cascade convert DIR")

    def images(self, fold: int) -> Path:
        """Scans that a fold's networks have not seen."""
        return self.out / "folds" / str(fold) / "images"

    def truth(self, fold: int) -> Path:
        """Their labels."""
        return self.out / "folds" / str(fold) / "labels"

    def scores(self, system: System, fold: int) -> Path:
        """Tables of one fold."""
        return self.out / system.name / f"scores_{fold}"

    def predictions(self, system: System, fold: int) -> Path:
        """Label maps of one fold."""
        return self.out / system.name / f"predictions_{fold}"

    def preset(self, system: System) -> str:
        """The row's preset, or the overlay with the budget in it."""
        return system.preset if self.budget.is_published else str(self.out / system.name / "preset.json")

    def plans_name(self, system: System) -> str:
        """The plans' name of the networks of this comparison."""
        return load_preset(system.preset).plans_name + self.budget.suffix

    def trainers(self, system: System) -> dict[str, str]:
        """Trainer by stage."""
        if self.budget.is_published:
            return {stage.key: stage.trainer for stage in system.stages}
        return {stage.key: _WITH_OPTIONS.get(stage.trainer, stage.trainer) for stage in system.stages}

    def networks(self, system: System) -> dict[str, str]:
        """nnU-Net's name of each stage's network."""
        plans, trainers = self.plans_name(system), self.trainers(system)
        return {stage.key: f"{trainers[stage.key]}__{plans}__{stage.configuration}" for stage in system.stages}

    def model(self, system: System, key: str) -> Path:
        """nnU-Net's folder of a stage's network."""
        stage = next(stage for stage in system.stages if stage.key == key)
        number = self.source_id if system.is_single else stage.dataset_id
        return self.folders.results / replace(stage, dataset_id=number).dataset / self.networks(system)[key]


def system_steps(plan: Comparison, system: System) -> list[Step]:
    """The commands of one system."""
    folds = ",".join(map(str, plan.folds))
    argv = ["kits-cascade", "train", "--system", system.name, "--preset", plan.preset(system), "--folds", folds]
    argv += ["-d", str(plan.source_id), "--device", plan.device]
    for stage in system.stages:
        if plan.trainers(system)[stage.key] != stage.trainer:
            argv += ["--trainer", f"{stage.key}={plan.trainers(system)[stage.key]}"]
    steps = [Step(f"{system.name}: plan and train", tuple(argv))]
    for fold in plan.folds:
        steps += [_predict(plan, system, fold), _evaluate(plan, system, fold)]
    return steps


def _predict(plan: Comparison, system: System, fold: int) -> Step:
    argv = ["kits-cascade", "predict", "-i", str(plan.images(fold)), "-o", str(plan.predictions(system, fold))]
    argv += ["--system", system.name, "-f", str(fold), "--device", plan.device]
    for key, name in plan.networks(system).items():
        argv += ["--model", f"{key}={name}"]
    return Step(f"{system.name}: predict fold {fold}", (*argv, *(() if plan.tta else ("--no-tta",))))


def _evaluate(plan: Comparison, system: System, fold: int) -> Step:
    argv = ["kits-cascade", "evaluate", "-p", str(plan.predictions(system, fold)), "-g", str(plan.truth(fold))]
    return Step(f"{system.name}: score fold {fold}", (*argv, "-o", str(plan.scores(system, fold))))


@dataclass
class CompareReport:
    """What a run did; in a dry run, what it would do."""

    steps: list[Step] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    page: Path | None = None


def compare(
    plan: Comparison, *, dry_run: bool = False, run: Measure = run_measured, say: Say = lambda _: None
) -> CompareReport:
    """Walk all systems, then write comparison.csv, comparison.json and comparison.html into the output folder."""
    _check(plan)
    report = CompareReport()
    if dry_run:
        report.steps = [step for system in plan.systems for step in system_steps(plan, system)]
        return report
    _lay_out(plan)
    for number, system in enumerate(plan.systems, 1):
        reason = _walk(plan, system, report, run, _numbered(say, f"[{number}/{len(plan.systems)}]"))
        if reason:
            report.failed[system.name] = reason
    results = [_result(plan, system, report.failed.get(system.name, "")) for system in plan.systems]
    truths = {case: plan.truth(fold) / f"{case}{plan.raw.ending}" for fold, case in _held_out(plan)}
    images = {case: plan.images(fold) / f"{case}_0000{plan.raw.ending}" for fold, case in _held_out(plan)}
    report.page = write_comparison(results, plan.out, truths, images if plan.pictures else {}, plan.budget.text)
    return report


def _numbered(say: Say, prefix: str) -> Say:
    return lambda text: say(f"{prefix} {text}")


def _check(plan: Comparison) -> None:
    names = [system.name for system in plan.systems]
    if not names or len(set(names)) < len(names):
        raise UsageError(f"give each system once, and at least one; got {', '.join(names) or 'none'}")
    if plan.source_id < 1 or not plan.folds:
        raise UsageError("give at least one fold")
    _ = plan.raw  # whether it is there


def _splits(plan: Comparison) -> Splits:
    split_source(plan.folders, plan.raw)
    return read_splits(plan.raw.folder / SPLITS_FILE) or []


def _held_out(plan: Comparison) -> list[tuple[int, str]]:
    splits = _splits(plan)
    return [(fold, case) for fold in plan.folds for case in splits[fold]["val"]]


def _lay_out(plan: Comparison) -> None:
    """The scans and labels of each fold as folders, and the presets with the budget in them."""
    raw = plan.raw
    for fold, case in _held_out(plan):
        image, label = raw.image(case, 0), raw.label(case)
        for source, target in ((image, plan.images(fold) / image.name), (label, plan.truth(fold) / label.name)):
            if not target.is_file():
                link_or_copy(source, target)
    for system in () if plan.budget.is_published else plan.systems:
        content = read_json(preset_path(system.preset))
        content["plans_name"] = plan.plans_name(system)
        content["training"] = {**content.get("training", {}), **plan.budget.options(len(system.stages))}
        write_json(plan.out / system.name / "preset.json", content)


def _walk(plan: Comparison, system: System, report: CompareReport, run: Measure, say: Say) -> str:
    """Run the steps that are left; why the system failed, or nothing."""
    folders = plan.folders
    variables = dict(zip(VARIABLES, map(str, (folders.raw, folders.preprocessed, folders.results)), strict=True))
    for step in system_steps(plan, system):
        if _recorded(plan, system, step) is not None:
            say(f"{step.title}: done before")
            continue
        say(step.title)
        report.steps.append(step)
        try:
            used = run(step.argv, variables)
        except KitsCascadeError as error:
            return f"{step.title}: {error}"
        if used.code:
            say(f"{step.title}: failed with exit code {used.code}")
            return f"{step.title}: ended with exit code {used.code} ({step.shown()})"
        write_json(_record(plan, system, step), {"title": step.title, "command": step.shown(), **asdict(used)})
    return ""


def _record(plan: Comparison, system: System, step: Step) -> Path:
    return plan.out / system.name / "steps" / f"{digest(step.argv)}.json"


def _recorded(plan: Comparison, system: System, step: Step) -> dict[str, Any] | None:
    path = _record(plan, system, step)
    return read_json(path) if path.is_file() else None


# --- what came out


def _result(plan: Comparison, system: System, failure: str) -> SystemResult:
    tables = [] if failure else [ScoreTable.read(plan.scores(system, fold) / FULL_JSON) for fold in plan.folds]
    cases = tuple(sorted((case for table in tables for case in table.cases), key=lambda case: case.case))
    predictions = {
        case.case: plan.predictions(system, fold) / f"{case.case}{plan.raw.ending}"
        for fold, table in zip(plan.folds, tables, strict=False)
        for case in table.cases
    }
    curves = {
        f"{stage.key}, fold {fold}" if len(system.stages) > 1 else f"fold {fold}": curve
        for stage in system.stages
        for fold in plan.folds
        if (curve := _curve(plan.model(system, stage.key) / f"fold_{fold}" / "training_progress.json"))
    }
    table = ScoreTable(cases) if cases else None
    return SystemResult(
        system.name, system.title, failure, table, _costs(plan, system, len(cases)), curves, predictions
    )


def _curve(path: Path) -> list[float]:
    if not path.is_file():
        return []
    return [epoch["ema_pseudo_dice"] or 0.0 for epoch in read_json(path)["epochs"]]


def _costs(plan: Comparison, system: System, cases: int) -> Costs:
    known = [(step, _recorded(plan, system, step)) for step in system_steps(plan, system)]
    trained = [record for step, record in known if record and step.argv[1] == "train"]
    predicted = [record for step, record in known if record and step.argv[1] == "predict"]
    return Costs(
        parameters=_parameters(plan, system),
        training_h=_total(trained, "seconds") / 3600,
        training_processor_h=_total(trained, "processor_s") / 3600,
        predict_s=_total(predicted, "seconds") / cases if cases else None,
        peak_mb=max((record["peak_mb"] for record in predicted), default=None),
    )


def _total(records: Iterable[Mapping[str, Any]], key: str) -> float:
    return float(sum(record[key] for record in records))


def _parameters(plan: Comparison, system: System) -> int | None:
    """Of all networks of a system, as their plans name them; None where one is not there."""
    total = 0
    for stage in system.stages:
        folder = plan.model(system, stage.key)
        if not (folder / "plans.json").is_file() or not (folder / "dataset.json").is_file():
            return None
        total += count_parameters(folder, stage.configuration)
    return total


def count_parameters(model: Path, configuration: str) -> int:
    """Build the network of a trained model's folder without memory, and count."""
    import torch

    from kits_cascade.training.pretrained import planned_network

    with torch.device("meta"):
        network = planned_network(model / "plans.json", configuration, seed=0)
    return sum(parameter.numel() for parameter in network.parameters())
