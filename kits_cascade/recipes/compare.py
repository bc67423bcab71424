"""Systems side by side: each is planned, trained, run and scored on the same folds; one table and one page come out.

Each step is a command that one could type. What is done is kept: every command goes on where it was, and those that
ended well are not run again. A system that fails does not stop the others, and stands in the table with its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kits_cascade.data.datasets import SPLITS_FILE
from kits_cascade.data.presets import preset_path
from kits_cascade.data.splits import Splits, read_splits, split_source
from kits_cascade.errors import KitsCascadeError, UsageError
from kits_cascade.evaluation.score import FULL_JSON, ScoreTable
from kits_cascade.files import digest, link_or_copy, read_json, write_json
from kits_cascade.nnunet_folders import VARIABLES
from kits_cascade.recipes.compare_steps import Comparison, Measure, run_measured, system_steps
from kits_cascade.recipes.steps import Step
from kits_cascade.report.comparison import Costs, SystemResult, write_comparison
from kits_cascade.runs.workers import interruptible
from kits_cascade.systems import System

if TYPE_CHECKING:
    from kits_cascade.runs.crew import Executor

Say = Callable[[str], None]


@dataclass
class CompareReport:
    """What a run did; in a dry run, what it would do."""

    steps: list[Step] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    page: Path | None = None


def _say_nothing(text: str) -> None:
    pass


def compare(
    plan: Comparison,
    *,
    dry_run: bool = False,
    run: Measure = run_measured,
    say: Say = _say_nothing,
    executor: Executor | None = None,
) -> CompareReport:
    """Walk all systems, then write comparison.csv, comparison.json and comparison.html into the output folder.

    With an ``executor`` (whatever has ``submit``) each system goes to a worker, and as many at a time as it has; what
    it is handed (``run`` and ``say`` too) must then be such that it can be sent. Workers need the same folders.
    """
    _check(plan)
    report = CompareReport()
    if dry_run:
        report.steps = [step for system in plan.systems for step in system_steps(plan, system)]
        return report
    _lay_out(plan)
    count = len(plan.systems)
    tellers: list[Say] = [partial(_say_numbered, say, f"[{number}/{count}]") for number in range(1, count + 1)]
    walks = _here(plan, run, tellers) if executor is None else _on_workers(plan, run, tellers, executor)
    for system, walk in zip(plan.systems, walks, strict=True):
        report.steps += walk.steps
        if walk.failure:
            report.failed[system.name] = walk.failure
    results = [_result(plan, system, report.failed.get(system.name, "")) for system in plan.systems]
    truths = {case: plan.truth(fold) / f"{case}{plan.raw.ending}" for fold, case in _held_out(plan)}
    images = {case: plan.images(fold) / f"{case}_0000{plan.raw.ending}" for fold, case in _held_out(plan)}
    report.page = write_comparison(results, plan.out, truths, images if plan.pictures else {}, plan.budget.text)
    return report


@dataclass
class Walk:
    """What became of one system: the steps that were run, and why it failed, or nothing."""

    steps: list[Step] = field(default_factory=list)
    failure: str = ""


def _here(plan: Comparison, run: Measure, tellers: list[Say]) -> Iterator[Walk]:
    for system, tell in zip(plan.systems, tellers, strict=True):
        yield _walk(plan, system, run, tell)


def _on_workers(plan: Comparison, run: Measure, tellers: list[Say], executor: Executor) -> Iterator[Walk]:
    """Each system to a worker; one whose worker dies has failed, and goes on when the same is run again."""
    with ExitStack() as stack:
        sent = []
        for system, tell in zip(plan.systems, tellers, strict=True):
            tell(f"{system.name}: to a worker")
            sent.append(executor.submit(_walk_elsewhere, plan, system, run, tell))
            stack.callback(sent[-1].cancel)  # nothing is begun any more where this is interrupted
        for system, promise in zip(plan.systems, sent, strict=True):
            try:
                yield promise.result()
            except Exception as death:
                told = " ".join(f"{type(death).__name__}: {death}".split())[:200]
                yield Walk([], f"{system.name}: its worker died ({told}); what is finished is kept")


def _walk_elsewhere(plan: Comparison, system: System, run: Measure, say: Say) -> Walk:
    """In a worker: told to end, it has its command end too."""
    try:
        with interruptible():
            return _walk(plan, system, run, say)
    except KeyboardInterrupt:
        return Walk([], f"{system.name}: interrupted")


def _say_numbered(say: Say, prefix: str, text: str) -> None:
    say(f"{prefix} {text}")


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


def _walk(plan: Comparison, system: System, run: Measure, say: Say) -> Walk:
    """Run the steps that are left."""
    folders = plan.folders
    variables = dict(zip(VARIABLES, map(str, (folders.raw, folders.preprocessed, folders.results)), strict=True))
    walk = Walk()
    for step in system_steps(plan, system):
        if _recorded(plan, system, step) is not None:
            say(f"{step.title}: done before")
            continue
        say(step.title)
        walk.steps.append(step)
        try:
            used = run(step.argv, variables)
        except KitsCascadeError as error:
            walk.failure = f"{step.title}: {error}"
            return walk
        if used.code:
            say(f"{step.title}: failed with exit code {used.code}")
            walk.failure = f"{step.title}: ended with exit code {used.code} ({step.shown()})"
            return walk
        write_json(_record(plan, system, step), {"title": step.title, "command": step.shown(), **asdict(used)})
    return walk


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
