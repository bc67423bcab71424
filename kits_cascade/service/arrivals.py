"""Which CT series lie in a folder that others write into, and which of them have stopped growing.

Files are told apart by the series that their headers name, however they are laid out. The clock is our own: programs
that copy may set any time on a file that is still growing.
"""

from __future__ import annotations

import os
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kits_cascade.volumes.dicom_extra import load_pydicom

Stamp = tuple[int, int]  # size and time of a file
_UID: Final = re.compile(r"[0-9][0-9.]{0,63}")
_UNFINISHED: Final = (".part", ".partial", ".tmp", ".filepart", ".crdownload")
_TAGS: Final = ("Modality", "ImageType", "SeriesInstanceUID")
_SMALLEST: Final = 132  # bytes of a DICOM file before its first element


@dataclass(frozen=True)
class Arrival:
    """A series as it lies in the folder at this moment."""

    uid: str
    files: tuple[tuple[Path, Stamp], ...]

    @property
    def paths(self) -> tuple[Path, ...]:
        """Its files."""
        return tuple(path for path, _ in self.files)


def is_uid(text: str) -> bool:
    """Whether this is a UID, and so can be the name of a file."""
    return _UID.fullmatch(text) is not None


class Arrivals:
    """The series in ``folder``; ``settled`` are those that nobody has added to for ``quiet`` seconds."""

    def __init__(self, folder: Path, quiet: float, now: Callable[[], float] = time.monotonic) -> None:
        self.folder, self.quiet, self._now = folder, quiet, now
        self._headers: dict[Path, tuple[Stamp, str]] = {}
        self._since: dict[str, tuple[Arrival, float]] = {}

    def look(self) -> None:
        """Look at the folder again."""
        now, found = self._now(), {arrival.uid: arrival for arrival in self._series()}
        before = self._since
        self._since = {
            uid: before[uid] if uid in before and before[uid][0] == arrival else (arrival, now)
            for uid, arrival in found.items()
        }

    @property
    def settled(self) -> list[Arrival]:
        """The series that have stopped growing, as of the last look."""
        now = self._now()
        return [arrival for arrival, since in self._since.values() if now - since >= self.quiet]

    @property
    def growing(self) -> bool:
        """Whether some series may still grow."""
        return len(self.settled) < len(self._since)

    @property
    def uids(self) -> set[str]:
        """Of all series that are there."""
        return set(self._since)

    def _series(self) -> Iterator[Arrival]:
        groups: dict[str, list[tuple[Path, Stamp]]] = defaultdict(list)
        files = dict(self._files())
        self._headers = {path: known for path, known in self._headers.items() if path in files}
        for path, stamp in sorted(files.items()):
            if uid := self._uid(path, stamp):
                groups[uid].append((path, stamp))
        for uid, members in groups.items():
            yield Arrival(uid, tuple(members))

    def _files(self) -> Iterator[tuple[Path, Stamp]]:
        for root, folders, names in os.walk(self.folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in names:
                if name.startswith(".") or name.lower().endswith(_UNFINISHED):
                    continue
                path = Path(root, name)
                try:
                    stat = path.stat()
                except OSError:  # moved away at this moment
                    continue
                if stat.st_size > _SMALLEST:
                    yield path, (stat.st_size, stat.st_mtime_ns)

    def _uid(self, path: Path, stamp: Stamp) -> str:
        """The series of a CT slice; empty for all else, and for what cannot be read (yet)."""
        known = self._headers.get(path)
        if known is None or known[0] != stamp:
            known = self._headers[path] = (stamp, _read_uid(path))
        return known[1]


def _read_uid(path: Path) -> str:
    pydicom = load_pydicom()
    try:
        header = pydicom.dcmread(path, specific_tags=list(_TAGS), stop_before_pixels=True)
        modality, uid = str(header.get("Modality", "")), str(header.get("SeriesInstanceUID", ""))
        scout = "LOCALIZER" in str(header.get("ImageType", ""))
    except Exception:  # whatever a file that is no DICOM, or only half there, makes a parser raise
        return ""
    return uid if modality == "CT" and not scout and is_uid(uid) else ""
