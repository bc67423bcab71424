"""Search for better options of a system, with Optuna: what is searched stands in the system's row.

The data are planned and preprocessed once; a trial is a training of one fold by nnU-Net's own command, with plans that
differ in what is searched. Trials that are worse than the median of the others at the same epoch are ended early.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

from kits_cascade.data.presets import load_preset, preset_path
from kits_cascade.errors import KitsCascadeError, MissingExtraError, UsageError
from kits_cascade.files import atomic_path, read_json, write_json
from kits_cascade.nnunet_folders import VARIABLES, NnunetFolders
from kits_cascade.recipes.steps import Run, Step, find_program, on_device, run_command
from kits_cascade.stages import Stage
from kits_cascade.systems import Knob, System
from kits_cascade.training.progress import PROGRESS_FILE
from kits_cascade.training.trainer_options import PLANS_KEY

STUDY: Final = "study.db"
BEST: Final = "best.json"
_FAILED: Final = "failed"  # says why a trial of ours failed; those of a killed run have none, and are tried again
Say = Callable[[str], None]


class Running(Protocol):
    """A training that is at work, as subprocess.Popen has it."""

    def poll(self) -> int | None:
        """Exit code, None while it works."""

    def terminate(self) -> None:
        """End it."""

    def wait(self) -> int:
        """Exit code, when it has ended."""


Start = Callable[[Sequence[str], Mapping[str, str]], Running]


def start_command(argv: Sequence[str], environment: Mapping[str, str]) -> Running:
    """Start a command, with its output on the terminal."""
    program, *arguments = argv
    return subprocess.Popen([*find_program(program), *arguments], env={**os.environ, **environment})


@dataclass(frozen=True)
class Tuning:
    """What is searched, and with what."""

    folders: NnunetFolders
    out: Path
    system: System
    trials: int
    epochs: int
    fold: int
    source_id: int
    device: str
    pause_s: float = 2.0  # between looks at a training's progress

    @property
    def environment(self) -> dict[str, str]:
        """nnU-Net's folders."""
        paths = (self.folders.raw, self.folders.preprocessed, self.folders.results)
        return dict(zip(VARIABLES, map(str, paths), strict=True))

    @property
    def stage(self) -> Stage:
        """The system's only one."""
        return replace(self.system.stages[0], dataset_id=self.source_id)

    @property
    def base(self) -> str:
        """Name of the plans that trials start from."""
        return load_preset(self.system.preset).plans_name

    def trial_plans(self, number: int) -> str:
        """Name of a trial's plans."""
        return f"{self.base}Trial{number}"

    def fold_of(self, number: int) -> Path:
        """nnU-Net's folder of a trial."""
        name = f"{self.stage.trainer}__{self.trial_plans(number)}__{self.stage.configuration}"
        return self.folders.results / self.stage.dataset / name / f"fold_{self.fold}"


@dataclass(frozen=True)
class TuneReport:
    """What came out."""

    best: Path
    value: float
    values: Mapping[str, Any]
    command: str
    plots: tuple[Path, ...]


def tune(
    plan: Tuning, *, run: Run = run_command, start: Start = start_command, say: Say = lambda _: None
) -> TuneReport:
    """Run the trials that are left, and write the best preset and the plots."""
    if not plan.system.is_single or not plan.system.search:
        raise UsageError(f"the system {plan.system.name} has no search space in its row (systems.py)")
    study = _study(plan)
    _plan(plan, run)
    while (done := _finished(study)) < plan.trials:
        trial = study.ask()
        values = {knob.name: _suggest(trial, knob) for knob in plan.system.search}
        say(f"[{done + 1}/{plan.trials}] trial {trial.number}: {', '.join(f'{k}={v}' for k, v in values.items())}")
        _try(plan, study, trial, values, start, say)
    return _conclude(plan, study)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise MissingExtraError("optuna", "tune") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _study(plan: Tuning) -> Any:
    """The study with what earlier runs have found; what a killed run was at is queued again."""
    optuna = _optuna()
    plan.out.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name=plan.system.name,
        storage=f"sqlite:///{plan.out.resolve() / STUDY}",
        load_if_exists=True,
        direction="maximize",
        sampler=optuna.samplers.TPESampler(),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=max(1, plan.epochs // 10)),
    )
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        study.enqueue_trial(trial.params)
    return study


def _finished(study: Any) -> int:
    return sum(trial.state.name in ("COMPLETE", "PRUNED") or _FAILED in trial.user_attrs for trial in study.trials)


def _plan(plan: Tuning, run: Run) -> None:
    step = Step(
        f"{plan.system.name}: plan and preprocess",
        ("kits-cascade", "plan", "--system", plan.system.name, "--stages", f"source={plan.source_id}"),
    )
    code = run(step.argv, plan.environment)
    if code:
        raise KitsCascadeError(f"{step.title}: ended with exit code {code} ({step.shown()})")


