"""What is known about each case of an output folder: one small file for each, written by whoever worked on it.

Each is below ``OUT/.kits-cascade/cases`` and replaced as a whole, so that any number of processes and machines may
write at once without a lock, which shared folders are bad at. What a finished case costs does not depend on how many
there are.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from kits_cascade.errors import FileFormatError
from kits_cascade.files import digest, read_json, write_json
from kits_cascade.inference.plausibility_finding import Finding, verdict_of

STATE: Final = ".kits-cascade"  # folder of the records, within the output folder
DONE, FAILED = "done", "failed"
Stamp = tuple[int, int]  # tells whether a file is the one that was read: when it was written, and its inode


@dataclass
class CaseRecord:
    """What run.json says about one case."""

    name: str
    status: str  # done or failed
    input: str = ""
    output: str = ""
    reason: str = ""  # why it failed, in one line
    boxes: list[dict[str, list[int]]] = field(default_factory=list)
    crops: list[dict[str, list[int]]] = field(default_factory=list)  # per box what the fine networks were shown
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    volumes_ml: dict[str, float] = field(default_factory=dict)
    lesions: list[dict[str, Any]] = field(default_factory=list)
    geometry: dict[str, Any] = field(default_factory=dict)  # shape and spacing, as stored
    verdict: str = ""  # plausible, doubtful or implausible
    findings: list[dict[str, Any]] = field(default_factory=list)  # what the verdict rests on, and where to look
    settings: str = ""  # of the run that made it: see RunManifest.settings
    source: str = ""  # of the input's bytes: see fingerprint
    result: str = ""  # checksum of the output
    result_stat: list[int] = field(default_factory=list)  # its size, and when it was written (ns)
    deaths: int = 0  # of workers that were working on it, where that is why it failed
    run: str = ""
    more: dict[str, Any] = field(default_factory=dict)  # what another version has put in

    def judge(self, findings: Sequence[Finding]) -> None:
        """Take down what is odd, and the one word for it."""
        self.verdict, self.findings = verdict_of(findings), [finding.to_json() for finding in findings]

    @property
    def doubts(self) -> list[str]:
        """The verdict with its first reason, where it is not plausible."""
        grave = [str(finding["text"]) for finding in self.findings if finding["severity"] != "note"]
        more = f" (and {len(grave) - 1} more)" if len(grave) > 1 else ""
        return [f"{self.verdict}: {grave[0]}{more}"] if grave else []

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> CaseRecord:
        """From a record's file; what this version does not know is kept."""
        known = {f.name for f in fields(CaseRecord)} - {"more"}
        more = {key: value for key, value in content.items() if key not in known}
        return CaseRecord(**{key: value for key, value in content.items() if key in known}, more=more)

    def to_json(self) -> dict[str, Any]:
        """For a record's file."""
        content: dict[str, Any] = asdict(self)
        more: dict[str, Any] = content.pop("more")
        return content | more


def fingerprint(path: Path) -> str:
    """Tells whether an input is the one that was worked on: sizes and times of its files, not their contents."""
    files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    parts = [f"{p.name}:{p.stat().st_size}:{p.stat().st_mtime_ns}" for p in files if p.exists()]
    return digest(parts)


def stat_of(path: Path) -> list[int]:
    """Size of a file, and when it was written."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


class Records:
    """The records of an output folder."""

    def __init__(self, out: Path) -> None:
        self.folder = out / STATE / "cases"
        self._read: dict[str, tuple[Stamp, str]] = {}  # compact texts: parsed, ten thousand would take 100 MB

    def path(self, name: str) -> Path:
        """Where the record of a case lies."""
        return self.folder / f"{file_name(name)}.json"

    def get(self, name: str) -> CaseRecord | None:
        """What is known about a case; None for nothing (or nothing readable: then it is worked on again)."""
        return self.of_file(file_name(name))

    def of_file(self, stem: str) -> CaseRecord | None:
        """As :meth:`get`, by a file's name (without its ending)."""
        try:
            return CaseRecord.from_json(read_json(self.folder / f"{stem}.json"))
        except (OSError, ValueError, TypeError, AttributeError):
            return None

    def last_seen(self, name: str) -> CaseRecord | None:
        """As :meth:`get`, but of a case that was finished when all were read last, from memory."""
        known = self._read.get(f"{file_name(name)}.json")
        record = CaseRecord.from_json(json.loads(known[1])) if known else None
        return record if record is not None and record.status == DONE else self.get(name)

    def put(self, record: CaseRecord) -> Path:
        """Write the record of a case."""
        path = self.path(record.name)
        write_json(path, record.to_json())
        return path

    def written(self, name: str) -> float:
        """When the record of a case was written, by the file system's clock; 0 where there is none."""
        try:
            return self.path(name).stat().st_mtime
        except OSError:
            return 0.0

    def listing(self) -> dict[str, Stamp]:
        """All records' file names, and which version of each lies there."""
        found = {}
        try:
            entries = list(os.scandir(self.folder))
        except FileNotFoundError:
            return {}
        for entry in entries:
            if entry.name.endswith(".json") and not entry.name.startswith("."):
                try:
                    stat = entry.stat()
                except FileNotFoundError:  # replaced by another process at this moment
                    continue
                found[entry.name] = (stat.st_mtime_ns, stat.st_ino)
        return found

    def all(self) -> Iterator[dict[str, Any]]:
        """The content of all records; only those that have changed are read again."""
        before = dict(self._read)
        for file, stamp in self.listing().items():
            if file not in before or before[file][0] != stamp:
                before.pop(file, None)
                content = _content(self.folder / file)
                self._read[file] = (stamp, json.dumps(content, ensure_ascii=False))
                yield content
        for _, text in before.values():
            yield json.loads(text)


def _content(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = read_json(path)
        if not {"name", "status"} <= set(content):
            raise ValueError("no name, or no status")  # noqa: TRY301
    except (OSError, ValueError, TypeError) as error:
        raise FileFormatError(f"{path}: not readable ({error}); delete it to do its case again") from error
    return content


def file_name(name: str) -> str:
    """A file name for a case: readable, safe on every file system, and different for different cases."""
    plain = quote(name, safe=" ()+,")
    if len(plain) > 120 or re.match(r"\.|.*[. ]$", plain):
        plain = f"{plain[:100].lstrip('.')}-{digest(name)}"
    return plain
