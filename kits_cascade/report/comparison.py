"""Systems side by side: one table (CSV, JSON) and one page, with figures for each class and never only a mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from kits_cascade.evaluation.metrics import TARGETS
from kits_cascade.evaluation.ranking import Ranking, System, rank_systems
from kits_cascade.evaluation.score import CaseScore, ScoreTable
from kits_cascade.files import write_csv, write_json, write_text
from kits_cascade.report.figures import case_panel, sagittal_strip
from kits_cascade.report.page import render
from kits_cascade.volumes.nifti import read_header, read_labels, read_volume
from kits_cascade.volumes.volume import affine_spacing

COMPARISON_HTML: Final = "comparison.html"
COMPARISON_CSV: Final = "comparison.csv"
COMPARISON_JSON: Final = "comparison.json"
_SHOWN: Final = ("dice", "surface_dice", "iou", "volumetric_similarity", "hd")
# A mean over all voxels that looks like a success, and a class whose Dice is none: then the page says so.
_LOOKS_GOOD: Final = 0.95
_IS_BAD: Final = 0.5
_CURVE: Final = (220, 60)  # width and height of a learning curve


@dataclass(frozen=True)
class Costs:
    """What a system took; None where it is not known."""

    parameters: int | None = None
    training_h: float | None = None
    training_processor_h: float | None = None
    predict_s: float | None = None  # per case, on the clock, with starting and loading
    peak_mb: float | None = None  # of the largest process of a prediction


@dataclass(frozen=True)
class SystemResult:
    """One system of a comparison."""

    name: str
    title: str
    failure: str = ""
    table: ScoreTable | None = None
    costs: Costs = field(default_factory=Costs)
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)  # pseudo Dice by epoch of each training
    predictions: Mapping[str, Path] = field(default_factory=dict)

    @property
    def scored(self) -> ScoreTable | None:
        """Scores, of a system that has gone through."""
        return None if self.failure else self.table


def background_iou(case: CaseScore, truth: Path) -> float:
    """IoU of the background: what a mean over all voxels is made of, whatever the masks are."""
    shape, affine, _ = read_header(truth)
    whole = float(np.prod(shape)) * float(np.prod(affine_spacing(affine))) / 1000
    scores = case.scores["kidney"]
    true, predicted = scores["truth_ml"], scores["truth_ml"] + scores["volume_error_ml"]
    both = scores["iou"] * (true + predicted) / (1 + scores["iou"]) if true + predicted else 0.0
    return (whole - (true + predicted - both)) / (whole - both)


@dataclass(frozen=True)
class Row:
    """A system in the table."""

    result: SystemResult
    rank: int | None
    summary: dict[str, Any] | None
    background: float | None

    @property
    def hidden(self) -> list[str]:
        """Classes that a mean with the background would hide, in words."""
        if self.summary is None or self.background is None or self.background < _LOOKS_GOOD:
            return []
        means = [(target, self.summary["metrics"][target.name]["dice"]["mean"]) for target in TARGETS]
        return [f"{t.title} Dice {mean:.3f}" for t, mean in means if mean is not None and mean < _IS_BAD]

    @property
    def curves(self) -> list[tuple[str, float, str]]:
        """Name, last value and SVG points of each learning curve."""
        return [(name, values[-1], _points(values)) for name, values in self.result.curves.items()]


def _points(values: Sequence[float]) -> str:
    width, height = _CURVE
    step = width / max(1, len(values) - 1)
    return " ".join(f"{i * step:.1f},{height * (1 - min(max(v, 0.0), 1.0)):.1f}" for i, v in enumerate(values))


def write_comparison(
    results: Sequence[SystemResult], out: Path, truths: Mapping[str, Path], images: Mapping[str, Path], budget: str
) -> Path:
    """Write comparison.csv, .json and .html, and the pictures where there are images; the page."""
    ranking = rank_results(results)
    rows = _rows(results, ranking, truths)
    write_csv(out / COMPARISON_CSV, _table(rows))
    write_json(out / COMPARISON_JSON, _content(rows, ranking, budget))
    pictures = {row.result.name: draw_extremes(row.result, out / "pictures", truths, images) for row in rows}
    page = render(
        "comparison.html",
        title=f"Comparison of {len(results)} systems",
        budget=budget,
        rows=rows,
        ranking=ranking,
        targets=TARGETS,
        curve=_CURVE,
        pictures=pictures,
        cases=len(truths),
    )
    write_text(out / COMPARISON_HTML, page)
    return out / COMPARISON_HTML


def rank_results(results: Sequence[SystemResult]) -> Ranking | None:
    """The challenge's ranking of those that were scored, on the cases that all of them have."""
    systems = []
    for result in results:
        table = result.scored
        if table is not None:
            systems.append(
                System(result.name, tuple(c.case for c in table.cases), table.official, table.official.mean(axis=0))
            )
    return rank_systems(systems, common=True) if len(systems) > 1 else None


