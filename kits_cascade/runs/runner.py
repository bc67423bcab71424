"""The cascade over many cases: nothing lost, nothing done twice, one bad case never takes the others along.

While the networks work on one case, the next one is read and the last one written. At most these three are in memory.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Final

from kits_cascade.background import Background
from kits_cascade.errors import CaseError, KitsCascadeError, UsageError
from kits_cascade.inference.cascade import Cascade, ScanCheck
from kits_cascade.runs.claims import Claims
from kits_cascade.runs.dicom_results import remarks_on
from kits_cascade.runs.events import Listener, Progress, Summary
from kits_cascade.runs.manifest import RunManifest
from kits_cascade.runs.outputs import FinishedCase, write_outputs
from kits_cascade.runs.pick import Picker
from kits_cascade.runs.records import DONE, CaseRecord
from kits_cascade.runs.sweep import sweep_own_strays
from kits_cascade.volumes.cases import LoadedCase, load_case, result_path
from kits_cascade.volumes.dicom_sr import Findings
from kits_cascade.volumes.find import InputCase

log = logging.getLogger(__name__)
_PATIENCE_SECONDS: Final = 3.0  # how long an interrupted run lets the case that is being written come to its end
_WAIT_SECONDS: Final = 2.0  # between two looks at what others are at work on
_Read = tuple[LoadedCase, ScanCheck, float]  # and the seconds that reading took


class DiskFullError(KitsCascadeError):
    """The output folder has no room left."""


class Runner:
    """Runs the cascade over cases into an output folder."""

    def __init__(
        self,
        load: Callable[[], Cascade],
        out: Path,
        manifest: RunManifest,
        overwrite: bool = False,
        listener: Listener | None = None,
        *,
        wait: bool = False,
        verify: bool = False,
        retry: bool = False,
        first: int | None = None,
    ) -> None:
        """``load`` gives the cascade; it is called when there is a case to work on.

        ``wait``: until the cases that others have are finished, or are to be taken over. ``verify``: finished results
        are read. ``retry``: cases that were set aside are tried again. ``first``: where one of many workers begins.
        """
        self._load, self.out, self.manifest = load, out, manifest
        self.overwrite, self.wait = overwrite, wait
        self.progress = Progress(listener)
        self.claims = Claims(out)
        self.picker = Picker(manifest, self.claims, self.progress, overwrite, verify, retry, first)
        self._writing: Background[None] | None = None
        self._being_written = ""

    @cached_property
    def cascade(self) -> Cascade:
        """The cascade, loaded when it is first needed: before a case is to blame for what happens."""
        cascade = self._load()
        header = self.manifest.header
        header["device"] = cascade.device or header["device"]  # what is used, not what was asked for
        header["computed_with"] = cascade.computed_with
        self.manifest.write_header()
        self.claims.ready()
        return cascade

    def run(self, cases: Sequence[InputCase]) -> Summary:
        """Work on all cases that need it."""
        unfinished = None
        try:
            self._work_on_all(self.picker.start(cases))
            if self.picker.first is None:  # else whoever has begun the run does it, once for all workers
                self.manifest.assemble()
                self.picker.tidy(cases)
        except KeyboardInterrupt:
            unfinished = self._let_writing_end()
            sweep_own_strays(self.out)
            if self.picker.first is None:
                self.manifest.assemble_what_is_new()
            raise
        except OSError as error:
            if _no_room(error):
                raise self._full(error) from error
            raise
        finally:
            self.claims.close(unfinished)
        return self.progress.summary

    def _work_on_all(self, cases: Sequence[InputCase]) -> None:
        """Those of other processes come once more at the end, and again and again if we are to wait for them."""
        self._work_on_free(cases)
        self._work_on_free(self.picker.busy)
        while self.wait and self.picker.busy:
            waiting = f"waiting for {len(self.picker.busy)} cases that others are at work on"
            self.progress.stage(self.picker.busy[0].name, waiting)
            time.sleep(_WAIT_SECONDS)
            self._work_on_free(self.picker.busy)
        for case in self.picker.busy:
            self.progress.elsewhere(case.name)

    def _work_on_free(self, cases: Sequence[InputCase]) -> None:
        """Work on the cases that nobody has, one by one."""
        waiting = self.picker.free(cases)
        ahead = self._read_next(waiting)
        while ahead is not None:
            case, reading = ahead
            self.progress.stage(case.name, "reading")
            reading.wait()
            alone = self.picker.is_suspect(case)  # of having killed a worker: then no other case shares its fate
            ahead = None if alone else self._read_next(waiting)
            # From here on this call alone holds the image, and lets it go as early as it can.
            self._work_on(case, [reading])
            del reading
            if alone:
                self._wait_for_writing()
                ahead = self._read_next(waiting)
        self._wait_for_writing()

    def _read_next(self, waiting: Iterator[InputCase]) -> tuple[InputCase, Background[_Read]] | None:
        case = next(waiting, None)
        if case is None:
            return None
        reading = Background(lambda: self._read(case)) if self._may_be_read_early(case) else None
        _ = self.cascade
        return case, reading or Background(lambda: self._read(case))

    def _may_be_read_early(self, case: InputCase) -> bool:
        """While the networks are loaded.

        A worker's death in this time would not count as a try of the case, and its successor would die of it as well:
        so workers of a crew load the networks first, and so does whoever has a suspect.
        """
        return self.picker.first is None and not self.picker.is_suspect(case)

    def _read(self, case: InputCase) -> _Read:
        start = time.perf_counter()
        target = result_path(case, self.out)
        if target.exists() and not self.overwrite and not self._known(case):
            raise CaseError(
                case.name, f"{target} is there already, and no run of this folder has made it; move it away"
            )
        loaded = load_case(case)
        seconds = time.perf_counter() - start
        return loaded, ScanCheck.of(loaded), seconds

    def _known(self, case: InputCase) -> bool:
        """Whether a result file is ours: recorded, or of a run that was killed before it could record it."""
        return self.manifest.record(case.name) is not None or self.claims.taken_over(case.name)

    def _work_on(self, case: InputCase, reading: list[Background[_Read]]) -> None:
        try:
            loaded, scan, seconds = reading.pop().result()
            result = self.cascade.run(loaded, lambda stage: self.progress.stage(case.name, stage), scan)
            result.seconds["reading"] = seconds
            finished = FinishedCase.of(loaded, result)
            del loaded
        except Exception as error:
            self._failed(case, error)
            return
        self._wait_for_writing()
        self._being_written = case.name
        self._writing = Background(lambda: self._write(finished))

    def _write(self, finished: FinishedCase) -> None:
        start = time.perf_counter()
        case, result = finished.loaded.case, finished.result
        if not self.claims.holds(case.name):  # we stood still for so long that another process has taken it over
            self.picker.busy.append(case)
            return
        record = _record(finished)
        finished.pack()
        try:
            record.volumes_ml, lesions = finished.measure()
            record.judge(finished.check(record.volumes_ml, lesions))
            finished.findings = Findings(lesions, record.volumes_ml, remarks_on(record))
            finished.networks = self.manifest.networks
            path = write_outputs(self.out, finished, self.cascade.options)
            record.seconds = {**result.seconds, "writing": time.perf_counter() - start}
            self.manifest.done(record, path, case.path, lesions)
        except Exception as error:
            self._failed(case, error)
            return
        self.claims.release(case.name)
        self.progress.done(record)

    def _failed(self, case: InputCase, error: Exception) -> None:
        """Name the case and go on, unless the reason will stop every other case too."""
        if _no_room(error):
            raise self._full(error) from error
        if isinstance(error, UsageError):
            raise error
        log.debug("%s failed", case.name, exc_info=error)
        reason = _reason(error)
        self.progress.failed(case.name, reason)
        self.manifest.failed(case.name, case.path, reason)
        self.claims.release(case.name)

    def _full(self, error: Exception) -> DiskFullError:
        return DiskFullError(
            f"no room left in {self.out} ({error}); what is finished is whole and kept. Free some space and run the "
            "same command again to go on"
        )

    def _wait_for_writing(self) -> None:
        if self._writing is not None:
            self._writing.wait()  # an interruption while it waits must still find it
            writing, self._writing = self._writing, None
            writing.result()

    def _let_writing_end(self) -> str | None:
        """Wait a little for the case that is being written; its name, if that was not enough."""
        if self._writing is None or self._writing.wait(_PATIENCE_SECONDS):
            return None
        return self._being_written


def _record(finished: FinishedCase) -> CaseRecord:
    loaded, result = finished.loaded, finished.result
    return CaseRecord(
        loaded.case.name,
        DONE,
        input=str(loaded.case.path),
        boxes=[box.to_json() for box in result.boxes],
        crops=[box.to_json() for box in result.crops],
        warnings=[*loaded.warnings, *result.warnings],
        notes=result.notes,
        geometry={"shape": list(loaded.volume.stored.shape), "spacing": list(loaded.volume.spacing)},
    )


def _reason(error: Exception) -> str:
    if isinstance(error, CaseError):
        return error.reason
    if isinstance(error, KitsCascadeError):
        return " ".join(str(error).split())
    if isinstance(error, MemoryError):
        return "does not fit into memory"
    text = " ".join(str(error).split())
    if "out of memory" in text.lower():
        return "the device's memory does not suffice; use --device cpu, or a GPU with more memory"
    return f"{type(error).__name__}: {text[:300]}"


def _no_room(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