def _suggest(trial: Any, knob: Knob) -> Any:
    if knob.choices:
        return trial.suggest_categorical(knob.name, knob.choices)
    return trial.suggest_float(knob.name, knob.low, knob.high, log=knob.log)


def _try(plan: Tuning, study: Any, trial: Any, values: Mapping[str, Any], start: Start, say: Say) -> None:
    """Train with the values, watch, and tell the study."""
    optuna = _optuna()
    _write_plans(plan, trial.number, values)
    stage = plan.stage
    argv = ("nnUNetv2_train", str(stage.dataset_id), stage.configuration, str(plan.fold), "-tr", stage.trainer)
    step = on_device(Step("trial", (*argv, "-p", plan.trial_plans(trial.number))), plan.device)
    process = start(step.argv, {**plan.environment, **dict(step.environment)})
    try:
        pruned, scores = _watch(plan, trial, process)
    except BaseException:
        process.terminate()
        process.wait()
        raise
    code = process.wait()
    if pruned:
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        say(f"  ended early at epoch {len(scores)}: {scores[-1]:.3f}")
    elif code or not scores:
        trial.set_user_attr(_FAILED, f"ended with exit code {code}")
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        say(f"  failed with exit code {code}")
    else:
        study.tell(trial, max(scores))
        say(f"  pseudo Dice {max(scores):.3f}")


def _write_plans(plan: Tuning, number: int, values: Mapping[str, Any]) -> None:
    folder = plan.folders.preprocessed / plan.stage.dataset
    plans = read_json(folder / f"{plan.base}.json")
    plans["plans_name"] = plan.trial_plans(number)
    _put_in(plans.setdefault(PLANS_KEY, {}), plans["configurations"][plan.stage.configuration], plan, values)
    plans[PLANS_KEY]["num_epochs"] = plan.epochs
    write_json(folder / f"{plan.trial_plans(number)}.json", plans)


def _put_in(training: dict[str, Any], configuration: dict[str, Any], plan: Tuning, values: Mapping[str, Any]) -> None:
    for knob in plan.system.search:
        place = training if knob.place == "training" else configuration["architecture"]["arch_kwargs"]
        place[knob.name] = values[knob.name]


def _watch(plan: Tuning, trial: Any, process: Running) -> tuple[bool, list[float]]:
    """Report each epoch until the training has ended, or is ended; whether it was, and the scores."""
    scores: list[float] = []
    while True:
        ended = process.poll() is not None  # looked at first: what it wrote last is then seen
        for score in _scores(plan.fold_of(trial.number))[len(scores) :]:
            trial.report(score, len(scores))
            scores.append(score)
            if not ended and trial.should_prune():
                process.terminate()
                return True, scores
        if ended:
            return False, scores
        time.sleep(plan.pause_s)


def _scores(fold: Path) -> list[float]:
    with contextlib.suppress(OSError, ValueError):
        return [epoch["ema_pseudo_dice"] or 0.0 for epoch in read_json(fold / PROGRESS_FILE)["epochs"]]
    return []


def _conclude(plan: Tuning, study: Any) -> TuneReport:
    optuna = _optuna()
    if not study.get_trials(states=(optuna.trial.TrialState.COMPLETE,)):
        raise KitsCascadeError(f"no trial of {plan.system.name} came to its end; see the messages above")
    content = deepcopy(read_json(preset_path(plan.system.preset)))
    content["title"] = f"{content.get('title', plan.system.title)}, tuned: trial {study.best_trial.number}"
    content["plans_name"] = f"{plan.base}Tuned"
    configuration = content["stages"]["source"][plan.stage.configuration]
    _put_in(content.setdefault("training", {}), configuration, plan, study.best_params)
    path = plan.out / BEST
    write_json(path, content)
    command = f"kits-cascade train --system {plan.system.name} --preset {path}"
    return TuneReport(path, study.best_value, study.best_params, command, _plots(plan, study))


def _plots(plan: Tuning, study: Any) -> tuple[Path, ...]:
    """What Optuna draws of a study; a plot for which there are too few trials is left out."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from optuna.visualization import matplotlib as draw

    written = []
    for name in ("optimization_history", "intermediate_values", "slice", "param_importances"):
        with warnings.catch_warnings(), contextlib.suppress(ValueError, RuntimeError, ImportError):
            warnings.simplefilter("ignore")  # Optuna's: experimental
            getattr(draw, f"plot_{name}")(study)
            with atomic_path(plan.out / f"{name}.png") as temporary:
                pyplot.savefig(temporary, dpi=120, bbox_inches="tight", format="png")
            written.append(plan.out / f"{name}.png")
        pyplot.close("all")
    return tuple(written)
