"""KiTS from where it is published: images from Hugging Face, masks from GitHub, every file checked."""

from __future__ import annotations

import csv
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from filelock import FileLock, Timeout

from kits_cascade.data.source_case import check_gzip, unpack
from kits_cascade.data.transfer import Expected, Meter, Patience, Stopped, Transfer, TransferError
from kits_cascade.errors import DatasetError, FileFormatError, UsageError
from kits_cascade.files import read_json, write_json
from kits_cascade.volumes.kits import DATASET_CASES, case_id, parse_cases

IMAGES: Final = "neheller/KiTS-Challenge-Imaging"
MASKS_COMMIT: Final = "c1088353084c17b8882a11db71429e7c022b7785"
MASKS_URL: Final = f"https://raw.githubusercontent.com/neheller/kits23/{MASKS_COMMIT}/dataset"
INDEX_FILE: Final = "download.json"
_SAVE_SECONDS: Final = 1.0

Changed = Callable[[Meter], None]


@dataclass(frozen=True)
class Source:
    """Where the files come from."""

    images: str = IMAGES
    revision: str = "main"
    endpoint: str | None = None  # of Hugging Face; None: what HF_ENDPOINT says
    masks_url: str = MASKS_URL


@dataclass
class DownloadReport:
    """What became of each file."""

    folder: Path
    fetched: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    bytes: int = 0

    @property
    def exit_code(self) -> int:
        """1 when a file is missing, 2 when all are."""
        if not self.failed:
            return 0
        return 1 if self.fetched or self.kept else 2


@dataclass(frozen=True)
class _File:
    case: str
    kind: str  # imaging or segmentation

    @property
    def name(self) -> str:
        """Path in the folder."""
        return f"{self.case}/{self.kind}.nii.gz"

    @property
    def plain(self) -> str:
        """Path of the unpacked file."""
        return f"{self.case}/{self.kind}.nii"


