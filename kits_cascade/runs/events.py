"""What a run tells: case by case to whoever listens, and all in all at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from kits_cascade.inference.plausibility_finding import DOUBTFUL, IMPLAUSIBLE
from kits_cascade.runs.records import DONE, FAILED, CaseRecord

STAGE: Final = "stage"
SKIPPED: Final = "skipped"
ELSEWHERE: Final = "elsewhere"


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


class Progress:
    """Puts what happens into a summary, and tells it."""

    def __init__(self, listener: Listener | None = None) -> None:
        self.tell = listener or (lambda _: None)
        self.summary = Summary()

    def stage(self, case: str, text: str) -> None:
        """A case is being worked on."""
        self.tell(Event(case, STAGE, text))

    def done(self, record: CaseRecord) -> None:
        """A case is finished; said once."""
        if record.name not in self.summary.verdicts:
            self.summary.done.append(record.name)
            self.summary.verdicts[record.name] = record.verdict
            self.tell(Event(record.name, DONE, "; ".join([*record.doubts, *record.warnings])))

    def skipped(self, case: str, verdict: str) -> None:
        """A case was finished before; said once."""
        if case not in self.summary.verdicts:
            self.summary.skipped.append(case)
            self.summary.verdicts[case] = verdict
            self.tell(Event(case, SKIPPED, "finished before"))

    def failed(self, case: str, reason: str) -> None:
        """A case cannot be finished; said once."""
        if case not in self.summary.failed:
            self.summary.failed[case] = reason
            self.tell(Event(case, FAILED, reason))

    def elsewhere(self, case: str) -> None:
        """A case is left to another process."""
        self.summary.elsewhere.append(case)
        self.tell(Event(case, ELSEWHERE, "another process works on it"))
