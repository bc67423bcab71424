"""Which case comes next: what is neither finished, nor in work elsewhere, nor not to be tried again."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from kits_cascade.errors import UsageError
from kits_cascade.runs.claims import Claims
from kits_cascade.runs.events import Progress
from kits_cascade.runs.manifest import RunManifest
from kits_cascade.runs.records import DONE, CaseRecord
from kits_cascade.runs.sweep import sweep_strays
from kits_cascade.volumes.find import InputCase
from kits_cascade.words import some

DEATHS_ALLOWED: Final = 3  # workers that a case may cost before it is set aside


@dataclass
class Picker:
    """Picks cases for one process."""

    manifest: RunManifest
    claims: Claims
    progress: Progress
    overwrite: bool = False
    verify: bool = False  # read finished results
    retry: bool = False  # try again what was set aside
    first: int | None = None  # where to begin, if whoever has begun the run has seen to the rest of what start() does
    busy: list[InputCase] = field(default_factory=list)  # what another process has, as far as seen
    began: float = 0.0

    def start(self, cases: Sequence[InputCase]) -> list[InputCase]:
        """The cases in the order in which to work: elsewhere than others, so that they seldom meet."""
        self.began = self.claims.now()
        first = self.first
        if first is None:
            self._check_earlier(cases)
            if self.claims.others_alive():
                first = random.randrange(len(cases)) if cases else 0
        if first is not None:
            return [*cases[first:], *cases[:first]]
        sweep_strays(self.manifest.out)
        self.tidy(cases)
        return list(cases)

    def _check_earlier(self, cases: Sequence[InputCase]) -> None:
        """Results of other options, models or devices are not mixed with these, and not replaced unasked."""
        if self.overwrite:
            return
        names = {case.name for case in cases}
        other = [name for name in self.manifest.made_otherwise() if name in names]
        if other:
            raise UsageError(
                f"{self.manifest.out} holds {len(other)} of these cases ({some(other, 3)}) made with other options, "
                "models or devices (see its run.json). Give --overwrite to make them anew, or another output folder"
            )

    def free(self, cases: Sequence[InputCase]) -> Iterator[InputCase]:
        """Claim what is free, pass over what is settled, and put into ``busy`` what another process has."""
        self.busy = []
        for case in cases:
            if self._settled(case, self.manifest.records.last_seen(case.name)):
                continue
            if not self.claims.take(case.name):
                self.busy.append(case)
            elif self._settled(case, self.manifest.record(case.name)):  # by another process, a moment ago
                self.claims.release(case.name)
            elif self.claims.deaths(case.name) >= DEATHS_ALLOWED:
                self._set_aside(case)
            else:
                yield case

    def open(self, cases: Sequence[InputCase]) -> list[InputCase]:
        """The cases that are not settled, whoever may be at work on them."""
        return [case for case in cases if not self._settled(case, self.manifest.records.last_seen(case.name))]

    def is_suspect(self, case: InputCase) -> bool:
        """Whether a worker has died while it had the case."""
        return self.claims.deaths(case.name) > 0

    def _settled(self, case: InputCase, record: CaseRecord | None) -> bool:
        """Whether there is nothing to do for a case: it is finished, or not to be tried again."""
        if record is None:
            return False
        if self._finished_before(case, record):
            self.progress.skipped(case.name, record.verdict)
            return True
        if self._failed_for_good(case, record):
            self.progress.failed(case.name, record.reason)
            return True
        return False

    def _finished_before(self, case: InputCase, record: CaseRecord) -> bool:
        if self.overwrite and not self._of_this_run(record):
            return False
        return self.manifest.counts_as_done(record, case.path, verify=self.verify)

    def _failed_for_good(self, case: InputCase, record: CaseRecord) -> bool:
        """What failed is tried again by another run, not by each of many workers; what killed workers, on request."""
        if not self.manifest.counts_as_failed(record, case.path):
            return False
        aside = record.deaths > 0 and not (self.retry or self.overwrite)
        return aside or self._of_this_run(record)

    def _of_this_run(self, record: CaseRecord) -> bool:
        """Whether a case was worked on by this run, or by another one since this one began."""
        return record.run == self.manifest.run_id or self.manifest.records.written(record.name) > self.began

    def _set_aside(self, case: InputCase) -> None:
        deaths = self.claims.deaths(case.name)
        reason = f"{deaths} workers died while they had it, most often because memory ran out; --retry tries it again"
        self.progress.failed(case.name, reason)
        self.manifest.failed(case.name, case.path, reason, deaths)
        self.claims.release(case.name)

    def tidy(self, cases: Sequence[InputCase]) -> None:
        """Remove claims of processes that died after they had finished their case."""
        files = set(self.claims.files())
        for case in cases if files else ():
            if self.claims.claimed(case.name, files) and self._is_done(case):
                self.claims.tidy(case.name)

    def _is_done(self, case: InputCase) -> bool:
        record = self.manifest.record(case.name)
        return record is not None and record.status == DONE and self.manifest.counts_as_done(record, case.path)
