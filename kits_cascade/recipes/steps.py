"""The commands that a training recipe is made of: how they are run, shown, and taken up again."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kits_cascade.errors import KitsCascadeError, UsageError
from kits_cascade.nnunet_folders import CHECKPOINT

# nnU-Net starts 8 to 12 processes where it can; on two cores they would take the time that the work needs.
TWO_CORES: Final = {"nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "2", "nnUNet_compile": "f"}

Run = Callable[[Sequence[str], Mapping[str, str]], int]
Fold = int | str


@dataclass(frozen=True)
class Step:
    """One command."""

    title: str
    argv: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()

    def shown(self) -> str:
        """As one would type it."""
        return " ".join([*(f"{name}={value}" for name, value in self.environment), shlex.join(self.argv)])


def run_command(argv: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run one of the commands with its output on the terminal; the exit code."""
    program, *arguments = argv
    return subprocess.run(
        [*find_program(program), *arguments], env={**os.environ, **environment}, check=False
    ).returncode


class StepFailedError(KitsCascadeError):
    """A command of a recipe failed; its own words are above."""

    exit_code = 1


def run_step(step: Step, environment: Mapping[str, str], run: Run = run_command, fine: Collection[int] = (0,)) -> None:
    """Run a command that must end well, with one of the exit codes ``fine``."""
    code = run(step.argv, environment)
    if code not in fine:
        raise StepFailedError(
            f"{' '.join(step.argv[:2])} ended with exit code {code}; what is done is kept: run it again to go on"
        )


def find_program(name: str) -> list[str]:
    """The command beside the running Python: another environment's nnU-Net would not know our trainers."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found:
        return [found]
    if name == "kits-cascade":
        return [sys.executable, "-c", "from kits_cascade.cli.app import main; main()"]
    raise KitsCascadeError(f"the command {name} is not installed beside {sys.executable}; install nnunetv2 there")


def no_run(argv: Sequence[str], environment: Mapping[str, str]) -> int:
    """Stands in for :func:`run_command` in a dry run."""
    return 0


def check_folds(folds: Sequence[Fold]) -> tuple[Fold, ...]:
    """Folds without repeats; what nnU-Net does not know is an error."""
    wanted = tuple(int(fold) if str(fold).isdigit() else fold for fold in dict.fromkeys(folds))
    if not wanted or any(fold != "all" and not (isinstance(fold, int) and 0 <= fold <= 4) for fold in wanted):
        raise UsageError(f"folds are 0 to 4, or 'all'; got {', '.join(map(str, folds)) or 'none'}")
    return wanted


def check_devices(devices: Sequence[str]) -> tuple[str, ...]:
    """Devices, each once, ``auto`` as what there is; what nnU-Net does not know is an error."""
    from kits_cascade.training.devices import choose_device

    devices = [choose_device(device).type if device == "auto" else device for device in devices]
    for device in devices:
        kind, _, number = device.partition(":")
        if kind not in {"cuda", "cpu", "mps"} or (number and not (kind == "cuda" and number.isdigit())):
            raise UsageError(f"device '{device}' is none of auto, cuda, cuda:0, cuda:1, ..., cpu, mps")
    if not devices or len(set(devices)) < len(devices):
        raise UsageError("give each device once")
    return tuple(devices)


def is_finished(fold: Path) -> bool:
    """Whether a fold is trained and validated."""
    return (fold / CHECKPOINT).is_file() and (fold / "validation" / "summary.json").is_file()


def continuation(fold: Path) -> tuple[str, ...]:
    """How nnU-Net takes up a fold: only the validation, from the last checkpoint, or from the start."""
    if (fold / CHECKPOINT).is_file():
        return ("--val",)
    if any((fold / f"checkpoint_{name}.pth").is_file() for name in ("latest", "best")):
        return ("--c",)
    return ()


def on_device(step: Step, device: str) -> Step:
    """The step on a device; nnU-Net takes the kind, and the number only from the environment."""
    kind, _, number = device.partition(":")
    environment = (*step.environment, ("CUDA_VISIBLE_DEVICES", number)) if number else step.environment
    argv = step.argv if kind == "cuda" else (*step.argv, "-device", kind)
    return Step(step.title, argv, environment)
