"""run.json and lesions.csv, also when several processes or machines write into one folder.

Every case has a small record of its own below ``OUT/.kits-cascade/cases``, written atomically by whoever worked on it;
run.json and lesions.csv are assembled from all records. Whoever assembles looks at the folder again afterwards, and
assembles once more if a record has come in meanwhile. So the last writer has always seen all records, without a lock,
which shared folders of several machines are bad at.
"""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from kits_cascade.errors import FileFormatError
from kits_cascade.files import digest, read_json, sha256, write_csv, write_json
from kits_cascade.inference.measure import LesionRow
from kits_cascade.inference.plausibility_finding import Finding, verdict_of
from kits_cascade.version import __version__

SCHEMA: Final = 1
STATE: Final = ".kits-cascade"
RUN_JSON: Final = "run.json"
LESIONS_CSV: Final = "lesions.csv"
DONE, FAILED = "done", "failed"
_PACKAGES: Final = ("nnunetv2", "torch", "numpy", "nibabel", "SimpleITK", "connected-components-3d")
_LESION_COLUMNS: Final = tuple(f.name for f in fields(LesionRow))


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
    run: str = ""

    def judge(self, findings: Sequence[Finding]) -> None:
        """Take down what is odd, and the one word for it."""
        self.verdict, self.findings = verdict_of(findings), [finding.to_json() for finding in findings]

    @property
    def doubts(self) -> list[str]:
        """The verdict with its first reason, where it is not plausible."""
        grave = [str(finding["text"]) for finding in self.findings if finding["severity"] != "note"]
        more = f" (and {len(grave) - 1} more)" if len(grave) > 1 else ""
        return [f"{self.verdict}: {grave[0]}{more}"] if grave else []


