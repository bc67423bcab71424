"""Which cases of a folder are a process's own, where the work is divided beforehand: by hand, or by a job array."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from kits_cascade.errors import UsageError
from kits_cascade.volumes.find import InputCase

_STAGGER_SECONDS: Final = 0.5  # from one task of an array to the next, so that not all read the same files at once
_STAGGER_AT_MOST: Final = 60.0


@dataclass(frozen=True)
class Scheduler:
    """Which variables tell a task its number; the first and the last one of the array where they are told."""

    name: str
    index: str
    first: str = ""
    last: str = ""
    step: str = ""
    count: str = ""


# A new scheduler is a row here. PBS and Kubernetes do not say how many tasks there are.
SCHEDULERS: Final = (
    Scheduler(
        "Slurm",
        "SLURM_ARRAY_TASK_ID",
        "SLURM_ARRAY_TASK_MIN",
        "SLURM_ARRAY_TASK_MAX",
        "SLURM_ARRAY_TASK_STEP",
        "SLURM_ARRAY_TASK_COUNT",
    ),
    Scheduler("Grid Engine", "SGE_TASK_ID", "SGE_TASK_FIRST", "SGE_TASK_LAST", "SGE_TASK_STEPSIZE"),
    Scheduler("LSF", "LSB_JOBINDEX", last="LSB_JOBINDEX_END", step="LSB_JOBINDEX_STEP"),
    Scheduler("PBS", "PBS_ARRAY_INDEX"),
    Scheduler("Torque", "PBS_ARRAYID"),
    Scheduler("Kubernetes", "JOB_COMPLETION_INDEX"),
)


def part_of(cases: Sequence[InputCase], part: str | None) -> list[InputCase]:
    """Every N-th case, for a run with ``--part I/N``; all without it."""
    if part is None:
        return list(cases)
    index, count = _numbers(part)
    return list(cases[index::count])


def stagger_seconds(part: str) -> float:
    """How long a task of an array waits before it begins."""
    return min(_numbers(part)[0] * _STAGGER_SECONDS, _STAGGER_AT_MOST)


def _numbers(part: str) -> tuple[int, int]:
    first, _, count = part.partition("/")
    if not (first.isdigit() and count.isdigit() and int(first) < int(count)):
        raise UsageError(
            f"--part {part}: give I/N, with I from 0 to N-1, such as 0/2 and 1/2; or auto or auto/N in a job array"
        )
    return int(first), int(count)


def resolve_part(part: str, environment: Mapping[str, str]) -> str:
    """``I/N`` as given; for ``auto`` as the job array says, for ``auto/N`` with the number of its tasks as given."""
    asked = re.fullmatch(r"auto(?:/(\d+))?", part)
    if asked is None:
        _numbers(part)
        return part
    scheduler = next((s for s in SCHEDULERS if _number(environment, s.index) is not None), None)
    if scheduler is None:
        raise UsageError(
            f"--part {part}: this is no task of a job array ({', '.join(s.index for s in SCHEDULERS)}: none is set); "
            "give --part I/N"
        )
    index = _number(environment, scheduler.index) or 0
    if asked[1] is not None:
        return f"{index % max(int(asked[1]), 1)}/{max(int(asked[1]), 1)}"
    return _by_range(scheduler, index, environment)


def _by_range(scheduler: Scheduler, index: int, environment: Mapping[str, str]) -> str:
    last = _number(environment, scheduler.last)
    if last is None:
        raise UsageError(f"--part auto: {scheduler.name} does not say how many tasks there are; give --part auto/N")
    first = _number(environment, scheduler.first)
    first = 1 if first is None else first
    step = _number(environment, scheduler.step) or 1
    count = (last - first) // step + 1
    told = _number(environment, scheduler.count)
    if told not in (None, count) or (index - first) % step:
        raise UsageError(
            f"--part auto: the tasks of this {scheduler.name} array have no even numbers ({told} from {first} to "
            f"{last}); give --part auto/N, with N as in the whole array"
        )
    return f"{(index - first) // step}/{count}"


def _number(environment: Mapping[str, str], name: str) -> int | None:
    """A variable's value; None where it is not set, or says (as Grid Engine and LSF do) that there is no array."""
    value = environment.get(name, "") if name else ""
    if not value.isdigit() or (name == "LSB_JOBINDEX" and value == "0"):
        return None
    return int(value)
