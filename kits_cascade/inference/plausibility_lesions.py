"""Are these lesions? Number, size, and whether label and values contradict each other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from kits_cascade.inference.certainty import LIKELY
from kits_cascade.inference.measure import LesionRow
from kits_cascade.inference.plausibility_finding import Hit
from kits_cascade.inference.plausibility_shapes import ResultFacts, voxel_at

# Simple cysts have 0 ... 20 HU, such with blood or protein up to 90 or 100 (Silverman et al., Bosniak classification,
# Radiology 2019). Below water there is only fat.
_CYST_HU: Final = (-45.0, 130.0)
# Angiomyolipomas are the tumours of fat (a note); none is of air, and none as dense as bone.
_TUMOR_HU: Final = (-250.0, 330.0)
_FATTY_HU: Final = -20.0
# What is smaller has too much of its surroundings in its mean.
_SMALLEST_ML: Final = 0.4
# At most 10 tumours and 13 cysts in 56 masks of KiTS23; networks out of their depth make hundreds.
_MOST: Final = {"tumor": 25, "cyst": 50}
_CRUMB_ML: Final = 0.15
_MOST_CRUMBS: Final = 30
# The largest tumours of KiTS23 have 2591 mL, all cysts of a case 937 mL (geometry.csv).
_LARGEST_ML: Final = {"tumor": 3000.0, "cyst": 1500.0}


def _hit(row: LesionRow, facts: ResultFacts, **values: float | str) -> Hit:
    place = voxel_at(facts.image, (row.x_mm, row.y_mm, row.z_mm))
    return Hit({"name": f"{row.kind} {row.number}", "hu": row.mean_hu, "ml": row.volume_ml, **values},
               (row.slice, place[1], place[2]), f"{row.kind} {row.number}")  # fmt: skip


def _of_kind(facts: ResultFacts, kind: str) -> list[LesionRow]:
    return [row for row in facts.lesions if row.kind == kind]


def _measurable(facts: ResultFacts, kind: str) -> Iterable[LesionRow]:
    return (row for row in _of_kind(facts, kind) if row.volume_ml >= _SMALLEST_ML)


def find_dense_cyst(facts: ResultFacts) -> Iterable[Hit]:
    """A cyst denser than blood."""
    for row in _measurable(facts, "cyst"):
        if row.mean_hu > _CYST_HU[1]:
            yield _hit(row, facts, limit=_CYST_HU[1])


def find_fatty_cyst(facts: ResultFacts) -> Iterable[Hit]:
    """A cyst of fat or air."""
    for row in _measurable(facts, "cyst"):
        if row.mean_hu < _CYST_HU[0]:
            yield _hit(row, facts, limit=_CYST_HU[0])


def find_strange_tumor(facts: ResultFacts) -> Iterable[Hit]:
    """A tumour of air or of bone."""
    for row in _measurable(facts, "tumor"):
        if not _TUMOR_HU[0] <= row.mean_hu <= _TUMOR_HU[1]:
            yield _hit(row, facts, low=_TUMOR_HU[0], high=_TUMOR_HU[1])


def find_fatty_tumor(facts: ResultFacts) -> Iterable[Hit]:
    """A tumour of fat."""
    for row in _measurable(facts, "tumor"):
        if _TUMOR_HU[0] <= row.mean_hu < _FATTY_HU:
            yield _hit(row, facts)


def find_many(facts: ResultFacts) -> Iterable[Hit]:
    """More than anyone has."""
    for kind, most in _MOST.items():
        rows = _of_kind(facts, kind)
        if len(rows) > most:
            yield _hit(rows[0], facts, count=len(rows), kind=kind, limit=most)


def find_confetti(facts: ResultFacts) -> Iterable[Hit]:
    """Crumbs instead of lesions."""
    crumbs = [row for row in facts.lesions if row.volume_ml < _CRUMB_ML]
    if len(crumbs) > _MOST_CRUMBS:
        yield _hit(crumbs[0], facts, count=len(crumbs), ml=_CRUMB_ML, limit=_MOST_CRUMBS)


def find_large(facts: ResultFacts) -> Iterable[Hit]:
    """All lesions of a kind together larger than any known."""
    for kind, most in _LARGEST_ML.items():
        rows = _of_kind(facts, kind)
        total = sum(row.volume_ml for row in rows)
        if total > most:
            yield _hit(max(rows, key=lambda row: row.volume_ml), facts, kind=kind, ml=total, limit=most)


def find_larger_than_kidneys(facts: ResultFacts) -> Iterable[Hit]:
    """More lesion than kidney."""
    tissue = sum(kidney.tissue_ml for kidney in facts.kidneys)
    total = sum(row.volume_ml for row in facts.lesions)
    if total > max(tissue, 100.0):
        yield _hit(max(facts.lesions, key=lambda row: row.volume_ml), facts, ml=total, tissue=tissue)


def find_unlikely(facts: ResultFacts) -> Iterable[Hit]:
    """A lesion like those that are more often wrong than right, by networks that were calibrated."""
    for row in facts.lesions:
        if row.confidence is not None and row.confidence < LIKELY:
            yield _hit(row, facts, confidence=row.confidence)
