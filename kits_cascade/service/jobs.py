"""Jobs of the HTTP service: a bounded queue, one worker with the networks, a folder for each that nobody can name."""

from __future__ import annotations

import logging
import queue
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Final

import numpy as np

from kits_cascade.errors import CaseError, KitsCascadeError, MissingExtraError
from kits_cascade.files import write_json
from kits_cascade.inference.cascade import Cascade
from kits_cascade.report.run_info import Judgement
from kits_cascade.report.viewer import write_view
from kits_cascade.runs.dicom_results import remarks_on
from kits_cascade.runs.outputs import FinishedCase, write_outputs
from kits_cascade.runs.records import DONE, FAILED, CaseRecord
from kits_cascade.service import reader
from kits_cascade.service.handover import restore_case
from kits_cascade.service.isolation import run_apart
from kits_cascade.service.uploads import Limits, RefusedError
from kits_cascade.volumes.cases import LoadedCase
from kits_cascade.volumes.volume import Array

log = logging.getLogger(__name__)
WAITING, WORKING = "waiting", "working"  # and then done or failed
_KEPT: Final = 32  # finished jobs whose results can be fetched
_READERS: Final = 2  # uploads that are read at the same time, each by a process of its own
_VIEW: Final = "view.html"


class BusyError(KitsCascadeError):
    """Everything that can wait is waiting."""


@dataclass
class Job:
    """One upload, and what became of it."""

    id: str
    folder: Path
    state: str = WAITING
    text: str = ""  # the stage, or why it failed
    record: CaseRecord | None = None  # of its result
    remarks: list[str] = field(default_factory=list)  # what could not be written, and why
    files: dict[str, Path] = field(default_factory=dict)  # by what clients call them

    def to_json(self) -> dict[str, Any]:
        """What a client sees."""
        shown: dict[str, Any] = {"id": self.id, "state": self.state, "text": self.text}
        if self.state != DONE or self.record is None:
            return shown
        told = {name: getattr(self.record, name) for name in ("verdict", "findings", "volumes_ml", "lesions")}
        return shown | told | {"warnings": [*self.record.warnings, *self.remarks], "files": sorted(self.files)}


