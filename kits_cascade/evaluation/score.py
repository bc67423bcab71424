"""From folders to a table of scores: each case in its own process, each bad case by name."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from kits_cascade.errors import DatasetError, UsageError
from kits_cascade.evaluation.lesions import LesionScore, score_lesions, summarise_lesions
from kits_cascade.evaluation.metrics import METRICS, TARGETS, Scores, score_pair
from kits_cascade.evaluation.pairs import Finding, pair_up, read_pair
from kits_cascade.evaluation.statistics import mean_with_interval
from kits_cascade.files import read_json, write_csv, write_json, write_text
from kits_cascade.labels import REGION_NAMES
from kits_cascade.parallel import Progress, run_cases
from kits_cascade.version import __version__
from kits_cascade.volumes.kits import contrast_phase
from kits_cascade.volumes.volume import Array, Spacing

OFFICIAL_CSV: Final = "evaluation.csv"
FULL_JSON: Final = "evaluation.json"
CASES_CSV: Final = "cases.csv"
OFFICIAL_METRICS: Final = (("Dice", "dice"), ("SD", "surface_dice"))
OFFICIAL_COLUMNS: Final = tuple(f"{short}_{region}" for short, _ in OFFICIAL_METRICS for region in REGION_NAMES)


@dataclass(frozen=True)
class CaseScore:
    """All numbers of one case."""

    case: str
    scores: Scores
    lesions: tuple[LesionScore, ...]
    spacing: Spacing

    @property
    def phase(self) -> str | None:
        """Contrast phase, where the challenge states it."""
        return contrast_phase(self.case)

    @property
    def official(self) -> tuple[float, ...]:
        """The challenge's six numbers, in the order of its columns."""
        return tuple(self.scores[region][metric] for _, metric in OFFICIAL_METRICS for region in REGION_NAMES)

    @property
    def mean_dice(self) -> float:
        """Mean Dice over the three regions."""
        return float(np.mean(self.official[:3]))

    @property
    def mean_surface_dice(self) -> float:
        """Mean surface Dice over the three regions."""
        return float(np.mean(self.official[3:]))

    def false_alarms(self, kind: str) -> int:
        """Predicted lesions of a kind that are none."""
        return sum(le.kind == kind and le.verdict == "false alarm" for le in self.lesions)

    def missed(self, kind: str) -> int:
        """Lesions of a kind that were not found."""
        return sum(le.kind == kind and le.verdict == "missed" for le in self.lesions)

    def to_json(self) -> dict[str, Any]:
        """For evaluation.json; undefined numbers are null."""
        scores = {t: {m: _none(v) for m, v in by_metric.items()} for t, by_metric in self.scores.items()}
        return {
            "case": self.case,
            "phase": self.phase,
            "spacing_mm": list(self.spacing),
            "scores": scores,
            "lesions": [lesion.to_json() for lesion in self.lesions],
        }

    @staticmethod
    def from_json(content: dict[str, Any]) -> CaseScore:
        """The inverse of :meth:`to_json`."""
        scores = {
            t: {m: math.nan if v is None else float(v) for m, v in by_metric.items()}
            for t, by_metric in content["scores"].items()
        }
        z, y, x = content["spacing_mm"]
        lesions = tuple(LesionScore.from_json(lesion) for lesion in content["lesions"])
        return CaseScore(content["case"], scores, lesions, (z, y, x))


