"""What run.json of kits-cascade predict tells the report; folders of other programs have none, and that is fine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kits_cascade.files import read_json, sha256
from kits_cascade.runs.manifest import RUN_JSON
from kits_cascade.runs.records import FAILED

EDITED = "The labels have been changed after the networks made them."
_INSIDE_OTHERS = "network"  # the part of the stages' seconds that the networks took


@dataclass(frozen=True)
class Judgement:
    """How far a result is to be believed, by those who made it."""

    verdict: str = ""  # empty where nobody has looked
    findings: tuple[Mapping[str, Any], ...] = ()  # what the verdict rests on, as run.json has it, the gravest first
    certainty: Mapping[str, float] = field(default_factory=dict)  # by lesion, such as "tumor 1"
    confidence: Mapping[str, float] = field(default_factory=dict)  # the same; of networks that were calibrated
    remarks: tuple[str, ...] = ()

    @staticmethod
    def of(
        verdict: str,
        findings: Iterable[Mapping[str, Any]],
        lesions: Sequence[Mapping[str, Any]],
        remarks: Iterable[str] = (),
    ) -> Judgement:
        """From what the record of a case holds."""
        certainty, confidence = (_told_of(lesions, column) for column in ("certainty", "confidence"))
        return Judgement(verdict, tuple(findings), certainty, confidence, tuple(remarks))


def _told_of(lesions: Iterable[Mapping[str, Any]], column: str) -> dict[str, float]:
    """A column of the lesions' table by lesion, of those whose network has told it."""
    known = [row for row in lesions if row.get(column) is not None]
    return {f"{row['kind']} {row['number']}": float(row[column]) for row in known}


@dataclass(frozen=True)
class RunInfo:
    """A run in words."""

    out: Path
    content: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def read(out: Path) -> RunInfo:
        """From a folder of predictions."""
        try:
            content = read_json(out / RUN_JSON)
        except (OSError, ValueError):
            content = {}
        return RunInfo(out, content if isinstance(content, dict) else {})

    @property
    def cases(self) -> dict[str, Any]:
        """The records by case."""
        return dict(self.content.get("cases", {}))

    @property
    def about(self) -> list[tuple[str, str]]:
        """What is known about the run as a whole."""
        versions = ", ".join(f"{name} {version}" for name, version in dict(self.content.get("versions", {})).items())
        rows = [
            ("Started", str(self.content.get("started", ""))),
            ("Device", str(self.content.get("device", ""))),
            ("Models", "; ".join(_model(model) for model in self.content.get("models", []))),
            ("Options", ", ".join(_flat(self.content.get("options", {})))),
            ("Time per case", self._seconds()),
            ("Versions", versions),
        ]
        return [(name, value) for name, value in rows if value]

    def _seconds(self) -> str:
        known = [record["seconds"] for record in self.cases.values() if record.get("seconds")]
        totals = [sum(v for name, v in seconds.items() if name != _INSIDE_OTHERS) for seconds in known]
        return f"{np.mean(totals):.1f} s on average, {max(totals):.1f} s at most" if totals else ""

    @property
    def failed(self) -> list[tuple[str, str]]:
        """Cases that the run could not do, with the reason."""
        records = self.cases.items()
        return [(case, str(record.get("reason", ""))) for case, record in records if record.get("status") == FAILED]

    def remarks(self, case: str) -> list[str]:
        """Warnings and notes of a case."""
        record = self.cases.get(case, {})
        return [str(remark) for kind in ("warnings", "notes") for remark in record.get(kind, [])]

    def verdict(self, case: str) -> str:
        """Whether a result is plausible, doubtful or implausible; empty where nobody has looked."""
        return str(self.cases.get(case, {}).get("verdict", ""))

    def findings(self, case: str) -> list[dict[str, Any]]:
        """What the verdict rests on, the gravest first."""
        return [dict(finding) for finding in self.cases.get(case, {}).get("findings", [])]

    def judgement(self, case: str, labels: Path) -> Judgement:
        """All that is known of a case's result, whose label file is given; of labels that were changed since, less."""
        record, remarks = self.cases.get(case, {}), tuple(self.remarks(case))
        if record.get("result") and sha256(labels) != record["result"]:
            return Judgement(remarks=(EDITED, *remarks))
        return Judgement.of(self.verdict(case), self.findings(case), record.get("lesions", ()), remarks)

    def look_at(self, case: str) -> tuple[int, int, int] | None:
        """The place of the gravest finding that has one, unless all are mere notes."""
        grave = [f["where"] for f in self.findings(case) if f.get("where") and f.get("severity") != "note"]
        return (int(grave[0][0]), int(grave[0][1]), int(grave[0][2])) if grave else None

    @property
    def inputs(self) -> dict[str, Path]:
        """Where the images were, as far as they are still there."""
        found = {}
        for case, record in self.cases.items():
            given = str(record.get("input", ""))
            places = [place for place in (Path(given), self.out / given) if given and place.exists()]
            if places:
                found[case] = places[0]
        return found


def _model(model: Mapping[str, Any]) -> str:
    folds = ", ".join(map(str, model.get("folds", [])))
    parts = [str(model.get(key, "")) for key in ("trainer", "configuration")] + ([f"folds {folds}"] if folds else [])
    return f"{model.get('stage', 'model')}: {', '.join(filter(None, parts))}"


def _flat(options: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Options as words; those that are not set say nothing."""
    words: list[str] = []
    for key, value in options.items():
        if isinstance(value, Mapping):
            words += _flat(value, f"{prefix}{key}.")
        elif value is not None:
            words.append(f"{prefix}{key} {str(value).lower() if isinstance(value, bool) else value}")
    return words
