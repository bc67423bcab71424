"""Many workers on one folder, through whatever has ``submit``: concurrent.futures, Dask, submitit, or our processes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final, Protocol

from kits_cascade.errors import KitsCascadeError
from kits_cascade.runs.claims import Claims
from kits_cascade.runs.events import Listener, Progress, Summary
from kits_cascade.runs.pick import DEATHS_ALLOWED, Picker
from kits_cascade.runs.records import DONE, Stamp
from kits_cascade.runs.sweep import sweep_strays
from kits_cascade.runs.workers import Job, run_loop
from kits_cascade.volumes.find import InputCase

_POLL_SECONDS: Final = 0.1
_LOOK_SECONDS: Final = 1.0  # between two looks at the records, or more where a look takes long
_LOOKS_SHARE: Final = 20.0


class Promise(Protocol):
    """What ``submit`` returns."""

    def done(self) -> bool:
        """Whether the work has ended, well or not."""

    def cancel(self) -> Any:
        """Not to be begun any more."""

    def result(self) -> Any:
        """What it returned; raises where its worker has died."""


class Executor(Protocol):
    """Whatever has ``submit``."""

    def submit(self, work: Any, /, *arguments: Any) -> Promise:
        """Have the work done elsewhere."""


class Crew:
    """Sends a loop to each worker, watches the records, and sends the loop of a dead worker again."""

    def __init__(self, job: Job, executor: Executor, workers: int, listener: Listener | None = None) -> None:
        self.job, self.executor, self.workers = job, executor, workers
        self.progress = Progress(listener)
        self.manifest = job.manifest()
        self.claims = Claims(job.out)
        self.picker = Picker(
            self.manifest, self.claims, self.progress, job.overwrite, verify=job.verify, retry=job.retry
        )
        self._seen: dict[str, Stamp] = {}
        self._next_look = 0.0
        self._deaths = 0  # since there was a new record
        self._errors: list[str] = []

    def run(self, cases: Sequence[InputCase]) -> Summary:
        """Work on all cases that need it."""
        try:
            self._cases = self.picker.open(self.picker.start(cases))
            self._seen = self.manifest.records.listing()
            if self._cases:
                self._run_loops(min(self.workers, len(self._cases)))
            self._conclude()
            if not self.claims.others_alive():
                sweep_strays(self.job.out)
            self.manifest.assemble()
            self.picker.tidy(cases)
        except KeyboardInterrupt:
            self.manifest.assemble_what_is_new()
            raise
        finally:
            self.claims.close()
        return self.progress.summary

    def _run_loops(self, count: int) -> None:
        loops = {number: self._submit(number, count) for number in range(count)}
        try:
            while loops:
                time.sleep(_POLL_SECONDS)
                self._look()
                for number in [number for number, loop in loops.items() if loop.done()]:
                    if not self._ended_well(loops.pop(number)):
                        loops[number] = self._submit(number, count)
        except BaseException:
            for loop in loops.values():  # those that have not begun; the others are whoever's who has the executor
                loop.cancel()
            raise

    def _submit(self, number: int, count: int) -> Promise:
        first = number * len(self._cases) // count
        return self.executor.submit(run_loop, self.job, tuple(self._cases), self.manifest.run_id, first)

    def _ended_well(self, loop: Promise) -> bool:
        """Whether a loop has come to its end; False where its worker has died."""
        try:
            error = loop.result()
        except Exception as death:
            self._look(at_once=True)
            self._deaths += 1
            # A case that kills costs three workers, and then has a record: more deaths than that have another cause.
            if self._deaths > DEATHS_ALLOWED * self.workers + 1:
                raise KitsCascadeError(
                    f"{self._deaths} workers died one after the other, and no case came to an end ({_line(death)}); "
                    "what is finished is kept: run the same again with fewer workers"
                ) from death
            return False
        if error:
            self._errors.append(str(error))
        return True

    def _look(self, *, at_once: bool = False) -> None:
        """Tell what the workers have recorded since the last look."""
        begin = time.monotonic()
        if begin < self._next_look and not at_once:
            return
        now = self.manifest.records.listing()
        for file in [file for file, stamp in now.items() if self._seen.get(file) != stamp]:
            self._deaths = 0
            self._tell(file.removesuffix(".json"))
        self._seen = now
        took = time.monotonic() - begin
        self._next_look = begin + max(_LOOK_SECONDS, _LOOKS_SHARE * took)

    def _tell(self, file: str) -> None:
        record = self.manifest.records.of_file(file)
        if record is None or record.run != self.manifest.run_id:
            return
        if record.status != DONE:
            self.progress.failed(record.name, record.reason)
        else:
            self.progress.done(record)

    def _conclude(self) -> None:
        """What became of the cases, whoever has done them."""
        self._look(at_once=True)
        known = {*self.progress.summary.done, *self.progress.summary.failed}
        left = self.picker.open([case for case in self._cases if case.name not in known])
        if self._errors:
            raise KitsCascadeError(self._errors[0])
        for case in left:
            self.progress.elsewhere(case.name)


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