def _rows(results: Sequence[SystemResult], ranking: Ranking | None, truths: Mapping[str, Path]) -> list[Row]:
    """Best first; those that failed at the end."""
    ranks = {place.name: place.rank for place in ranking.places} if ranking else {}
    rows = []
    for result in results:
        table = result.scored
        background = None
        if table is not None:
            background = float(np.mean([background_iou(case, truths[case.case]) for case in table.cases]))
        summary = None if table is None else table.summary()["all"]
        rows.append(Row(result, ranks.get(result.name, 1 if table else None), summary, background))
    return sorted(rows, key=lambda row: (row.rank is None, row.rank or 0, row.result.name))


def _table(rows: Sequence[Row]) -> list[list[Any]]:
    measures = [(target.name, metric) for target in TARGETS for metric in _SHOWN]
    head = ["system", "rank", "failed", "cases", "mean_dice", "mean_dice_low", "mean_dice_high"]
    head += [f"{target}_{metric}{end}" for target, metric in measures for end in ("", "_low", "_high")]
    head += [f"{kind}_{what}" for kind in ("tumor", "cyst") for what in ("sensitivity", "false_alarms_per_case")]
    return [[*head, "background_iou", *Costs.__dataclass_fields__], *(_line(row, measures) for row in rows)]


def _line(row: Row, measures: Sequence[tuple[str, str]]) -> list[Any]:
    costs = [_cell(value) for value in asdict(row.result.costs).values()]
    summary = row.summary
    if summary is None:
        empty = [""] * (4 + 3 * len(measures) + 4 + 1)
        return [row.result.name, "", row.result.failure or "nothing was scored", *empty, *costs]
    line = [row.result.name, row.rank, "", summary["cases"], *_interval(summary["mean_dice"])]
    for target, metric in measures:
        line += _interval(summary["metrics"][target][metric])
    for kind in ("tumor", "cyst"):
        found = summary["lesions"][kind]["all"]
        line += [_cell(found["sensitivity"]["value"]), _cell(found["false_alarms_per_case"])]
    return [*line, _cell(row.background), *costs]


def _interval(value: Mapping[str, Any]) -> list[str]:
    return [_cell(value[key]) for key in ("mean", "low", "high")]


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _content(rows: Sequence[Row], ranking: Ranking | None, budget: str) -> dict[str, Any]:
    systems = [
        {
            "system": row.result.name,
            "title": row.result.title,
            "failed": row.result.failure or None,
            "rank": row.rank,
            "background_iou": row.background,
            "hidden_by_the_background": row.hidden,
            "summary": row.summary,
            "costs": asdict(row.result.costs),
            "learning_curves": {name: list(values) for name, values in row.result.curves.items()},
        }
        for row in rows
    ]
    return {"budget": budget, "systems": systems, "ranking": ranking.to_json() if ranking else None}


def draw_extremes(
    result: SystemResult, folder: Path, truths: Mapping[str, Path], images: Mapping[str, Path]
) -> list[tuple[str, str, list[str]]]:
    """Best, median and worst case in three planes and as a sagittal strip: caption, case, files beside the page."""
    table = result.scored
    if table is None or not images:
        return []
    order = [case.case for case in reversed(table.worst_first)]
    chosen = {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}
    drawn = []
    for word, case in chosen.items():
        image, truth = read_volume(images[case]), read_labels(truths[case])
        prediction = read_labels(result.predictions[case])
        files = [folder / f"{result.name}-{word}{end}.png" for end in ("", "-strip")]
        case_panel(image, truth, prediction, files[0], f"{result.name}: {word} case, {case}")
        sagittal_strip(image, truth, prediction, files[1])
        drawn.append((word, case, [f"{folder.name}/{file.name}" for file in files]))
    return drawn