def _none(value: float) -> float | None:
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class ScoreTable:
    """The scores of a folder, and what could not be scored."""

    cases: tuple[CaseScore, ...]
    findings: tuple[Finding, ...] = ()
    sources: dict[str, str] = field(default_factory=dict)

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Cases that have a prediction and a truth, and yet no score."""
        return tuple(finding for finding in self.findings if finding.kind == "error")

    @property
    def official(self) -> Array:
        """(cases, 6): the challenge's numbers."""
        return np.array([case.official for case in self.cases]).reshape(-1, len(OFFICIAL_COLUMNS))

    @property
    def average(self) -> dict[str, float]:
        """The challenge's averages by column; nothing where nothing was scored."""
        return dict(zip(OFFICIAL_COLUMNS, self.official.mean(axis=0).tolist(), strict=True)) if self.cases else {}

    @property
    def worst_first(self) -> tuple[CaseScore, ...]:
        """By mean Dice and surface Dice over the regions."""
        return tuple(sorted(self.cases, key=lambda c: (c.mean_dice + c.mean_surface_dice, c.case)))

    def official_csv(self) -> str:
        """To the letter what the challenge's evaluation writes: 8 decimals, no newline at the end."""
        rows = [(case.case, case.official) for case in self.cases]
        rows.append(("average", tuple(self.average.values())))
        lines = [",".join((name, *(f"{value:0.8f}" for value in values))) for name, values in rows]
        return "\n".join((",".join(("caseID", *OFFICIAL_COLUMNS)), *lines))

    def case_rows(self) -> Iterator[list[Any]]:
        """A row per case with all metrics of all targets; undefined numbers are empty."""
        names = [(target.name, metric.name) for target in TARGETS for metric in METRICS]
        kinds = [(kind, what) for kind in ("tumor", "cyst") for what in ("missed", "false_alarms")]
        yield ["case", "phase", *(f"{t}_{m}" for t, m in names), *(f"{kind}_{what}" for kind, what in kinds)]
        for case in self.cases:
            values = [_none(case.scores[t][m]) for t, m in names]
            counts = [getattr(case, what)(kind) for kind, what in kinds]
            shown = ["" if v is None else f"{v:.8g}" for v in values]
            yield [case.case, case.phase or "", *shown, *counts]

    def summary(self) -> dict[str, Any]:
        """Means with bootstrap intervals, and lesions: of all cases, and per contrast phase where there are two."""
        groups = {"all": self.cases}
        phases = sorted({case.phase for case in self.cases if case.phase})
        for phase in phases if len(phases) > 1 else ():
            groups[phase] = tuple(case for case in self.cases if case.phase == phase)
        return {name: _summary(cases) for name, cases in groups.items()}

    def to_json(self) -> dict[str, Any]:
        """All there is to know."""
        return {
            "program": f"kits-cascade {__version__}",
            **self.sources,
            "average": self.average,
            "summary": self.summary() if self.cases else {},
            "findings": [vars(finding) for finding in self.findings],
            "cases": [case.to_json() for case in self.cases],
        }

    def write(self, folder: Path) -> None:
        """evaluation.csv, evaluation.json and cases.csv; a folder that nothing was scored in keeps what it has."""
        if not self.cases:
            return
        write_text(folder / OFFICIAL_CSV, self.official_csv())
        write_csv(folder / CASES_CSV, self.case_rows())
        write_json(folder / FULL_JSON, self.to_json())

    @staticmethod
    def read(path: Path) -> ScoreTable:
        """From evaluation.json."""
        try:
            content = read_json(path)
            cases = tuple(CaseScore.from_json(case) for case in content["cases"])
            findings = tuple(Finding(**finding) for finding in content["findings"])
        except (ValueError, KeyError, TypeError) as error:
            raise DatasetError(f"{path}: not written by kits-cascade evaluate ({error!r}); run it again") from error
        return ScoreTable(cases, findings, {k: content[k] for k in ("predictions", "truth") if k in content})


def _summary(cases: tuple[CaseScore, ...]) -> dict[str, Any]:
    metrics = {
        target.name: {m.name: mean_with_interval([c.scores[target.name][m.name] for c in cases]) for m in METRICS}
        for target in TARGETS
    }
    return {
        "cases": len(cases),
        "mean_dice": mean_with_interval([case.mean_dice for case in cases]),
        "mean_surface_dice": mean_with_interval([case.mean_surface_dice for case in cases]),
        "metrics": metrics,
        "lesions": summarise_lesions([case.lesions for case in cases]),
    }


def check_writable(folder: Path) -> None:
    """Raise before the work, not after it, where results cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be made ({error.strerror}); give another folder with -o") from error
    if not os.access(folder, os.W_OK):
        raise UsageError(f"{folder}: cannot be written to; give another folder with -o")


def score_case(item: tuple[str, Path, Path], allow_float: bool = False) -> CaseScore:
    """Read, check and score one case."""
    pair = read_pair(*item, allow_float=allow_float)
    return CaseScore(item[0], score_pair(pair), score_lesions(pair), pair.spacing)


def evaluate_folder(
    pred: Path,
    truth: Path,
    out: Path | None = None,
    *,
    jobs: int | None = 1,
    progress: Progress | None = None,
    allow_float: bool = False,
) -> ScoreTable:
    """Score a folder of predictions, and write the tables to ``out`` where it is given.

    Cases that cannot be scored, and cases without a partner, are the table's findings. ``jobs=None`` takes all
    processors; a script that asks for more than one process must guard its main part, as multiprocessing wants it.
    """
    pairing = pair_up(pred, truth)
    if out is not None:
        check_writable(out)
    items = [(case, (case, prediction, true)) for case, prediction, true in pairing.pairs]
    scored, failed = [], []
    work = functools.partial(score_case, allow_float=allow_float)
    for outcome in run_cases(work, items, jobs=jobs, progress=progress):
        if outcome.result is not None:
            scored.append(outcome.result)
        else:
            failed.append(Finding("error", outcome.name, outcome.failure or "failed"))
    table = ScoreTable(
        tuple(sorted(scored, key=lambda c: c.case)),
        tuple(sorted((*pairing.findings, *failed), key=lambda f: (f.kind, f.case))),
        {"predictions": str(pred), "truth": str(truth)},
    )
    if out is not None:
        table.write(out)
    return table
