"""run.json and lesions.csv, assembled from the records of all cases, also when several processes write into one folder.

They are made at the end of a run, on demand, and in between at most once a minute or so: with ten thousand cases it
takes a second or two. Whoever assembles looks at the folder again afterwards, and assembles once more if a record has
come in meanwhile. So what the last one writes holds all records, without a lock.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from kits_cascade.files import digest, read_json, sha256, write_csv, write_json, write_text
from kits_cascade.inference.measure import LesionRow
from kits_cascade.runs.records import DONE, FAILED, STATE, CaseRecord, Records, fingerprint, stat_of
from kits_cascade.version import __version__

SCHEMA: Final = 1
RUN_JSON: Final = "run.json"
LESIONS_CSV: Final = "lesions.csv"
PAUSE_SECONDS: Final = 60.0  # at least, between two assemblies
_PAUSE_PER_SECOND: Final = 50.0  # of assembling: two hundredths of the time go into it at most
_ROUNDS: Final = 5  # when no round sees a folder at rest, others are writing, and assemble when they end
_PACKAGES: Final = ("nnunetv2", "torch", "openvino", "numpy", "nibabel", "SimpleITK", "connected-components-3d")
_LESION_COLUMNS: Final = tuple(f.name for f in fields(LesionRow))


def versions() -> dict[str, str]:
    """Versions of what takes part in a result."""
    found = {"kits-cascade": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


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
        kind: str = "",
    ) -> None:
        """``options``, ``models`` and the ``kind`` of device decide the result; ``about`` (part, workers) does not."""
        self.out = out
        self.records = Records(out)
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
        self.settings = digest([self.header["models"], self.header["options"], *filter(None, [kind])])
        started = datetime.now(timezone.utc)
        self.run_id = f"{started:%Y%m%dT%H%M%S.%f}-{digest([platform.node(), id(self), started])[:6]}"
        self.header["started"] = started.isoformat(timespec="seconds")
        self._header_written = False
        self._pause = PAUSE_SECONDS

    @property
    def state(self) -> Path:
        """Folder of the records."""
        return self.out / STATE

    def record(self, name: str) -> CaseRecord | None:
        """What is known about a case."""
        return self.records.get(name)

    def networks_of(self, record: CaseRecord) -> str:
        """The checksum of the networks that made a finished case."""
        try:
            return networks_mark(read_json(self.state / "runs" / f"{record.run}.json")["models"])
        except (OSError, ValueError, KeyError):
            return ""

    def is_done(self, name: str, source: Path, *, verify: bool = False) -> bool:
        """Whether the case needs no work: done by the same models and options, from the same input, result in place."""
        return self.counts_as_done(self.records.get(name), source, verify=verify)

    def counts_as_done(self, record: CaseRecord | None, source: Path, *, verify: bool = False) -> bool:
        """As :meth:`is_done`. A result of the recorded size and time is not read, unless ``verify`` says so."""
        if record is None or record.status != DONE or record.settings != self.settings:
            return False
        return record.source == fingerprint(source) and self._in_place(record, verify)

    def _in_place(self, record: CaseRecord, verify: bool) -> bool:
        result = self.out / record.output
        try:
            now = stat_of(result)
        except OSError:
            return False
        if not verify and now == record.result_stat:
            return True
        if record.result_stat and now[0] != record.result_stat[0]:
            return False
        return result.is_file() and sha256(result) == record.result  # a copy has another time, and the same content

    def counts_as_failed(self, record: CaseRecord | None, source: Path) -> bool:
        """Whether the case has failed with the same models and options, from the same input."""
        failed = record is not None and record.status == FAILED and record.settings == self.settings
        return failed and record is not None and record.source == _known(source)

    def made_otherwise(self) -> list[str]:
        """Names of finished cases that other models or options have made."""
        return [
            record["name"]
            for record in self.records.all()
            if record["status"] == DONE and record["settings"] != self.settings
        ]

    def done(self, record: CaseRecord, output: Path, source: Path, lesions: Sequence[LesionRow] = ()) -> None:
        """Record a finished case, after its result lies in place."""
        record.status = DONE
        record.output = output.relative_to(self.out).as_posix()
        record.source, record.result, record.result_stat = fingerprint(source), sha256(output), stat_of(output)
        record.lesions = [asdict(row) for row in lesions]
        self._put(record)

    def failed(self, name: str, source: Path, reason: str, deaths: int = 0) -> None:
        """Record a case that could not be worked on."""
        reason = " ".join(reason.split())
        self._put(CaseRecord(name, FAILED, input=str(source), reason=reason, source=_known(source), deaths=deaths))

    def _put(self, record: CaseRecord) -> None:
        record.settings, record.run = self.settings, self.run_id
        # Names of files are bytes, and may not be text; JSON is.
        record.input = record.input.encode("utf-8", "replace").decode("utf-8")
        record.seconds = {stage: round(seconds, 3) for stage, seconds in record.seconds.items()}
        self.write_header()
        self._assemble_now_and_then(self.records.put(record))

    def write_header(self) -> None:
        """Make the run known; of many workers of one run, whoever has begun it has done so."""
        path = self.state / "runs" / f"{self.run_id}.json"
        if not self._header_written and not path.exists():
            write_json(path, self.header)
        self._header_written = True

    def _assemble_now_and_then(self, written: Path) -> None:
        """Renew the tables, unless somebody has done it lately; both times are the file system's own."""
        try:
            age = written.stat().st_mtime - (self.out / RUN_JSON).stat().st_mtime
        except FileNotFoundError:
            age = self._pause
        if age >= self._pause:
            self.assemble(rounds=1)

    def assemble_what_is_new(self) -> None:
        """For a run that is interrupted: if it has recorded anything, the tables are to say so."""
        if self._header_written:
            self.assemble(rounds=1)

    def assemble(self, rounds: int = _ROUNDS) -> None:
        """Write run.json and lesions.csv from all records."""
        start = time.perf_counter()
        for _ in range(rounds):
            seen = self.records.listing()
            records = sorted(self.records.all(), key=lambda record: str(record["name"]))
            write_csv(self.out / LESIONS_CSV, _lesion_rows(records))
            write_text(self.out / RUN_JSON, self._run_json(records))
            if self.records.listing() == seen:
                break
        self._pause = max(PAUSE_SECONDS, _PAUSE_PER_SECOND * (time.perf_counter() - start))

    def _run_json(self, records: list[dict[str, Any]]) -> str:
        runs = [{"run": path.stem, **read_json(path)} for path in sorted((self.state / "runs").glob("[!.]*.json"))]
        newest = {key: value for key, value in (runs[-1] if runs else self.header).items() if key != "run"}
        counts = {status: sum(record["status"] == status for record in records) for status in (DONE, FAILED)}
        # Models and options are in full for each run only where they differ from the newest.
        brief = [
            {k: v for k, v in run.items() if k in {"run", "started", "host"} or newest.get(k) != v} for run in runs
        ]
        head = json.dumps({**newest, "counts": counts, "runs": brief}, indent=2, ensure_ascii=False)
        return f'{head.removesuffix("}").rstrip()},\n  "cases": {{{_one_a_line(records)}}}\n}}\n'


def _known(source: Path) -> str:
    return fingerprint(source) if source.exists() else ""


def _one_a_line(records: Iterable[dict[str, Any]]) -> str:
    """The cases as JSON, one a line: indented, ten thousand take ten times as long to write."""
    lines = (
        f"\n    {_text(r['name'])}: {_text({key: value for key, value in r.items() if key != 'name'})}" for r in records
    )
    return ",".join(lines)


def _text(content: Any) -> str:
    return json.dumps(content, ensure_ascii=False)


def _lesion_rows(records: list[dict[str, Any]]) -> Iterator[list[Any]]:
    yield ["case", *_LESION_COLUMNS]
    for record in records:
        for lesion in record.get("lesions", ()):
            yield [record["name"], *(_cell(lesion.get(column)) for column in _LESION_COLUMNS)]


def _cell(value: Any) -> Any:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value
