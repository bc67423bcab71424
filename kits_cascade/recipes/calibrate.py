"""How often a lesion of a given certainty is right: measured on a run whose cases have a truth, and made a curve.

The cases must be such as the networks were not trained on: on those, everything looks sure and right.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from kits_cascade.errors import DatasetError
from kits_cascade.evaluation.lesions import score_lesions
from kits_cascade.evaluation.metrics import LabelPair
from kits_cascade.evaluation.pairs import check_same_geometry, header_spacing, pair_up, read_label_map
from kits_cascade.files import read_json
from kits_cascade.inference.certainty import calibrated, fit_calibration
from kits_cascade.models.calibration import Calibration

Rated = tuple[float, bool]  # a lesion's certainty, or what is made of it, and whether the lesion is right
_LEAST: Final = 20  # lesions: of fewer, a curve is an accident
_BINS: Final = 10


@dataclass(frozen=True)
class Bin:
    """A row of a reliability table."""

    low: float
    high: float
    lesions: int
    mean: float  # of what was said
    right: float  # share


def rate_lesions(run: Path, truth: Path) -> list[list[Rated]]:
    """Case by case, the certainty of each predicted lesion, and whether it is right as the lesion tables count."""
    try:
        records = read_json(run / "run.json")["cases"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{run}: no run.json of kits-cascade predict here ({error})") from error
    rated = []
    for case, prediction, true in pair_up(run, truth).pairs:
        rows = (records.get(case) or {}).get("lesions")
        if rows:
            rated.append(_rate_case(rows, prediction, true))
    return rated


def _rate_case(rows: Sequence[dict[str, Any]], prediction: Path, truth: Path) -> list[Rated]:
    check_same_geometry(prediction, truth)
    mine, true = read_label_map(prediction), read_label_map(truth)
    right = defaultdict(list)
    for score in score_lesions(LabelPair.cut(true.array, mine.array, header_spacing(mine))):
        if score.source == "prediction":
            right[score.kind].append(score.matched)
    # Both list the lesions of a kind by falling volume.
    return [
        (float(row["certainty"]), right[row["kind"]][row["number"] - 1])
        for row in rows
        if row.get("certainty") is not None and row["number"] <= len(right[row["kind"]])
    ]


def fit(cases: Sequence[Sequence[Rated]]) -> Calibration:
    """The curve of all lesions."""
    lesions = [row for case in cases for row in case]
    if len(lesions) < _LEAST:
        raise DatasetError(
            f"{len(lesions)} lesions with a certainty in {len(cases)} cases with a truth; at least {_LEAST} are needed"
        )
    slope, offset = fit_calibration(*zip(*lesions, strict=True))
    return Calibration(round(slope, 4), round(offset, 4), len(lesions), len(cases))


def rate_held_out(cases: Sequence[Sequence[Rated]]) -> list[Rated]:
    """What the curve of one half of the cases makes of the other half's lesions."""
    halves = [[row for case in cases[part::2] for row in case] for part in (0, 1)]
    if not all(halves):
        return []
    curves = [fit_calibration(*zip(*half, strict=True)) for half in halves]
    return [(calibrated(said, curves[1 - part]), right) for part in (0, 1) for said, right in halves[part]]


def tabulate(rated: Sequence[Rated]) -> tuple[list[Bin], float]:
    """The reliability table, and the expected calibration error: the mean distance of what was said from what is."""
    table, error = [], 0.0
    number = np.minimum([int(said * _BINS) for said, _ in rated], _BINS - 1)
    for index in range(_BINS):
        chosen = [row for row, at in zip(rated, number, strict=True) if at == index]
        if chosen:
            mean, right = (float(np.mean([row[k] for row in chosen])) for k in (0, 1))
            table.append(Bin(index / _BINS, (index + 1) / _BINS, len(chosen), mean, right))
            error += len(chosen) / len(rated) * abs(mean - right)
    return table, error
