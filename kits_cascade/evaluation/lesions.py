"""Lesion by lesion: which tumours and cysts were found, which were missed, and which are false alarms."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from kits_cascade.evaluation.metrics import LabelPair
from kits_cascade.evaluation.statistics import wilson
from kits_cascade.labels import CYST, LABEL_NAMES, TUMOR
from kits_cascade.volumes.components import components
from kits_cascade.volumes.geometry import Box
from kits_cascade.volumes.volume import Array

KINDS: Final = (TUMOR, CYST)
# A lesion counts as found when this share of its own volume is covered. One rule for both directions, and it bears
# lesions that the prediction splits or joins, where a rule by IoU calls a found tumour missed.
MATCH: Final = 0.1
# Bands of the diameter of the sphere of equal volume, in mm. 40 and 70 mm divide the stages T1a, T1b and T2.
BANDS: Final = ((0.0, 5.0), (5.0, 10.0), (10.0, 20.0), (20.0, 40.0), (40.0, 70.0), (70.0, math.inf))


@dataclass(frozen=True)
class LesionScore:
    """One component of one class in the truth or in the prediction."""

    kind: str  # tumor or cyst
    source: str  # truth or prediction
    volume_ml: float
    diameter_mm: float  # of the sphere of equal volume
    covered: float  # share of it that the other side gives the same class
    covered_as_mass: float  # share of it that the other side calls tumor or cyst

    @property
    def matched(self) -> bool:
        """In the truth: detected. In the prediction: no false alarm."""
        return self.covered >= MATCH

    @property
    def confused(self) -> bool:
        """Seen by the other side, but as the other class."""
        return not self.matched and self.covered_as_mass >= MATCH

    @property
    def verdict(self) -> str:
        """In a word."""
        if self.source == "truth":
            return "detected" if self.matched else "missed"
        return "correct" if self.matched else "false alarm"

    def to_json(self) -> dict[str, Any]:
        """For evaluation.json."""
        return {**vars(self), "verdict": self.verdict, "confused": self.confused}

    @staticmethod
    def from_json(content: dict[str, Any]) -> LesionScore:
        """The inverse of :meth:`to_json`."""
        return LesionScore(**{name: content[name] for name in LesionScore.__dataclass_fields__})


def sphere_diameter(volume_mm3: float) -> float:
    """Diameter in mm of the sphere of a volume."""
    return float((6 * volume_mm3 / math.pi) ** (1 / 3))


def band_title(band: tuple[float, float]) -> str:
    """Such as 10-20 mm."""
    low, high = band
    if low == 0:
        return f"under {high:g} mm"
    return f"over {low:g} mm" if math.isinf(high) else f"{low:g}-{high:g} mm"


def score_lesions(pair: LabelPair) -> tuple[LesionScore, ...]:
    """All lesions of both sides, largest first within each kind and side."""
    masses = Box.around((pair.truth >= TUMOR) | (pair.prediction >= TUMOR))
    if masses is None:
        return ()
    truth, prediction = masses.crop(pair.truth), masses.crop(pair.prediction)
    found: list[LesionScore] = []
    for label in KINDS:
        found += _side(truth, prediction, label, "truth", pair.voxel_mm3)
        found += _side(prediction, truth, label, "prediction", pair.voxel_mm3)
    return tuple(found)


def _side(own: Array, other: Array, label: int, source: str, voxel_mm3: float) -> list[LesionScore]:
    mask = own == label
    if not mask.any():
        return []
    found = components(mask)
    inside = found.labels[mask]
    across = other[mask]
    size = found.count + 1
    voxels = np.bincount(inside, minlength=size)[1:]
    same = np.bincount(inside[across == label], minlength=size)[1:] / voxels
    mass = np.bincount(inside[across >= TUMOR], minlength=size)[1:] / voxels
    order = np.argsort(-voxels, kind="stable")
    return [
        LesionScore(
            LABEL_NAMES[label],
            source,
            float(voxels[i] * voxel_mm3 / 1000),
            sphere_diameter(float(voxels[i] * voxel_mm3)),
            float(same[i]),
            float(mass[i]),
        )
        for i in order
    ]


def summarise_lesions(cases: Sequence[Iterable[LesionScore]]) -> dict[str, Any]:
    """Detection and false alarms per kind: of all sizes, and by size band."""
    summary: dict[str, Any] = {}
    for label in KINDS:
        kind = LABEL_NAMES[label]
        own = [[lesion for lesion in case if lesion.kind == kind] for case in cases]
        summary[kind] = {
            "all": _summary(own, (0.0, math.inf)),
            "bands": {band_title(band): _summary(own, band) for band in BANDS},
        }
    return summary


def _summary(cases: Sequence[Sequence[LesionScore]], band: tuple[float, float]) -> dict[str, Any]:
    inside = [[lesion for lesion in case if band[0] <= lesion.diameter_mm < band[1]] for case in cases]
    truth = [lesion for case in inside for lesion in case if lesion.source == "truth"]
    predicted = [lesion for case in inside for lesion in case if lesion.source == "prediction"]
    detected, right = sum(lesion.matched for lesion in truth), sum(lesion.matched for lesion in predicted)
    alarmed = sum(any(le.source == "prediction" and not le.matched for le in case) for case in inside)
    return {
        "truth": len(truth),
        "detected": detected,
        "missed": len(truth) - detected,
        "missed_but_seen_as_other_class": sum(lesion.confused for lesion in truth),
        "sensitivity": wilson(detected, len(truth)),
        "predicted": len(predicted),
        "false_alarms": len(predicted) - right,
        "precision": wilson(right, len(predicted)),
        "false_alarms_per_case": (len(predicted) - right) / len(cases) if cases else None,
        "cases_with_false_alarm": wilson(alarmed, len(cases)),
    }
