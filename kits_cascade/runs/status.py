"""How far the work in an output folder is, read from its records and claims; nothing is changed."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from kits_cascade.errors import UsageError
from kits_cascade.files import read_json
from kits_cascade.runs.claims import Claim, ClaimFolder
from kits_cascade.runs.records import DONE, STATE, Records

_RATE_OF_LAST: Final = 100  # cases
_RATE_SECONDS: Final = 3600.0  # none older than this before the last one


@dataclass(frozen=True)
class Work:
    """A case that somebody has claimed."""

    case: str
    host: str
    pid: int
    since: float  # seconds since 1970, by its owner's clock
    alive: bool  # False: its owner has died, or has not been heard of for long; the next worker takes it

    def line(self) -> str:
        """In words."""
        began = datetime.fromtimestamp(self.since).astimezone()
        after = "" if self.alive else "; no longer there: the next worker takes the case"
        long = _duration(max(time.time() - self.since, 0))
        return f"  {self.case}: {self.host}, process {self.pid}, since {began:%Y-%m-%d %H:%M:%S} ({long}){after}"


@dataclass(frozen=True)
class Status:
    """How far the work is."""

    out: str
    total: int | None  # of the newest run; None where it has not begun
    done: int
    failed: dict[str, str]
    working: list[Work]
    cases_per_hour: float | None  # lately
    seconds_left: float | None

    @property
    def alive(self) -> int:
        """How many cases are being worked on."""
        return sum(work.alive for work in self.working)

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return asdict(self)

    def lines(self) -> list[str]:
        """In words."""
        of = "" if self.total is None else f" of {self.total}"
        head = f"{self.out}: {self.done}{of} done, {len(self.failed)} failed, {self.alive} in work"
        if self.cases_per_hour is not None:
            head += f"; {self.cases_per_hour:.3g} an hour"
        if self.seconds_left is not None:
            head += f", about {_duration(self.seconds_left)} left"
        rows = [work.line() for work in self.working]
        failures = [f"  {case}: {reason}" for case, reason in self.failed.items()]
        return [head, *(["in work:", *rows] if rows else []), *(["failed:", *failures] if failures else [])]


def read_status(out: Path) -> Status:
    """Look at an output folder."""
    if not (out / STATE).is_dir():
        raise UsageError(f"{out}: no run of kits-cascade predict has been at work here; give its output folder")
    records = Records(out)
    content = sorted(records.all(), key=lambda record: str(record["name"]))
    failed = {str(r["name"]): str(r.get("reason", "")) for r in content if r["status"] != DONE}
    finished = sorted(records.written(r["name"]) for r in content if r["status"] == DONE)
    working, total = _working(out), _total(out)
    rate = _rate(finished)
    left = None
    if rate and total is not None and any(work.alive for work in working):
        left = max(total - len(finished) - len(failed), 0) / rate * 3600
    return Status(str(out), total, len(finished), failed, working, rate, left)


def _working(out: Path) -> list[Work]:
    folder = ClaimFolder(out)
    found = []
    for path in folder.files():
        claim = Claim.read(path)
        if claim is not None and claim.owner is not None:
            alive = not folder.is_free(path, claim)
            found.append(Work(claim.case, claim.owner.host, claim.owner.pid, claim.since, alive))
    return found


def _total(out: Path) -> int | None:
    """How many cases the newest run has found."""
    runs = sorted((out / STATE / "runs").glob("[!.]*.json"))
    try:
        total = read_json(runs[-1]).get("total") if runs else None
    except (OSError, ValueError):
        return None
    return total if isinstance(total, int) else None


def _rate(finished: list[float]) -> float | None:
    """Cases an hour, of the last ones."""
    lately = [when for when in finished[-_RATE_OF_LAST:] if when >= finished[-1] - _RATE_SECONDS]
    if len(lately) < 2 or lately[-1] <= lately[0]:
        return None
    return (len(lately) - 1) / (lately[-1] - lately[0]) * 3600


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    whole = timedelta(minutes=round(seconds / 60))
    days, rest = whole.days, whole.seconds
    hours = f"{rest // 3600} h {rest % 3600 // 60} min"
    return f"{days} d {hours}" if days else hours
