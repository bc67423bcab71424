"""What is compared and with which commands, and what a command takes."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from kits_cascade.data.datasets import RawDataset, open_dataset
from kits_cascade.data.presets import load_preset
from kits_cascade.nnunet_folders import NnunetFolders
from kits_cascade.recipes.budget import Budget
from kits_cascade.recipes.steps import Step, find_program
from kits_cascade.stages import SOURCE_ID
from kits_cascade.systems import System

# nnU-Net's own trainer reads no options: where a budget must count, ours with the same loss takes its place.
_WITH_OPTIONS: Final = {"nnUNetTrainer": "KitsTrainer"}
_MEGA: Final = 1 << 20
_PATIENCE_SECONDS: Final = 5.0  # for a command that Ctrl-C has reached too


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
        end_command(process)
        raise
    process.returncode = os.waitstatus_to_exitcode(status)
    peak = used.ru_maxrss * (1 if os.uname().sysname == "Darwin" else 1024)
    return Usage(process.returncode, time.monotonic() - begin, used.ru_utime + used.ru_stime, peak / _MEGA)


def end_command(process: subprocess.Popen[bytes], seconds: float = _PATIENCE_SECONDS) -> None:
    """Ctrl-C reaches it too, and it ends tidily; a signal to this process alone does not, and is handed on."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        process.wait()


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
    if system.is_single and plan.source_id != SOURCE_ID:
        argv += ["--ids", str(plan.source_id)]
    for key, name in plan.networks(system).items():
        argv += ["--model", f"{key}={name}"]
    return Step(f"{system.name}: predict fold {fold}", (*argv, *(() if plan.tta else ("--no-tta",))))


def _evaluate(plan: Comparison, system: System, fold: int) -> Step:
    argv = ["kits-cascade", "evaluate", "-p", str(plan.predictions(system, fold)), "-g", str(plan.truth(fold))]
    return Step(f"{system.name}: score fold {fold}", (*argv, "-o", str(plan.scores(system, fold))))
