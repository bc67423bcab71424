"""What a check of plausibility is, what it finds, and the one word that sums the findings up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Generic, Literal, TypeVar

Severity = Literal["note", "doubt", "refuse"]
Verdict = Literal["plausible", "doubtful", "implausible"]
Place = tuple[int, int, int]
Facts = TypeVar("Facts")

PLAUSIBLE: Final[Verdict] = "plausible"
DOUBTFUL: Final[Verdict] = "doubtful"
IMPLAUSIBLE: Final[Verdict] = "implausible"
# One oddity makes a result doubtful: nature has many. This many different ones are hardly one person's.
_TOO_MANY: Final = 3


@dataclass(frozen=True)
class Hit:
    """Where a check is not passed: the numbers of its sentence, and where to look."""

    values: Mapping[str, Any] = field(default_factory=dict)
    where: Place | None = None  # canonical voxel z, y, x
    lesion: str = ""  # as lesions.csv has it, such as "tumor 2"


@dataclass(frozen=True)
class Finding:
    """What a check says about a case."""

    check: str
    severity: Severity
    text: str
    where: Place | None = None
    lesion: str = ""

    @property
    def look(self) -> str:
        """Where to look, in words; empty for what concerns the whole."""
        parts = [self.lesion, "" if self.where is None else f"slice {self.where[0]} from the feet"]
        return ", ".join(part for part in parts if part)

    def to_json(self) -> dict[str, Any]:
        """For run.json."""
        return {**asdict(self), "where": None if self.where is None else list(self.where), "look": self.look}


@dataclass(frozen=True)
class Check(Generic[Facts]):
    """A row of the table: its name, how grave it is, what it says (with the numbers of a hit), and its function."""

    name: str
    severity: Severity
    sentence: str
    find: Callable[[Facts], Iterable[Hit]]

    def run(self, facts: Facts) -> list[Finding]:
        """All it has to say about the facts."""
        return [
            Finding(self.name, self.severity, self.sentence.format(**hit.values), hit.where, hit.lesion)
            for hit in self.find(facts)
        ]


def run_checks(checks: Sequence[Check[Facts]], facts: Facts) -> list[Finding]:
    """The findings of all checks, the gravest first."""
    found = [finding for check in checks for finding in check.run(facts)]
    return sorted(found, key=lambda finding: ("refuse", "doubt", "note").index(finding.severity))


def verdict_of(findings: Iterable[Finding]) -> Verdict:
    """One word for a case."""
    grave = [finding for finding in findings if finding.severity != "note"]
    if any(f.severity == "refuse" for f in grave) or len({f.check for f in grave}) >= _TOO_MANY:
        return IMPLAUSIBLE
    return DOUBTFUL if grave else PLAUSIBLE
