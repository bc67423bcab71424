"""Are these kidneys? Number, size, place, values, edges."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from kits_cascade.inference.plausibility_finding import Hit
from kits_cascade.inference.plausibility_shapes import KidneyFacts, ResultFacts

# A kidney has 202 mL (men) and 154 mL (women) in the mean, 100 ... 300 nearly always (Cheong et al., CJASN 2007, by
# MRI); one that works for two reaches 400. The kidney label of a KiTS23 case has 68 ... 1061 mL for both together,
# tumours up to 2591 and cysts up to 937 (geometry.csv), so the upper limits are of what is labelled kidney. Two of the
# 489 have less than the lower limit for both together, one has more than the upper.
TISSUE_ML: Final = (12.0, 600.0)
BOTH_TISSUE_ML: Final = (90.0, 900.0)
_NO_TISSUE: Final = 0.02  # of a case's kidneys with masses
_WHOLE_ML: Final = 3500.0  # one kidney with its masses
# Parenchyma has 15 ... 40 HU plain, up to 250 in the arterial and nephrographic phase; the label holds some fat of
# the sinus and some urine, also where that is bright.
HU: Final = (-5.0, 330.0)
_SPREAD_HU: Final = 170.0
_FAT: Final = 0.18
_BONE: Final = 0.22
# At most of its surface a kidney borders on fat; on liver and muscle the step is small without contrast medium.
_EDGE: Final = 0.45
# Between kidney and lung there are fat and the diaphragm, and before it bowel, whose gas touches a little at most.
_AIR: Final = 0.2
_FLAT: Final = 0.62  # 0.41 is the most in 56 masks of KiTS23, 0.3 what nearly all stay below
_MOST: Final = 2
_PIECES: Final = 8
# From the middle of the spine. Kidneys lie at 40 ... 90 mm to either side, at the level of the vertebral bodies.
_BESIDE_MM: Final = (12.0, 140.0)
_BEFORE_MM: Final = (-70.0, 110.0)
_OUTSIDE: Final = 0.12
_ALIKE_HU: Final = 90.0
# In 96 masks of KiTS23 two kidneys lie up to 52 mm apart in height (one pair 100), up to 57 mm in depth, and up to
# 30 mm in their distance from the spine. The spleens of four people lie 39 ... 78 mm above the right kidney and
# 18 ... 33 mm further aside; with contrast medium they have at least 40 HU less; each difference alone is no wonder.
# 36 of 39 pairs of kidneys score 1.4 at most, a spleen beside a kidney 2.4 and more.
_OTHER_HU: Final = 25.0
_OTHER_ORGAN: Final = 2.0
_AS_FAR_APART: Final = (50.0, 80.0, 50.0, 30.0)  # HU; mm in height, in depth, in distance from the spine
_ALIKE_ML: Final = 6.0  # times; atrophy makes kidneys small, and the other one large


def _large(facts: ResultFacts) -> list[KidneyFacts]:
    """What may be told from: not the small rests that a border leaves."""
    return [kidney for kidney in facts.kidneys if kidney.tissue_ml >= TISSUE_ML[0]]


def find_empty(facts: ResultFacts) -> Iterable[Hit]:
    """No kidney at all."""
    if not facts.kidneys:
        yield Hit()


def find_one(facts: ResultFacts) -> Iterable[Hit]:
    """A single kidney."""
    if len(facts.kidneys) == 1:
        yield Hit({"ml": facts.kidneys[0].volume_ml}, facts.kidneys[0].centre)


def find_many(facts: ResultFacts) -> Iterable[Hit]:
    """More than two."""
    if len(facts.kidneys) > _MOST:
        yield Hit({"count": len(facts.kidneys)}, facts.kidneys[-1].centre)


def find_pieces(facts: ResultFacts) -> Iterable[Hit]:
    """Crumbs."""
    if len(facts.pieces) > _PIECES:
        yield Hit({"count": len(facts.pieces), "limit": _PIECES}, facts.pieces[0])


def find_small(facts: ResultFacts) -> Iterable[Hit]:
    """Too little kidney tissue, in one or in all; where the scan's border cuts it, that is no wonder."""
    both = sum(kidney.tissue_ml for kidney in facts.kidneys)
    if not facts.kidneys or any(kidney.cut for kidney in facts.kidneys):
        return
    if both < BOTH_TISSUE_ML[0]:
        yield Hit({"ml": both, "low": BOTH_TISSUE_ML[0]}, facts.kidneys[0].centre)


