"""Who works on which case, when several processes share an output folder, on one machine or on many.

A claim is a file made with O_EXCL, so that one process alone gets it. It says who has it, with a token that nobody
else knows. Its owner touches it while it lives; a claim whose owner is dead (where that can be seen), or that nobody
has touched for a while (elsewhere), may be taken over. How many workers a case has cost goes along with its claim.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from kits_cascade.files import TEMPORARY_MARK, locked, write_json
from kits_cascade.runs.owners import Owner
from kits_cascade.runs.records import STATE, file_name

BEAT_SECONDS: Final = 10.0
STALE_SECONDS: Final = 120.0
_LOCK_SECONDS: Final = 30.0


@dataclass(frozen=True)
class Claim:
    """What a claim's file says."""

    case: str = ""
    owner: Owner | None = None  # None: just being written, or cut off while it was
    token: str = ""
    since: float = 0.0
    deaths: int = 0  # of workers that had the case before
    begun: bool = True  # False: its owner was still loading the networks; if it dies of that, no case is to blame
    left: bool = False  # given up by a process that had to go: free, but what lies there may be half a case

    @staticmethod
    def read(path: Path) -> Claim | None:
        """The claim in a file; None where there is none."""
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return Claim(
                str(content.get("case", path.stem)),
                Owner.from_json(content),
                str(content.get("token", "")),
                float(content.get("since", 0)),
                int(content.get("deaths", 0)),
                bool(content.get("begun", True)),
                bool(content.get("left", False)),
            )
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, AttributeError):
            return Claim(path.stem, begun=False)

    def to_json(self) -> dict[str, Any]:
        """For the file."""
        owner = self.owner.to_json() if self.owner else {}
        more = {key: getattr(self, key) for key in ("token", "since", "deaths", "begun", "left")}
        return {"case": self.case, **owner, **more}


class ClaimFolder:
    """The claims in an output folder, to be looked at."""

    def __init__(self, out: Path) -> None:
        self.folder = out / STATE / "claims"
        self.me = Owner.this()

    def files(self) -> list[Path]:
        """All claims' files."""
        return sorted(self.folder.glob("[!.]*.json"))

    def is_free(self, path: Path, claim: Claim | None) -> bool:
        """Whether nobody lives who has the claim."""
        if claim is None or claim.left:
            return True
        if claim.owner is not None and claim.owner.in_sight_of(self.me):
            return not claim.owner.lives()
        try:
            age = self.now() - path.stat().st_mtime
        except FileNotFoundError:
            return True
        return age > (BEAT_SECONDS if claim.owner is None else STALE_SECONDS)

    def now(self) -> float:
        """The file system's own time: the clocks of two machines need not agree."""
        probe = self.folder / f"{TEMPORARY_MARK}{os.getpid()}-{uuid.uuid4().hex}-now"
        try:
            probe.touch()
            now = probe.stat().st_mtime
        except OSError:  # a folder that one may only read
            return time.time()
        probe.unlink(missing_ok=True)
        return now


class Claims(ClaimFolder):
    """The claims of one process on the cases of an output folder."""

    def __init__(self, out: Path) -> None:
        super().__init__(out)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._token = uuid.uuid4().hex
        self._mine: dict[str, Claim] = {}
        self._inherited: set[str] = set()
        self._ready = False
        self._stop = threading.Event()
        self._beat = threading.Thread(target=self._keep_alive, daemon=True, name="claims")
        self._beat.start()

    def take(self, case: str) -> bool:
        """Whether the case is ours now. A claim of a dead process is taken over."""
        path = self._path(case)
        if self._create(path, self._claim(case)):
            return True
        return self.is_free(path, Claim.read(path)) and self._take_over(case, path)

    def _take_over(self, case: str, path: Path) -> bool:
        with locked(self.folder.parent / "lock", _LOCK_SECONDS):
            before = Claim.read(path)
            if before is None:
                return self._create(path, self._claim(case))
            if not self.is_free(path, before):  # another process was faster
                return False
            self._rewrite(self._claim(case, before.deaths + (before.begun and not before.left)))
            self._inherited.add(case)
            return True

    def ready(self) -> None:
        """From now on a case that is ours is to blame if we die."""
        self._ready = True
        for claim in list(self._mine.values()):
            if self.holds(claim.case):
                self._rewrite(replace(claim, begun=True))

    def _rewrite(self, claim: Claim) -> None:
        write_json(self._path(claim.case), claim.to_json())
        self._mine[claim.case] = claim

    def taken_over(self, case: str) -> bool:
        """Whether a process had worked on the case and not finished: what it left is ours to replace."""
        return case in self._inherited

    def deaths(self, case: str) -> int:
        """How many workers have died while they had this case of ours."""
        return self._mine[case].deaths if case in self._mine else 0

    def holds(self, case: str) -> bool:
        """Whether a case is still ours: after a long standstill another process may have taken it over."""
        claim = Claim.read(self._path(case))
        return claim is not None and claim.token == self._token

    def release(self, case: str) -> None:
        """Give a case back, if it is still ours."""
        if self._mine.pop(case, None) is not None and self.holds(case):
            self._path(case).unlink(missing_ok=True)

    def claimed(self, case: str, files: set[Path]) -> bool:
        """Whether a case has a claim among these files."""
        return self._path(case) in files

    def tidy(self, case: str) -> None:
        """Remove what is left of a claim whose owner died after it had finished the case."""
        path = self._path(case)
        with locked(self.folder.parent / "lock", _LOCK_SECONDS):
            claim = Claim.read(path)
            if claim is not None and claim.token != self._token and self.is_free(path, claim):
                path.unlink(missing_ok=True)

    def close(self, unfinished: str | None = None) -> None:
        """Give everything back; what is half written is left such that the next process knows."""
        self._stop.set()
        mine = self._mine.get(unfinished or "")
        if mine is not None and self.holds(mine.case):
            with suppress(OSError):
                self._rewrite(replace(mine, left=True))
                del self._mine[mine.case]
        for case in list(self._mine):
            self.release(case)

    def others_alive(self) -> bool:
        """Whether another living process works in this folder."""
        for path in self.files():
            claim = Claim.read(path)
            if claim is not None and claim.token != self._token and not self.is_free(path, claim):
                return True
        return False

    def _path(self, case: str) -> Path:
        return self.folder / f"{file_name(case)}.json"

    def _claim(self, case: str, deaths: int = 0) -> Claim:
        return Claim(case, self.me, self._token, round(time.time(), 3), deaths, self._ready)

    def _create(self, path: Path, claim: Claim) -> bool:
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump(claim.to_json(), stream)
        self._mine[claim.case] = claim
        return True

    def _keep_alive(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            for case in list(self._mine):
                with suppress(OSError):
                    if self.holds(case):
                        os.utime(self._path(case))