def versions() -> dict[str, str]:
    """Versions of what takes part in a result."""
    found = {"kits-cascade": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def fingerprint(path: Path) -> str:
    """Tells whether an input is the one that was worked on: sizes and times of its files, not their contents."""
    files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    parts = [f"{p.name}:{p.stat().st_size}:{p.stat().st_mtime_ns}" for p in files if p.exists()]
    return digest(parts)


def networks_mark(models: Sequence[Mapping[str, Any]]) -> str:
    """A checksum over the checksums of all networks; empty where none are told of."""
    return digest(list(models)) if models else ""


class RunManifest:
    """The records of an output folder, and the two tables made of them."""

    def __init__(
        self,
        out: Path,
        *,
        device: str = "",
        models: Sequence[Mapping[str, Any]] = (),
        options: Mapping[str, Any] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """``options`` and ``models`` decide the result; ``about`` (part, workers) does not."""
        self.out = out
        self.header: dict[str, Any] = {
            "schema": SCHEMA,
            "versions": versions(),
            "device": device,
            "host": platform.node(),
            "command": sys.argv[1:],
            "models": [dict(model) for model in models],
            "options": dict(options or {}),
            **dict(about or {}),
        }
        self.networks = networks_mark(self.header["models"])
        self.settings = digest([self.header["models"], self.header["options"]])
        started = datetime.now(timezone.utc)
        self.run_id = f"{started:%Y%m%dT%H%M%S.%f}-{digest([platform.node(), id(self), started])[:6]}"
        self.header["started"] = started.isoformat(timespec="seconds")
        self._cache: dict[Path, tuple[tuple[int, int], dict[str, Any]]] = {}
        self._header_written = False

    @property
    def state(self) -> Path:
        """Folder of the records."""
        return self.out / STATE

    def record_path(self, name: str) -> Path:
        """Where the record of a case lies."""
        return self.state / "cases" / f"{_file_name(name)}.json"

    def record(self, name: str) -> CaseRecord | None:
        """What is known about a case; None for nothing (or nothing readable: then it is worked on again)."""
        try:
            content = read_json(self.record_path(name))
            return CaseRecord(**content)
        except (OSError, ValueError, TypeError):
            return None

    def records(self) -> list[CaseRecord]:
        """What is known about all cases, by name."""
        return [CaseRecord(**content) for content in self._records()]

    def networks_of(self, record: CaseRecord) -> str:
        """The checksum of the networks that made a finished case."""
        try:
            return networks_mark(read_json(self.state / "runs" / f"{record.run}.json")["models"])
        except (OSError, ValueError, KeyError):
            return ""

    def is_done(self, name: str, source: Path) -> bool:
        """Whether the case needs no work: done by the same models and options, from the same input, result in place."""
        record = self.record(name)
        if record is None or record.status != DONE or record.settings != self.settings:
            return False
        if record.source != fingerprint(source):
            return False
        result = self.out / record.output
        return result.is_file() and sha256(result) == record.result

    def made_otherwise(self) -> list[str]:
        """Names of finished cases that other models or options have made."""
        return [
            record["name"]
            for record in self._records()
            if record["status"] == DONE and record["settings"] != self.settings
        ]

    def done(self, record: CaseRecord, output: Path, source: Path, lesions: Sequence[LesionRow] = ()) -> None:
        """Record a finished case, after its result lies in place, and renew the tables."""
        record.status = DONE
        record.output = output.relative_to(self.out).as_posix()
        record.source, record.result = fingerprint(source), sha256(output)
        record.lesions = [asdict(row) for row in lesions]
        self._put(record)

    def failed(self, name: str, source: Path, reason: str) -> None:
        """Record a case that could not be worked on, and renew the tables."""
        known = fingerprint(source) if source.exists() else ""
        self._put(CaseRecord(name, FAILED, input=str(source), reason=" ".join(reason.split()), source=known))

    def _put(self, record: CaseRecord) -> None:
        record.settings, record.run = self.settings, self.run_id
        # Names of files are bytes, and may not be text; JSON is.
        record.input = record.input.encode("utf-8", "replace").decode("utf-8")
        record.seconds = {stage: round(seconds, 3) for stage, seconds in record.seconds.items()}
        if not self._header_written:
            write_json(self.state / "runs" / f"{self.run_id}.json", self.header)
            self._header_written = True
        write_json(self.record_path(record.name), asdict(record))
        self.assemble()

    def assemble(self) -> None:
        """Write run.json and lesions.csv from all records."""
        while True:
            seen = self._listing()
            records = self._records()
            write_csv(self.out / LESIONS_CSV, _lesion_rows(records))
            write_json(self.out / RUN_JSON, self._run_json(records))
            if self._listing() == seen:
                return

    def _listing(self) -> dict[Path, tuple[int, int]]:
        listing = {}
        for path in sorted((self.state / "cases").glob("[!.]*.json")):
            try:
                stat = path.stat()
            except FileNotFoundError:  # replaced by another process at this moment
                continue
            listing[path] = (stat.st_mtime_ns, stat.st_ino)
        return listing

    def _records(self) -> list[dict[str, Any]]:
        """All records by name; only those that have changed are read again."""
        for path, stamp in self._listing().items():
            if path not in self._cache or self._cache[path][0] != stamp:
                try:
                    self._cache[path] = (stamp, read_json(path))
                except (OSError, ValueError) as error:
                    raise FileFormatError(f"{path}: not readable ({error}); delete it to do its case again") from error
        return sorted((content for _, content in self._cache.values()), key=lambda record: str(record["name"]))

    def _run_json(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        runs = [{"run": path.stem, **read_json(path)} for path in sorted((self.state / "runs").glob("[!.]*.json"))]
        newest = {key: value for key, value in (runs[-1] if runs else self.header).items() if key != "run"}
        counts = {status: sum(record["status"] == status for record in records) for status in (DONE, FAILED)}
        # Models and options are in full for each run only where they differ from the newest.
        brief = [
            {k: v for k, v in run.items() if k in {"run", "started", "host"} or newest.get(k) != v} for run in runs
        ]
        return {**newest, "counts": counts, "runs": brief, "cases": {r["name"]: _without_name(r) for r in records}}


def _without_name(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != "name"}


def _lesion_rows(records: list[dict[str, Any]]) -> Iterator[list[Any]]:
    yield ["case", *_LESION_COLUMNS]
    for record in records:
        for lesion in record["lesions"]:
            yield [record["name"], *(_cell(lesion.get(column)) for column in _LESION_COLUMNS)]


def _cell(value: Any) -> Any:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value


def _file_name(name: str) -> str:
    """A record's file name: readable, safe on every file system, and different for different cases."""
    plain = quote(name, safe=" ()+,")
    if len(plain) > 120 or re.match(r"\.|.*[. ]$", plain):
        plain = f"{plain[:100].lstrip('.')}-{digest(name)}"
    return plain
