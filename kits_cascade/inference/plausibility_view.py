"""Does the scan show an abdomen, the right way round, with all of its slices?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from scipy import ndimage

from kits_cascade.inference.plausibility_facts import ImageFacts
from kits_cascade.inference.plausibility_finding import Hit
from kits_cascade.inference.plausibility_values import FAT_HU, LEAN
from kits_cascade.volumes.components import components
from kits_cascade.volumes.volume import Array

# Heads are 130 ... 170 mm wide and 180 ... 210 mm long (anthropometric surveys of adults); waists are wider than 230.
_HEAD_MM: Final = (110.0, 215.0)
_SKULL: Final = 0.10  # share of bone in a head; in an abdomen 0.02 ... 0.08
_LEG_LIKENESS: Final = 0.5  # two legs are nearly alike; an arm is not like a trunk
_LEG_SLICES: Final = 0.7
# Of the inside of a body 50 HU hold 0.23 ... 0.53, of two real CTs and of 30 painted ones.
_ONE_MATERIAL: Final = 0.7
_ONE_FATTY_MATERIAL: Final = 0.85
_LEAST_VOXELS: Final = 500
_LUNG_SHARE: Final = 0.12  # of the section of a body; kidneys lie below nearly all of the lungs
_LOWEST: Final = 0.12  # of the slices, from the feet
# geometry.csv of KiTS23: slices of 0.5 to 5 mm, pixels of 0.39 to 1.04 mm; the lowest field of view is 141 mm high.
_THICKEST_MM: Final = 7.5
_SHORTEST_MM: Final = 100.0
_ANISOTROPY: Final = 13.0
_SHEAR: Final = 0.03  # cosine between axes that should be square to each other: 1.7 degrees
_JUMP: Final = 1.6  # to the largest near it; slices that belong together stay below 1.25
_NEAR_SLICES: Final = 8
_EVEN_HU: Final = 30.0
_LIVER_HU: Final = (30.0, 160.0)
_ODD_LIVER_HU: Final = (-10.0, 220.0)
_SLAB_MM: Final = 60.0
# A liver of 1500 mL has half of it in such a slab; spleen and stomach balance a part. Of CT painted around the 40 masks
# the right side has 400 to 800 mL more and the left at most 50, and two real ones are no different.
_LIVER_ML: Final = 200.0
_LIVER_RATIO: Final = 2.0
# With the head up its middle lies at 0.5 ... 0.9 of a scan without lungs above it (25 scans, two of them real).
_LOW_LIVER: Final = 0.4
_TALL_MM: Final = 180.0


def _touches_sides(body: Array) -> bool:
    return bool(body[:, :, :2].any(axis=(1, 2)).mean() > 0.5 and body[:, :, -2:].any(axis=(1, 2)).mean() > 0.5)


def _widths(facts: ImageFacts) -> tuple[float, float]:
    """Medians of the body's width and depth over the slices, in mm."""
    body = facts.body
    extents = []
    for axis, spacing in ((1, facts.spacing[2]), (2, facts.spacing[1])):
        rows: Array = body.max(axis=axis)
        rows = rows[rows.max(axis=1)]
        extents.append(float(np.median(rows.sum(axis=1)) * spacing) if len(rows) else 0.0)
    return extents[0], extents[1]


def find_head(facts: ImageFacts) -> Iterable[Hit]:
    """A body as small as a head, with as much bone."""
    width, depth = _widths(facts)
    bone = float(facts.bone.sum()) / max(1, int(facts.body.sum()))
    small = _HEAD_MM[0] <= width <= _HEAD_MM[1] and depth <= _HEAD_MM[1] + 30
    if small and bone > _SKULL and not _touches_sides(facts.body):
        yield Hit({"width": width, "bone": bone})


def find_phantom(facts: ImageFacts) -> Iterable[Hit]:
    """Water or plastic, with at most a few inserts of something else."""
    inner = facts.inner
    if len(inner) < _LEAST_VOXELS or facts.bone.sum() > _SKULL * facts.body.sum():
        return
    counts, edges = np.histogram(inner, bins=60, range=(-200.0, 400.0))
    together = np.convolve(counts, np.ones(5), mode="same")  # 50 HU
    best = int(together.argmax())
    share, middle = float(together[best]) / len(inner), float(edges[best] + edges[best + 1]) / 2
    value = float(np.median(inner[np.abs(inner - middle) <= 25]))
    fat = float(((inner > FAT_HU[0]) & (inner < FAT_HU[1])).mean())
    fatty = value < FAT_HU[1] and share > _ONE_FATTY_MATERIAL
    if fatty or (share > _ONE_MATERIAL and fat < LEAN):
        yield Hit({"share": share, "hu": value, "fat": fat})