def find_no_tissue(facts: ResultFacts) -> Iterable[Hit]:
    """Masses with no kidney around them."""
    tissue, whole = (sum(getattr(kidney, name) for kidney in facts.kidneys) for name in ("tissue_ml", "volume_ml"))
    if whole and tissue < _NO_TISSUE * whole:
        yield Hit({"ml": tissue, "whole": whole}, facts.kidneys[0].centre)
        return
    for kidney in facts.kidneys:
        if kidney.tissue_ml < TISSUE_ML[0] and not kidney.cut and kidney.tissue_ml < 0.15 * kidney.volume_ml:
            yield Hit({"ml": kidney.tissue_ml, "whole": kidney.volume_ml}, kidney.centre)


def find_large(facts: ResultFacts) -> Iterable[Hit]:
    """Too much kidney tissue in one or in all, or too much of everything."""
    both = sum(kidney.tissue_ml for kidney in facts.kidneys)
    if both > BOTH_TISSUE_ML[1]:
        yield Hit({"what": "kidney tissue", "ml": both, "high": BOTH_TISSUE_ML[1]}, facts.kidneys[0].centre)
        return
    for kidney in facts.kidneys:
        if kidney.tissue_ml > TISSUE_ML[1]:
            yield Hit({"what": "one kidney", "ml": kidney.tissue_ml, "high": TISSUE_ML[1]}, kidney.centre)
        elif kidney.volume_ml > _WHOLE_ML:
            yield Hit({"what": "a kidney with masses", "ml": kidney.volume_ml, "high": _WHOLE_ML}, kidney.centre)


def find_values(facts: ResultFacts) -> Iterable[Hit]:
    """A median that no kidney has in any phase."""
    for kidney in _large(facts):
        if not HU[0] <= kidney.hu <= HU[1]:
            yield Hit({"hu": kidney.hu, "low": HU[0], "high": HU[1]}, kidney.centre)


def find_spread(facts: ResultFacts) -> Iterable[Hit]:
    """Values as of several organs."""
    for kidney in _large(facts):
        if kidney.hu_spread > _SPREAD_HU:
            yield Hit({"spread": kidney.hu_spread, "limit": _SPREAD_HU}, kidney.centre)


def find_fat(facts: ResultFacts) -> Iterable[Hit]:
    """Fat or air under the kidney label."""
    for kidney in _large(facts):
        if kidney.fat > _FAT:
            yield Hit({"share": kidney.fat, "limit": _FAT}, kidney.centre)


def find_bone(facts: ResultFacts) -> Iterable[Hit]:
    """Bone under the kidney label."""
    for kidney in _large(facts):
        if kidney.bone > _BONE:
            yield Hit({"share": kidney.bone, "limit": _BONE}, kidney.centre)


def find_edge(facts: ResultFacts) -> Iterable[Hit]:
    """A surface where there is none in the image."""
    for kidney in facts.kidneys:
        if kidney.edge < _EDGE:
            yield Hit({"share": kidney.edge, "limit": _EDGE}, kidney.centre)


def find_air(facts: ResultFacts) -> Iterable[Hit]:
    """A kidney in the lung, or at the skin."""
    for kidney in facts.kidneys:
        if kidney.air > _AIR:
            yield Hit({"share": kidney.air, "limit": _AIR}, kidney.centre)


def find_flat(facts: ResultFacts) -> Iterable[Hit]:
    """An end as if sawn off."""
    for kidney in facts.kidneys:
        if kidney.flat > _FLAT:
            yield Hit({"share": kidney.flat}, kidney.flat_at)


