"""The cascade over many cases: nothing lost, nothing done twice, one bad case never takes the others along.

While the networks work on one case, the next one is read and the last one written. At most these three are in memory.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from kits_cascade.errors import CaseError, KitsCascadeError, UsageError
from kits_cascade.files import TEMPORARY_MARK, sweep_temporary
from kits_cascade.inference.cascade import Cascade
from kits_cascade.inference.plausibility_finding import DOUBTFUL, IMPLAUSIBLE
from kits_cascade.runs.background import Background
from kits_cascade.runs.claims import Claims
from kits_cascade.runs.dicom_results import remarks_on
from kits_cascade.runs.manifest import CaseRecord, RunManifest
from kits_cascade.runs.outputs import FinishedCase, write_outputs
from kits_cascade.volumes.cases import LoadedCase, load_case, result_path
from kits_cascade.volumes.dicom_sr import Findings
from kits_cascade.volumes.find import InputCase
from kits_cascade.words import some

log = logging.getLogger(__name__)
_PATIENCE_SECONDS: Final = 3.0  # how long an interrupted run lets the case that is being written come to its end

STAGE, DONE, FAILED, SKIPPED, ELSEWHERE = "stage", "done", "failed", "skipped", "elsewhere"


@dataclass(frozen=True)
class Event:
    """What a progress display may show."""

    case: str
    kind: str  # stage, done, failed, skipped or elsewhere
    text: str = ""


Listener = Callable[[Event], None]


@dataclass
class Summary:
    """What became of the cases."""

    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  # finished before
    failed: dict[str, str] = field(default_factory=dict)
    elsewhere: list[str] = field(default_factory=list)  # another process works on them
    verdicts: dict[str, str] = field(default_factory=dict)  # of all that are finished

    @property
    def exit_code(self) -> int:
        """0: all well; 1: some cases failed; 2: nothing could be done."""
        if not self.failed:
            return 0
        return 1 if self.done or self.skipped or self.elsewhere else 2

    @property
    def not_plausible(self) -> dict[str, list[str]]:
        """The cases with another verdict than plausible, the worst verdict first."""
        found = {word: [n for n, v in self.verdicts.items() if v == word] for word in (IMPLAUSIBLE, DOUBTFUL)}
        return {word: names for word, names in found.items() if names}


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
    ) -> None:
        """``load`` gives the cascade; it is called when the first case is being read."""
        self._load, self.out, self.manifest = load, out, manifest
        self.overwrite = overwrite
        self.tell = listener or (lambda _: None)
        self.summary = Summary()
        self.claims = Claims(out)
        self._writing: Background[None] | None = None

    def run(self, cases: Sequence[InputCase]) -> Summary:
        """Work on all cases that need it."""
        self._check_earlier(cases)
        if not self.claims.others_alive():
            _sweep(self.out, self.manifest.state)
        waiting = self._claimed(cases)
        try:
            ahead = self._read_next(waiting)
            if ahead is not None:
                self.cascade = self._load()
            while ahead is not None:
                case, reading = ahead
                self.tell(Event(case.name, STAGE, "reading"))
                reading.wait()
                ahead = self._read_next(waiting)
                # From here on this call alone holds the image, and lets it go as early as it can.
                self._work_on(case, [reading])
                del reading
            self._wait_for_writing()
            self.manifest.assemble()
        except KeyboardInterrupt:
            self._let_writing_end()
            raise
        except OSError as error:
            if _no_room(error):
                raise self._full(error) from error
            raise
        finally:
            self.claims.close()
            _remove_own_strays(self.out)
        return self.summary

    def _check_earlier(self, cases: Sequence[InputCase]) -> None:
        """Results of other options or models are not mixed with these, and not replaced unasked."""
        if self.overwrite:
            return
        names = {case.name for case in cases}
        other = [name for name in self.manifest.made_otherwise() if name in names]
        if other:
            raise UsageError(
                f"{self.out} holds {len(other)} of these cases ({some(other, 3)}) made with other options or models "
                "(see its run.json). Give --overwrite to make them anew, or another output folder"
            )

    def _claimed(self, cases: Sequence[InputCase]) -> Iterator[InputCase]:
        """The cases that are ours to work on, claimed one by one; those of other processes once more at the end."""
        busy: list[InputCase] = []
        yield from self._takeable(cases, busy)
        elsewhere: list[InputCase] = []
        yield from self._takeable(busy, elsewhere)
        for case in elsewhere:
            self.summary.elsewhere.append(case.name)
            self.tell(Event(case.name, ELSEWHERE, "another process works on it"))

    def _takeable(self, cases: Sequence[InputCase], busy: list[InputCase]) -> Iterator[InputCase]:
        """Claim what is free, pass over what is finished, and put into ``busy`` what another process holds."""
        for case in cases:
            if self._finished_before(case):
                self.claims.tidy(case.name)
                self._tell_skipped(case)
            elif self.claims.take(case.name):
                if self._ours(case):
                    yield case
            else:
                busy.append(case)

    def _ours(self, case: InputCase) -> bool:
        """Whether a claimed case still needs work: another process may have finished it a moment ago."""
        if not self._finished_before(case):
            return True
        self.claims.release(case.name)
        self._tell_skipped(case)
        return False

    def _finished_before(self, case: InputCase) -> bool:
        if self.overwrite:
            record = self.manifest.record(case.name)
            return record is not None and record.run == self.manifest.run_id
        return self.manifest.is_done(case.name, case.path)

    def _tell_skipped(self, case: InputCase) -> None:
        if case.name not in self.summary.done and case.name not in self.summary.skipped:
            self.summary.skipped.append(case.name)
            record = self.manifest.record(case.name)
            self.summary.verdicts[case.name] = "" if record is None else record.verdict
            self.tell(Event(case.name, SKIPPED, "finished before"))

    def _read_next(self, waiting: Iterator[InputCase]) -> tuple[InputCase, Background[tuple[LoadedCase, float]]] | None:
        case = next(waiting, None)
        if case is None:
            return None
        return case, Background(lambda: self._read(case))

    def _read(self, case: InputCase) -> tuple[LoadedCase, float]:
        start = time.perf_counter()
        target = result_path(case, self.out)
        if target.exists() and not self.overwrite and not self._known(case):
            raise CaseError(
                case.name, f"{target} is there already, and no run of this folder has made it; move it away"
            )
        loaded = load_case(case)
        return loaded, time.perf_counter() - start

    def _known(self, case: InputCase) -> bool:
        """Whether a result file is ours: recorded, or of a run that was killed before it could record it."""
        return self.manifest.record(case.name) is not None or self.claims.taken_over(case.name)

    def _work_on(self, case: InputCase, reading: list[Background[tuple[LoadedCase, float]]]) -> None:
        try:
            loaded, seconds = reading.pop().result()
            result = self.cascade.run(loaded, lambda stage: self.tell(Event(case.name, STAGE, stage)))
            result.seconds["reading"] = seconds
            finished = FinishedCase.of(loaded, result)
            del loaded
        except Exception as error:
            self._failed(case, error)
            return
        self._wait_for_writing()
        self._writing = Background(lambda: self._write(finished))

    def _write(self, finished: FinishedCase) -> None:
        start = time.perf_counter()
        case, result = finished.loaded.case, finished.result
        record = _record(finished)
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
        self.summary.done.append(case.name)
        self.summary.verdicts[case.name] = record.verdict
        self.tell(Event(case.name, DONE, "; ".join([*record.doubts, *record.warnings])))

    def _failed(self, case: InputCase, error: Exception) -> None:
        """Name the case and go on, unless the reason will stop every other case too."""
        if _no_room(error):
            raise self._full(error) from error
        if isinstance(error, UsageError):
            raise error
        log.debug("%s failed", case.name, exc_info=error)
        reason = _reason(error)
        self.summary.failed[case.name] = reason
        self.tell(Event(case.name, FAILED, reason))
        self.manifest.failed(case.name, case.path, reason)
        self.claims.release(case.name)

    def _full(self, error: Exception) -> DiskFullError:
        return DiskFullError(
            f"no room left in {self.out} ({error}); what is finished is whole and kept. Free some space and run the "
            "same command again to go on"
        )

    def _wait_for_writing(self) -> None:
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def _let_writing_end(self) -> None:
        if self._writing is not None:
            self._writing.wait(_PATIENCE_SECONDS)


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


def part_of(cases: Sequence[InputCase], part: str | None) -> list[InputCase]:
    """Every N-th case, for a run with ``--part I/N``; all without it."""
    if part is None:
        return list(cases)
    first, _, count = part.partition("/")
    if not (first.isdigit() and count.isdigit() and int(first) < int(count)):
        raise UsageError(f"--part {part}: give I/N, with I from 0 to N-1, such as 0/2 and 1/2")
    return list(cases[int(first) :: int(count)])


def _sweep(out: Path, state: Path) -> None:
    """Remove what killed processes have left behind."""
    places = [out, out / "probabilities", *(out / "stages").glob("*"), state, *state.glob("*")]
    for place in places:
        if place.is_dir():
            sweep_temporary(place)


def _remove_own_strays(folder: Path) -> None:
    for path in folder.glob(f"{TEMPORARY_MARK}{os.getpid()}-*"):
        with suppress(OSError):
            path.unlink(missing_ok=True)