def find_legs(facts: ImageFacts) -> Iterable[Hit]:
    """Two alike bodies side by side in most slices."""
    tissue = ndimage.binary_opening(facts.sketch > -300)
    pairs = [_is_pair(plane) for plane in tissue[:: max(1, len(tissue) // 20)] if plane.any()]
    if pairs and float(np.mean(pairs)) > _LEG_SLICES:
        yield Hit({"share": float(np.mean(pairs))})


def _is_pair(plane: Array) -> bool:
    found = components(plane[None])
    sizes = np.sort(found.voxels)[::-1]
    if len(sizes) < 2 or sizes[0] == 0:
        return False
    return float(sizes[1] / sizes[0]) > _LEG_LIKENESS and float(sizes[:2].sum()) > 100


def _lung_profile(facts: ImageFacts) -> Array:
    """Share of the body's section that is lung, slice by slice; air of bowel is smaller and does not count much."""
    area = facts.body.sum(axis=(1, 2))
    share: Array = facts.lungs.sum(axis=(1, 2)) / np.maximum(area, 1)
    share[area < 0.2 * area.max(initial=1)] = 0
    return share


def _ends(profile: Array) -> tuple[float, float]:
    """Medians at the feet's end and at the head's."""
    count = max(1, round(_LOWEST * len(profile)))
    return float(np.median(profile[:count])), float(np.median(profile[-count:]))


def find_thorax(facts: ImageFacts) -> Iterable[Hit]:
    """Lungs from the lowest slice to the highest: it ends above the kidneys."""
    feet, head = _ends(_lung_profile(facts))
    if feet > _LUNG_SHARE and head > _LUNG_SHARE:
        yield Hit({"share": feet}, (0, *_middle(facts)))


def find_face_down(facts: ImageFacts) -> Iterable[Hit]:
    """A spine that stands in the front half of the body."""
    spine, rows = facts.spine, np.flatnonzero(facts.body.any(axis=(0, 2)))
    if spine is None or facts.bone.sum() < 0.005 * facts.body.sum():
        return
    place = (spine[0] / facts.spacing[1] - rows[0]) / max(1, len(rows))
    if place > 0.62:
        yield Hit({"place": place}, facts.full_voxel(len(facts.sketch) / 2, *spine))


def even_tissue(facts: ImageFacts) -> tuple[Array, Array, Array]:
    """Even soft tissue in front of the spine, mL by slice: liver left, liver right, anything like it on both sides.

    What may be a fatty liver, or one full of contrast medium, is only "like it": rows for left and right.
    """
    size = [max(1, round(12 / s)) for s in facts.spacing]
    soft = facts.sketch.clip(-200, 300)
    mean = ndimage.uniform_filter(soft, size)
    spread = np.sqrt(np.maximum(ndimage.uniform_filter(soft**2, size) - mean**2, 0))
    even = ndimage.binary_opening(
        (spread < _EVEN_HU) & (mean > _ODD_LIVER_HU[0]) & (mean < _ODD_LIVER_HU[1]) & facts.body, iterations=2
    )
    spine = facts.spine or (0.0, 0.0)
    even[:, : round(spine[0] / facts.spacing[1])] = False  # the muscles of the back
    middle, voxel_ml = round(spine[1] / facts.spacing[2]), float(np.prod(facts.spacing)) / 1000
    liver = even & (mean > _LIVER_HU[0]) & (mean < _LIVER_HU[1])
    left, right = (liver[:, :, side].sum(axis=(1, 2)) * voxel_ml for side in (slice(middle), slice(middle, None)))
    both = np.stack([even[:, :, side].sum(axis=(1, 2)) * voxel_ml for side in (slice(middle), slice(middle, None))])
    return left, right, both


@dataclass(frozen=True)
class Liver:
    """By how much one side has more even tissue than the other, in the slab where it has most."""

    ml: float
    slice: int  # of the sketch, in the middle of the slab


@lru_cache(maxsize=1)
def liver_sides(facts: ImageFacts) -> tuple[Liver, Liver]:
    """What looks like a liver on the left, and on the right."""
    if facts.spine is None:
        return Liver(0.0, 0), Liver(0.0, 0)
    left, right, (any_left, any_right) = even_tissue(facts)
    slab = np.ones(min(len(left), max(1, round(_SLAB_MM / facts.spacing[0]))))
    more = (np.convolve(a - b, slab, mode="valid") for a, b in ((left, any_right), (right, any_left)))
    first, second = (Liver(float(ml.max()), int(ml.argmax()) + len(slab) // 2) for ml in more)
    return first, second


def find_mirrored(facts: ImageFacts) -> Iterable[Hit]:
    """A liver on the left."""
    left, right = liver_sides(facts)
    if left.ml > _LIVER_ML and left.ml > _LIVER_RATIO * right.ml:
        yield Hit({"left": left.ml}, facts.full_voxel(left.slice, *(facts.spine or (0.0, 0.0))))


def find_upside_down(facts: ImageFacts) -> Iterable[Hit]:
    """Lungs at the feet's end and not at the head's, or a liver there with no lungs above it."""
    profile = _lung_profile(facts)
    feet, head = _ends(profile)
    if feet > _LUNG_SHARE and head < _LUNG_SHARE / 6:
        yield Hit({"what": "lungs"}, (0, *_middle(facts)))
        return
    liver = max(liver_sides(facts), key=lambda side: side.ml)
    low = len(profile) * facts.spacing[0] > _TALL_MM and liver.slice < _LOW_LIVER * len(profile)
    if low and liver.ml > _LIVER_ML and profile[liver.slice :].max() < _LUNG_SHARE:
        yield Hit({"what": "liver"}, facts.full_voxel(liver.slice, *(facts.spine or (0.0, 0.0))))


def find_missing_slices(facts: ImageFacts) -> Iterable[Hit]:
    """A jump between two slices that is far larger than any near it."""
    jumps = facts.jumps
    if len(jumps) < 2 * _NEAR_SLICES:
        return
    for index in np.argsort(-jumps)[:3]:
        near = jumps[max(0, index - _NEAR_SLICES) : index + _NEAR_SLICES + 1]
        others = np.sort(near)[::-1][1]
        inside = _NEAR_SLICES // 2 <= index < len(jumps) - _NEAR_SLICES // 2
        if inside and jumps[index] > _JUMP * max(float(others), 2.0):
            yield Hit({"ratio": float(jumps[index] / max(others, 1e-3))}, (int(index) + 1, *_middle(facts)))


def _middle(facts: ImageFacts) -> tuple[int, int]:
    return facts.full_shape[1] // 2, facts.full_shape[2] // 2


def find_duplicate_slices(facts: ImageFacts) -> Iterable[Hit]:
    """Neighbours that are the same to the last bit, and not empty."""
    same = np.flatnonzero(facts.jumps == 0)
    filled = [int(k) for k in same if facts.is_filled(int(k))]
    if filled:
        yield Hit({"count": len(filled)}, (filled[0] + 1, *_middle(facts)))


def find_thick_slices(facts: ImageFacts) -> Iterable[Hit]:
    """Voxels beyond what the networks have seen."""
    largest, smallest = max(facts.full_spacing), min(facts.full_spacing)
    if largest > _THICKEST_MM or largest / smallest > _ANISOTROPY:
        sizes = " x ".join(f"{size:.3g}" for size in facts.full_spacing[::-1])
        yield Hit({"sizes": sizes, "limit": 5.0})


def find_short_field(facts: ImageFacts) -> Iterable[Hit]:
    """A field of view too low for two whole kidneys."""
    height = facts.full_shape[0] * facts.full_spacing[0]
    if height < _SHORTEST_MM:
        yield Hit({"height": height})


def find_tilt(facts: ImageFacts) -> Iterable[Hit]:
    """Axes that are not square to each other, as after a tilt of the gantry."""
    axes = facts.affine[:3, :3] / np.linalg.norm(facts.affine[:3, :3], axis=0)
    worst = max(abs(float(axes[:, a] @ axes[:, b])) for a, b in ((0, 1), (0, 2), (1, 2)))
    if worst > _SHEAR:
        yield Hit({"degrees": float(np.degrees(np.arcsin(min(1.0, worst))))})