def find_cut(facts: ResultFacts) -> Iterable[Hit]:
    """The scan ends in the kidney."""
    for kidney in facts.kidneys:
        if kidney.cut:
            yield Hit({}, kidney.centre)


def find_outside(facts: ResultFacts) -> Iterable[Hit]:
    """Not in the body."""
    for kidney in facts.kidneys:
        if kidney.outside > _OUTSIDE and not kidney.cut:
            yield Hit({"share": kidney.outside}, kidney.centre)


def _beside_spine(facts: ResultFacts) -> Iterator[tuple[KidneyFacts, float, float]]:
    """Each kidney that lies within the scan, with its way from the spine: to the right, and to the front, in mm."""
    spine = facts.image.spine
    for kidney in facts.kidneys if spine is not None else ():
        if not kidney.cut:
            yield kidney, kidney.centre_mm[2] - spine[1], kidney.centre_mm[1] - spine[0]  # type: ignore[index]


def find_place(facts: ResultFacts) -> Iterable[Hit]:
    """Not beside the spine. A horseshoe or two kidneys that touch lie before it, as one piece."""
    for kidney, right, front in _beside_spine(facts):
        beside = _BESIDE_MM[0] <= abs(right) <= _BESIDE_MM[1] or (len(facts.kidneys) == 1 and abs(right) < 60)
        if not (beside and _BEFORE_MM[0] <= front <= _BEFORE_MM[1]):
            yield Hit({"right": abs(right), "front": front}, kidney.centre)


def find_one_side(facts: ResultFacts) -> Iterable[Hit]:
    """Two large kidneys on the same side of the spine."""
    ways = [right for _, right, _ in _beside_spine(facts)]
    if len(ways) == 2 and ways[0] * ways[1] > 0 and min(abs(ways[0]), abs(ways[1])) > _BESIDE_MM[0]:
        yield Hit({"side": "right" if ways[0] > 0 else "left"}, facts.kidneys[-1].centre)


def find_unlike(facts: ResultFacts) -> Iterable[Hit]:
    """Two kidneys that differ more than two of one person."""
    pair = _large(facts)
    if len(pair) != 2:
        return
    whole = not any(kidney.cut for kidney in pair)
    ratio = max(k.tissue_ml for k in pair) / min(k.tissue_ml for k in pair)
    apart = abs(pair[0].hu - pair[1].hu)
    if (whole and ratio > _ALIKE_ML) or apart > _ALIKE_HU or _is_other_organ(facts, pair[0], pair[1]):
        values = {"ratio": ratio, "apart": apart, "off": max(map(abs, _differences(facts, pair[0], pair[1])[1:]))}
        yield Hit(values, min(pair, key=lambda k: k.tissue_ml).centre)


def _differences(facts: ResultFacts, one: KidneyFacts, other: KidneyFacts) -> tuple[float, float, float, float]:
    """In HU, and by how much the darker of two lies higher, before or behind, and further from the spine, in mm."""
    dark, bright = sorted((one, other), key=lambda kidney: kidney.hu)
    up, front = dark.centre_mm[0] - bright.centre_mm[0], abs(dark.centre_mm[1] - bright.centre_mm[1])
    middle = (facts.image.spine or (0.0, (one.centre_mm[2] + other.centre_mm[2]) / 2))[1]
    aside = abs(dark.centre_mm[2] - middle) - abs(bright.centre_mm[2] - middle)
    # How high a kidney lies is not known where the scan ends in it.
    return bright.hu - dark.hu, 0.0 if one.cut or other.cut else up, front, aside


def _is_other_organ(facts: ResultFacts, one: KidneyFacts, other: KidneyFacts) -> bool:
    """A spleen beside a kidney, or the like."""
    found = _differences(facts, one, other)
    score = sum(max(0.0, value) / unit for value, unit in zip(found, _AS_FAR_APART, strict=True))
    return found[0] > _OTHER_HU and score > _OTHER_ORGAN
