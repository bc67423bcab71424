"""Kidneys of KiTS masks in the place of an anatomy's own, and what is inside them and their lesions."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np
from scipy import ndimage

from kits_cascade.labels import CYST, KIDNEY, TUMOR
from kits_cascade.synthetic.body_plan import Canvas, nearest, rotation
from kits_cascade.synthetic.subjects import GRID_MM, KIDNEY_CODE, KidneySource
from kits_cascade.synthetic.tissues import CODE
from kits_cascade.volumes.volume import Array

_TRANSPLANT_MM: Final = (-165.0, 45.0)  # a transplant lies this far below the kidneys, and in front of their plane


def paint_kidneys(canvas: Canvas) -> None:
    """Place them, write the labels, and fill them with tissue."""
    plan, labels = canvas.plan, canvas.labels
    if plan.own_kidneys:
        labels[canvas.tissue == KIDNEY_CODE] = KIDNEY
    else:
        for side, source in plan.kidneys.items():
            if source is not None and side in plan.anatomy.kidneys:
                _place(canvas, source, np.array(plan.anatomy.kidneys[side]), turned=side != source.side)
        _place_odd_ones(canvas)
        for side in canvas.plan.anatomy.kidneys:
            if plan.kidneys.get(side) is not None:
                _paint_hilum(canvas, side)
    for box in ndimage.find_objects(ndimage.label(labels > 0)[0]):
        grown = tuple(slice(max(0, s.start - 4), s.stop + 4) for s in box)
        part = replace(canvas, tissue=canvas.tissue[grown], labels=labels[grown])
        _fill_kidney(part)
        _fill_lesions(part)


def _place_odd_ones(canvas: Canvas) -> None:
    plan, rng = canvas.plan, canvas.rng
    both = [source for source in plan.kidneys.values() if source is not None]
    centres = plan.anatomy.kidneys
    if "transplant" in plan.events and both and centres:
        side = str(rng.choice(list(centres)))
        down, forward = _TRANSPLANT_MM
        place = np.array(centres[side]) + np.array([down, forward, 0])
        plain = replace(both[0], labels=np.where(both[0].labels > 0, KIDNEY, 0).astype(np.uint8))
        _place(canvas, plain, place, turned=False)
    if "horseshoe" in plan.events and len(both) == 2 and len(centres) == 2:
        _bridge(canvas)


def _bridge(canvas: Canvas) -> None:
    """A strip of kidney in front of the spine between the lower poles."""
    left, right = (np.array(canvas.plan.anatomy.kidneys[side]) for side in ("left", "right"))
    places = canvas.places
    low = min(left[0], right[0]) - 28
    along = (places[2] - left[2]) / (right[2] - left[2])
    row = (left[1] + right[1]) / 2 + 130 * along * (1 - along)  # bends forward around the spine
    thick = canvas.rng.uniform(9, 16)
    strip = (along > 0) & (along < 1) & (np.hypot(places[0] - low, places[1] - row) < thick)
    canvas.labels[strip & (canvas.labels == 0)] = KIDNEY


def _place(canvas: Canvas, source: KidneySource, centre: Array, *, turned: bool) -> None:
    """Write one kidney's labels into the grid, a little moved, turned and scaled; ``turned``: from the other side."""
    rng = canvas.rng
    centre = centre + rng.normal(0, 6, 3)
    matrix = rotation(tuple(rng.normal(0, 9, 3))) @ np.diag(1 / rng.uniform(0.85, 1.2, 3))
    if turned:
        matrix[:, 2] *= -1
    reach = float(np.linalg.norm(np.array(source.labels.shape) * GRID_MM)) * 1.2
    boxes = ndimage.find_objects(_near(canvas, centre, reach).astype(np.uint8))
    if not boxes:
        return
    window = boxes[0]
    relative = canvas.places[(slice(None), *window)] - centre.astype(np.float32)[:, None, None, None]
    index = np.einsum("ij,jzyx->izyx", (matrix / GRID_MM).astype(np.float32), relative)
    index += np.array(source.centre, dtype=np.float32)[:, None, None, None]
    values = nearest(source.labels, index)
    view = canvas.labels[window]
    view[values > 0] = values[values > 0]


_SOFT_FAT: Final = ("visceral fat", "loose tissue", "small vessel")
_HILUM_REACH_MM: Final = 95.0


def _paint_hilum(canvas: Canvas, side: str) -> None:
    """Renal vein and artery to the middle, pelvis and ureter: they touch the kidney, and are none of it."""
    rng, centres = canvas.rng, canvas.plan.anatomy.kidneys
    centre = np.array(centres[side])
    middle = (
        float(np.mean([c[2] for c in centres.values()])) if len(centres) == 2 else canvas.plan.anatomy.extent[2] / 2
    )
    inward = np.array([0.0, 0.25, 1.0]) * [1, 1, np.sign(middle - centre[2])]
    boxes = ndimage.find_objects(_near(canvas, centre, _HILUM_REACH_MM).astype(np.uint8))
    if not boxes:
        return
    part = replace(canvas, places=canvas.places[(slice(None), *boxes[0])], tissue=canvas.tissue[boxes[0]])
    free = (canvas.labels[boxes[0]] == 0) & np.isin(part.tissue, [CODE[name] for name in _SOFT_FAT])
    uneven = 1 + 0.3 * canvas.smooth(12, free.shape)
    wide = (9, 20) if "hydronephrosis" in canvas.plan.events else (3, 10)
    pelvis = centre + inward * rng.uniform(6, 18) + rng.normal(0, 4, 3)
    ureter = pelvis + np.array([-rng.uniform(60, 90), rng.uniform(0, 25), inward[2] * rng.uniform(0, 15)])
    for name, start, end, radius in (
        ("urine", pelvis, ureter, rng.uniform(1.5, 3.5)),
        ("urine", pelvis - [4, 0, 0], pelvis + inward * rng.uniform(2, 10), rng.uniform(*wide)),
        ("vein", centre, centre + inward * 75 + [rng.normal(0, 8), 10, 0], rng.uniform(3, 6)),
        ("artery", centre, centre + inward * 75 + [rng.normal(0, 8), 0, 0], rng.uniform(1.8, 3.5)),
    ):
        part.tissue[free & (_to_segment(part.places, start, end) < radius * uneven)] = CODE[name]