def mask_table() -> dict[str, Expected]:
    """Size and git blob SHA-1 of every published mask at the pinned commit."""
    text = (files("kits_cascade.data") / "segmentation_blobs.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(text.splitlines())
    return {row["case"]: Expected(int(row["bytes"]), git_sha1=row["git_blob_sha1"]) for row in rows}


def download_dataset(
    out: Path,
    *,
    dataset: str = "kits23",
    cases: str | None = None,
    workers: int = 8,
    uncompressed: bool = False,
    verify: bool = False,
    source: Source | None = None,
    patience: Patience | None = None,
    changed: Changed | None = None,
) -> DownloadReport:
    """Fetch the cases into ``out``, in the layout of the challenge's repository.

    Files that are there and right are not fetched again; broken off ones are continued. ``verify`` reads all files
    again, also those that were found right before and have not changed since.
    """
    if dataset not in DATASET_CASES:
        raise UsageError(f"there is no data set {dataset!r}; take one of {', '.join(DATASET_CASES)}")
    numbers = parse_cases(cases, DATASET_CASES[dataset])
    wanted = [_File(case_id(number), kind) for number in numbers for kind in ("segmentation", "imaging")]
    with _alone(out):
        run = _Download(out, source or Source(), patience or Patience(), changed, verify=verify, unpacked=uncompressed)
        return run.all(wanted, workers)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Two downloads into one folder would write the same parts."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / ".download.lock", timeout=0)
        with lock:
            yield
    except Timeout as error:
        raise UsageError(f"another download into {out} is running") from error
    except OSError as error:
        raise DatasetError(f"cannot write to {out}: {error.strerror or error}") from error


class _Index:
    """What was found right, by size and time, so that a second run need not read 30 GB again."""

    def __init__(self, out: Path) -> None:
        self.out, self._file = out, out / INDEX_FILE
        self._lock, self._saved = threading.Lock(), time.monotonic()
        try:
            self._known: dict[str, Any] = dict(read_json(self._file)["files"])
        except (OSError, ValueError, KeyError, TypeError):
            self._known = {}  # it only saves time: without it, files are checked again

    def knows(self, name: str, digest: str | None = None) -> bool:
        """The file is there, unchanged since it was found right (as the content ``digest``)."""
        entry, path = self._known.get(name), self.out / name
        if entry is None or not path.is_file() or (digest is not None and entry["digest"] != digest):
            return False
        status = path.stat()
        return bool(entry["size"] == status.st_size and entry["mtime_ns"] == status.st_mtime_ns)

    def add(self, name: str, digest: str) -> None:
        status = (self.out / name).stat()
        with self._lock:
            self._known[name] = {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "digest": digest}
            if time.monotonic() - self._saved > _SAVE_SECONDS:
                self._save()

    def save(self) -> None:
        with self._lock:
            self._save()

    def _save(self) -> None:
        write_json(self._file, {"files": dict(sorted(self._known.items()))})
        self._saved = time.monotonic()


class _Download:
    """One run: files to threads, outcomes to the report."""

    def __init__(
        self, out: Path, source: Source, patience: Patience, changed: Changed | None, *, verify: bool, unpacked: bool
    ) -> None:
        self.out, self.source, self.patience, self.changed = out, source, patience, changed
        self.verify, self.unpacked = verify, unpacked
        self.index, self.masks = _Index(out), mask_table()
        self.report = DownloadReport(out)
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._silent = 0  # files in a row for which no server answered

    def all(self, wanted: list[_File], workers: int) -> DownloadReport:
        """Fetch what is not known to be right."""
        todo = [file for file in wanted if not self._known(file)]
        self.report.kept = [file.name for file in wanted if file not in set(todo)]
        if todo:
            meter = Meter(len(todo), self.changed)
            transfer = Transfer(self.patience, meter, self._stop)
            try:
                self._in_threads(transfer, todo, workers)
            finally:
                self.index.save()
            self.report.bytes = meter.done
        self.report.fetched.sort()
        self.report.kept.sort()
        self.report.failed = dict(sorted(self.report.failed.items()))
        return self.report

    def _known(self, file: _File) -> bool:
        mask = self.masks.get(file.case) if file.kind == "segmentation" else None
        if self.verify or not self.index.knows(file.name, mask.digest if mask else None):
            return False
        return not self.unpacked or self.index.knows(file.plain)

    def _in_threads(self, transfer: Transfer, todo: list[_File], workers: int) -> None:
        """Daemon threads: after Ctrl-C nobody has to wait for a server that keeps a thread waiting."""
        waiting, problems = deque(todo), deque[BaseException]()

        def work() -> None:
            while not self._stop.is_set():
                try:
                    file = waiting.popleft()
                except IndexError:
                    return
                try:
                    self._guarded(transfer, file, too_many=2 * workers)
                except BaseException as error:
                    problems.append(error)
                    self._stop.set()

        threads = [threading.Thread(target=work, daemon=True) for _ in range(min(workers, len(todo)))]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        except BaseException:
            self._stop.set()
            raise
        if problems:
            raise problems[0]

    def _guarded(self, transfer: Transfer, file: _File, *, too_many: int) -> None:
        """One file, and its line in the report."""
        if self._silent >= too_many:
            self.report.failed[file.name] = f"not tried, since {self._silent} files in a row got no answer"
            return
        try:
            outcome = self._one(transfer, file)
        except TransferError as error:
            self.report.failed[file.name] = str(error)
            with self._lock:
                self._silent = 0 if error.lasting else self._silent + 1
        except FileFormatError as error:
            self.report.failed[file.name] = str(error)
        except Stopped:
            return
        else:
            outcome.append(file.name)
            self._silent = 0
        transfer.meter.add(files=1)

    def _one(self, transfer: Transfer, file: _File) -> list[str]:
        """Fetch, check and unpack; the list of the report that the file belongs to."""
        path, outcome = self.out / file.name, self.report.kept
        url, expected = self._expected(transfer, file)
        if path.is_file() and expected.mismatch(path) is None:
            transfer.meter.add(sized=1)
        else:
            transfer.fetch(url, path, expected, credentials=file.kind == "imaging")
            outcome = self.report.fetched
        if not expected.has_checksum:
            check_gzip(path)
        self.index.add(file.name, expected.digest)
        if self.unpacked and not (outcome is self.report.kept and self.index.knows(file.plain, expected.digest)):
            unpack(path, self.out / file.plain)
            self.index.add(file.plain, expected.digest)
        return outcome

    def _expected(self, transfer: Transfer, file: _File) -> tuple[str, Expected]:
        if file.kind == "segmentation":
            return f"{self.source.masks_url.rstrip('/')}/{file.name}", self.masks[file.case]
        return transfer.published(
            self.source.images, self.source.revision, f"images/{file.case}.nii.gz", self.source.endpoint
        )
