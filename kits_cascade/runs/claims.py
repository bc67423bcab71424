"""Who works on which case, when several processes share an output folder, on one machine or on many.

A claim is a file made with O_EXCL, so that one process alone gets it. Its owner touches it while it lives; a claim
whose owner is dead (on this machine), or that nobody has touched for a while (on another), may be taken over.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from filelock import FileLock

from kits_cascade.files import TEMPORARY_MARK
from kits_cascade.runs.manifest import STATE

BEAT_SECONDS: Final = 10.0
STALE_SECONDS: Final = 120.0


class Claims:
    """The claims of one process on the cases of an output folder."""

    def __init__(self, out: Path) -> None:
        self.folder = out / STATE / "claims"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._mine: set[Path] = set()
        self._inherited: set[str] = set()
        self._stop = threading.Event()
        self._beat = threading.Thread(target=self._keep_alive, daemon=True, name="claims")
        self._beat.start()

    def take(self, case: str) -> bool:
        """Whether the case is ours now. A claim of a dead process is taken over."""
        path = self._path(case)
        if self._create(path):
            return True
        with locked(self.folder.parent):
            if path.exists():
                if not self._stale(path):
                    return False
                path.unlink(missing_ok=True)
                self._inherited.add(case)
            return self._create(path)

    def taken_over(self, case: str) -> bool:
        """Whether a process had worked on the case and not finished: what it left is ours to replace."""
        return case in self._inherited

    def release(self, case: str) -> None:
        """Give a case back."""
        path = self._path(case)
        self._mine.discard(path)
        path.unlink(missing_ok=True)

    def tidy(self, case: str) -> None:
        """Remove what is left of a claim whose owner died after it had finished the case."""
        path = self._path(case)
        if path.exists():
            with locked(self.folder.parent):
                if self._stale(path):
                    path.unlink(missing_ok=True)

    def close(self) -> None:
        """Give everything back."""
        self._stop.set()
        for path in list(self._mine):
            path.unlink(missing_ok=True)
        self._mine.clear()

    def _path(self, case: str) -> Path:
        return self.folder / f"{quote(case, safe=' ')}.json"

    def others_alive(self) -> bool:
        """Whether another living process works in this folder."""
        return any(path not in self._mine and not self._stale(path) for path in self.folder.glob("*.json"))

    def _create(self, path: Path) -> bool:
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump({"host": socket.gethostname(), "pid": os.getpid(), "born": _born(os.getpid())}, stream)
        self._mine.add(path)
        return True

    def _stale(self, path: Path) -> bool:
        try:
            age = self._now() - path.stat().st_mtime
            owner: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return True
        except ValueError:
            return age > BEAT_SECONDS  # just being written, or cut off while it was
        if owner.get("host") == socket.gethostname():
            return path not in self._mine and not _lives(owner)
        return age > STALE_SECONDS

    def _now(self) -> float:
        """The file system's own time: the clocks of two machines need not agree."""
        probe = self.folder / f"{TEMPORARY_MARK}{os.getpid()}-now"
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink(missing_ok=True)
        return now

    def _keep_alive(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            for path in list(self._mine):
                with suppress(OSError):
                    os.utime(path)


def _born(pid: int) -> str:
    """When a process was started, so that a number given again is not taken for the old one; empty where unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return ""
    return "dead" if fields[0] in "ZX" else fields[19]


def _lives(owner: dict[str, Any]) -> bool:
    pid = int(owner.get("pid", 0))
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return bool(_born(pid) == owner.get("born", ""))


@contextmanager
def locked(folder: Path, patience: float = 30.0) -> Iterator[None]:
    """One process at a time; where the file system knows no locks, or after some patience, go on without."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock", timeout=patience)
    with suppress(OSError, NotImplementedError):  # Timeout is an OSError
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