def _near(canvas: Canvas, centre: Array, reach: float) -> Array:
    near = np.ones(canvas.tissue.shape, dtype=bool)
    for axis in range(3):
        near &= np.abs(canvas.places[axis] - centre[axis]) < reach
    return near


def _to_segment(places: Array, start: Array, end: Array) -> Array:
    """Distance of each place to the line between two."""
    along = (end - start).astype(np.float32)
    relative = places - start.astype(np.float32)[:, None, None, None]
    share = np.clip(np.tensordot(along, relative, 1) / float(along @ along), 0, 1)
    distance: Array = np.sqrt(sum((relative[k] - along[k] * share) ** 2 for k in range(3)))
    return distance


def _fill_kidney(canvas: Canvas) -> None:
    """Cortex, medulla and pelvis (masks leave the fat of the sinus out already); fat around it, here and there."""
    tissue, labels, rng, events = canvas.tissue, canvas.labels, canvas.rng, canvas.plan.events
    depth = ndimage.distance_transform_edt(labels > 0, canvas.spacing).astype(np.float32)
    uneven = canvas.smooth(7, labels.shape)
    kidney = labels == KIDNEY
    tissue[kidney] = CODE["cortex"]
    tissue[kidney & (depth > rng.uniform(4, 8) + 1.8 * uneven)] = CODE["medulla"]
    if "hydronephrosis" in events:
        tissue[kidney & (depth > 8) & (uneven > 0.2)] = CODE["urine"]
    elif "pyelum" in events:
        tissue[kidney & (depth > 10) & (uneven > 0.7)] = CODE["urine"]
    _free_from_neighbours(canvas)
    for name, code, least in (("stones", "stone", 1.5), ("stent", "metal", 1.0)):
        if name in events:
            _speck(canvas, np.flatnonzero(kidney & (depth > 6)), rng.uniform(least, 4 * least), CODE[code])


_NEIGHBOURS: Final = (
    "liver", "spleen", "muscle", "colon", "small bowel", "pancreas", "duodenum", "stomach", "loose tissue", "fluid",
)  # fmt: skip


def _free_from_neighbours(canvas: Canvas) -> None:
    """A rim of fat around some kidneys; in thin people they touch liver, spleen and muscle."""
    gap = canvas.rng.uniform(-1.5, 5)
    if gap <= 0:
        return
    whole = canvas.labels > 0
    rim = ndimage.binary_dilation(whole, iterations=max(1, round(gap / canvas.spacing[1]))) & ~whole
    soft = np.isin(canvas.tissue, [CODE[name] for name in _NEIGHBOURS])
    canvas.tissue[rim & soft] = CODE["visceral fat"]


def _speck(canvas: Canvas, choices: Array, reach: float, code: int) -> None:
    if not len(choices):
        return
    place = np.unravel_index(int(canvas.rng.choice(choices)), canvas.labels.shape)
    near = tuple(
        slice(max(0, int(p - reach / s)), int(p + reach / s) + 1) for p, s in zip(place, canvas.spacing, strict=True)
    )
    view = canvas.tissue[near]
    view[canvas.labels[near] == KIDNEY] = code


_MOST_TUMORS: Final = 12


def _fill_lesions(canvas: Canvas) -> None:
    tissue, labels, rng = canvas.tissue, canvas.labels, canvas.rng
    coarse, fine = canvas.smooth(7, labels.shape), canvas.smooth(3.5, labels.shape)
    kind = rng.random()
    tumors, count = ndimage.label(labels == TUMOR)
    tissue[labels == TUMOR] = CODE["tumor"]
    for number in range(1, min(count, _MOST_TUMORS) + 1):
        part = tumors == number
        if kind < 0.04:
            tissue[part] = CODE["fatty tumor"]
        if kind > 0.35 and part.sum() * float(np.prod(canvas.spacing)) > 4000:
            depth = ndimage.distance_transform_edt(part, canvas.spacing)
            tissue[part & (coarse + 0.12 * depth > rng.uniform(1.0, 2.6))] = CODE["necrosis"]
        if rng.random() < 0.3:
            tissue[part & (fine > rng.uniform(1.4, 2.2))] = CODE["small vessel"]
        if rng.random() < 0.08:
            tissue[part & (fine > 2.3)] = CODE["stone"]
    cysts, count = ndimage.label(labels == CYST)
    for number in range(1, count + 1):
        tissue[cysts == number] = CODE["haemorrhagic cyst" if rng.random() < 0.08 else "cyst"]