class Jobs:
    """All jobs of a server. Methods may be called from any thread."""

    def __init__(self, cascade: Cascade, folder: Path, waiting: int = 4, limits: Limits | None = None) -> None:
        """``folder`` is the server's own, and is removed with it."""
        self.limits = limits or Limits()
        self._cascade, self._folder = cascade, folder
        self._places = threading.BoundedSemaphore(waiting)
        self._readers = threading.BoundedSemaphore(_READERS)
        self._queue: queue.Queue[tuple[Job, LoadedCase] | None] = queue.Queue()
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()
        self._worker = threading.Thread(target=self._work, daemon=True, name="cascade")
        self._worker.start()

    def reserve(self) -> None:
        """Take a place in the queue, before anything is received. Raises BusyError."""
        if not self._places.acquire(blocking=False):
            raise BusyError("all places in the queue are taken; try again later")

    def release(self) -> None:
        """Give back a place for which no job came about."""
        self._places.release()

    def accept(self, stream: IO[bytes]) -> Job:
        """Make a job of what was sent, in the place that was reserved; where it is refused, the place is free again."""
        job = Job(secrets.token_urlsafe(16), self._folder / secrets.token_hex(16))
        job.folder.mkdir(parents=True)
        try:
            loaded = self._read(stream, job.folder)
        except BaseException:
            shutil.rmtree(job.folder, ignore_errors=True)
            self.release()
            raise
        with self._lock:
            self._jobs[job.id] = job
        self._queue.put((job, loaded))
        return job

    def _read(self, stream: IO[bytes], folder: Path) -> LoadedCase:
        with (folder / reader.UPLOAD).open("wb") as target:
            shutil.copyfileobj(stream, target)
        with self._readers:
            run_apart(reader.READ, folder, self.limits)
        return restore_case(folder, self.limits)

    def get(self, name: str) -> Job | None:
        """By its id: looked up, never made a path of."""
        with self._lock:
            return self._jobs.get(name)

    def forget(self, name: str) -> bool:
        """Remove a finished job with all its files."""
        with self._lock:
            job = self._jobs.get(name)
            if job is None or job.state in (WAITING, WORKING):
                return False
            del self._jobs[name]
        shutil.rmtree(job.folder, ignore_errors=True)
        return True

    def close(self, seconds: float = 10.0) -> None:
        """End after the job in work, or after a while, and remove everything."""
        self._queue.put(None)
        self._worker.join(seconds)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            job, loaded = item
            job.state = WORKING
            start = time.perf_counter()
            try:
                with _without_images(job):
                    self._segment(job, loaded)
                job.state, job.text = DONE, f"{time.perf_counter() - start:.1f} s"
            except Exception as error:  # whatever a client's file does, the next job is another client's
                log.debug("job failed", exc_info=error)
                job.state, job.text = FAILED, _reason(error)
            self.release()
            self._prune()

    def _segment(self, job: Job, loaded: LoadedCase) -> None:
        result = self._cascade.run(loaded, lambda stage: setattr(job, "text", stage))
        finished = FinishedCase.of(loaded, result)
        volumes_ml, lesions = finished.measure()
        record = CaseRecord("image", DONE, warnings=[*loaded.warnings, *result.warnings], volumes_ml=volumes_ml)
        record.lesions = [asdict(row) for row in lesions]
        record.judge(finished.check(volumes_ml, lesions))
        job.record = record
        labels = write_outputs(job.folder / "out", finished, self._cascade.options)
        job.files = {"labels": labels} | self._extras(job, record, loaded, result.labels)

    def _extras(self, job: Job, record: CaseRecord, loaded: LoadedCase, labels: Array) -> dict[str, Path]:
        """The page, and SEG and SR of a DICOM series, where the packages for them are installed."""
        files = {}
        judged = Judgement.of(record.verdict, record.findings, record.lesions, record.warnings)
        with _without_extra(job, "3-D page"):
            shown = loaded.volume.with_array(labels)
            files["view"] = write_view(job.folder / _VIEW, "image", loaded.volume, shown, judged=judged)
        if loaded.case.kind == "dicom":
            with _without_extra(job, "DICOM SEG"):
                files |= self._dicom(job, record, labels)
        return files

    def _dicom(self, job: Job, record: CaseRecord, labels: Array) -> dict[str, Path]:
        np.save(job.folder / reader.LABELS, labels, allow_pickle=False)
        said = {"lesions": record.lesions, "volumes_ml": record.volumes_ml, "remarks": remarks_on(record)}
        write_json(job.folder / reader.FINDINGS, said)
        run_apart(reader.DICOM, job.folder, self.limits)
        return {path.stem: path for path in sorted((job.folder / reader.RESULTS).glob("*.dcm"))}

    def _prune(self) -> None:
        with self._lock:
            over = [name for name, job in self._jobs.items() if job.state in (DONE, FAILED)][:-_KEPT]
        for name in over:
            self.forget(name)


@contextmanager
def _without_extra(job: Job, what: str) -> Iterator[None]:
    try:
        yield
    except (MissingExtraError, RefusedError) as error:
        job.remarks.append(f"no {what}: {error}")


@contextmanager
def _without_images(job: Job) -> Iterator[None]:
    """Afterwards there are results, which are kept for a while, and nothing of the patient's images."""
    try:
        yield
    finally:
        kept = {path.relative_to(job.folder).parts[0] for path in job.files.values()}
        for path in job.folder.iterdir():
            if path.is_dir() and path.name not in kept:
                shutil.rmtree(path, ignore_errors=True)
            elif path.name not in kept:
                path.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    if isinstance(error, CaseError):
        return error.reason
    if isinstance(error, KitsCascadeError):
        return str(error)
    return "does not fit into memory" if isinstance(error, MemoryError) else type(error).__name__
