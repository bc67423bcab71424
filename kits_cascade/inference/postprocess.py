"""Clean a label map without doing harm: what the ground truth holds stays, what lies outside the kidneys goes.

Thresholds are volumes in mm3. The published rule counts voxels instead (:attr:`PostprocessOptions.min_voxels`), which
deletes true lesions on thick slices.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from kits_cascade.components import Components, components, dilated_mm
from kits_cascade.geometry import Box
from kits_cascade.labels import BACKGROUND, CYST, KIDNEY, LABEL_NAMES, TUMOR
from kits_cascade.volume import Array, Spacing

# 20,000 / 200 / 50 voxels at the fine spacing of 0.78125 mm.
KIDNEY_MM3: Final = 9537.0
TUMOR_MM3: Final = 95.4
CYST_MM3: Final = 23.8
TOUCH_MM: Final = 3.0


@dataclass(frozen=True)
class PostprocessOptions:
    """Each step is a switch of its own."""

    small_kidneys: bool = True  # remove kidneys (judged with their masses) below kidney_mm3; the largest stays
    detached_lesions: bool = True  # remove lesions that touch no kidney dilated by touch_mm
    small_lesions: bool = True  # give lesions below their volume back to what surrounds them
    kidney_mm3: float = KIDNEY_MM3
    tumor_mm3: float = TUMOR_MM3
    cyst_mm3: float = CYST_MM3
    touch_mm: float = TOUCH_MM
    min_voxels: tuple[int, int, int] | None = None  # kidney, tumour, cyst: the published rule, in place of the volumes

    @staticmethod
    def off() -> PostprocessOptions:
        """Nothing is changed."""
        return PostprocessOptions(small_kidneys=False, detached_lesions=False, small_lesions=False)

    def smallest(self, label: int, voxel_mm3: float) -> float:
        """Components of ``label`` with fewer voxels than this are too small."""
        if self.min_voxels is not None:
            return float(self.min_voxels[label - 1])
        return {KIDNEY: self.kidney_mm3, TUMOR: self.tumor_mm3, CYST: self.cyst_mm3}[label] / voxel_mm3


@dataclass(frozen=True)
class PostprocessResult:
    """The cleaned label map, and what was done to it."""

    labels: Array
    notes: tuple[str, ...]


def postprocess(
    labels: Array, spacing: Spacing, options: PostprocessOptions | None = None, kidney: Array | None = None
) -> PostprocessResult:
    """Clean a label map (z, y, x, KiTS labels), of a whole scan or of any crop that holds all of its foreground.

    ``kidney`` is the kidney stage's own mask, where there is one: small lesions inside it become kidney. Without it,
    what surrounds a lesion decides. The input is left as it is.
    """
    options = options or PostprocessOptions()
    result = labels.copy()
    box = Box.around(labels)
    if box is None:
        return PostprocessResult(result, ())
    part = box.crop(result)  # a view: what is changed in it is changed in the result
    notes = _only_at_kidneys(part, spacing, options)
    if options.small_lesions:
        inside = None if kidney is None else box.crop(kidney)
        for label in (TUMOR, CYST):
            notes += _small_lesions(part, spacing, options, label, inside)
    return PostprocessResult(result, tuple(notes))


def _only_at_kidneys(labels: Array, spacing: Spacing, options: PostprocessOptions) -> list[str]:
    """Remove what is no kidney, and lesions away from the kidneys.

    A component of the foreground is a kidney with its masses, a lesion on its own, or a stray. A kidney's lesions are
    part of its component, so that only what lies apart from all kidneys is judged here.
    """
    voxel = float(np.prod(spacing))
    found = components(labels > 0)
    voxels = found.voxels
    with_kidney = np.bincount(found.labels[labels == KIDNEY], minlength=found.count + 1)[1:] > 0
    kidneys = with_kidney & (voxels >= options.smallest(KIDNEY, voxel))
    # The largest always stays; where nothing is labelled as kidney, the largest lesion must do for one.
    kidneys[np.argmax(np.where(with_kidney, voxels, 0) if with_kidney.any() else voxels)] = True
    if not options.small_kidneys:
        kidneys |= with_kidney
    strays = np.flatnonzero(~kidneys) + 1
    if not len(strays):
        return []
    near = _near(found, kidneys, strays, spacing, options.touch_mm)
    return _remove_strays(labels, found, strays, near, options, voxel)


def _near(found: Components, kidneys: Array, strays: Array, spacing: Spacing, reach_mm: float) -> set[int]:
    """The strays with a voxel within reach of a kidney."""
    near = set()
    table = np.concatenate([[False], kidneys])
    for number, box in found_boxes(found, strays):
        around = box.grown(reach_mm, spacing).clipped(found.labels.shape)
        local = around.crop(found.labels)
        reach = dilated_mm(table[local], spacing, reach_mm)
        if (reach & (local == number)).any():
            near.add(number)
    return near


def found_boxes(found: Components, numbers: Iterable[int]) -> list[tuple[int, Box]]:
    """Boxes of components, all from one pass over the array."""
    boxes = found.statistics["bounding_boxes"]
    return [
        (int(n), Box((b[0].start, b[1].start, b[2].start), (b[0].stop, b[1].stop, b[2].stop)))
        for n in numbers
        for b in [boxes[int(n)]]
    ]


def _remove_strays(
    labels: Array, found: Components, strays: Array, near: set[int], options: PostprocessOptions, voxel: float
) -> list[str]:
    """Blank the kidney label in strays, and their lesions where these are out of a kidney's reach."""
    removed: dict[int, list[float]] = {KIDNEY: [], TUMOR: [], CYST: []}
    for number, box in found_boxes(found, strays):
        part, own = box.crop(labels), box.crop(found.labels) == number
        for label in LABEL_NAMES:
            goes = options.small_kidneys if label == KIDNEY else options.detached_lesions and number not in near
            mask = own & (part == label)
            count = int(mask.sum()) if goes else 0
            if count:
                part[mask] = BACKGROUND
                removed[label].append(count * voxel)
    notes = []
    if removed[KIDNEY]:
        notes.append(_note(removed[KIDNEY], "kidney", "too small for a kidney"))
    for label in (TUMOR, CYST):
        if removed[label]:
            notes.append(_note(removed[label], LABEL_NAMES[label], "away from the kidneys"))
    return notes


def _note(sizes: list[float], name: str, why: str) -> str:
    listed = ", ".join(f"{size:.3g}" for size in sorted(sizes, reverse=True)[:5]) + (", ..." if len(sizes) > 5 else "")
    return f"removed {len(sizes)} {name} component{'s' if len(sizes) > 1 else ''} {why} ({listed} mm3)"


def _small_lesions(
    labels: Array, spacing: Spacing, options: PostprocessOptions, label: int, kidney: Array | None
) -> list[str]:
    voxel = float(np.prod(spacing))
    found = components(labels == label)
    small = np.flatnonzero(found.voxels < options.smallest(label, voxel)) + 1
    sizes = []
    for number, box in found_boxes(found, small):
        around = Box(
            (box.start[0] - 1, box.start[1] - 1, box.start[2] - 1), (box.stop[0] + 1, box.stop[1] + 1, box.stop[2] + 1)
        ).clipped(labels.shape)
        part, own = around.crop(labels), around.crop(found.labels) == number
        sizes.append(float(own.sum()) * voxel)
        part[own] = _successors(part, own, None if kidney is None else around.crop(kidney)[own])
    return [_note(sizes, LABEL_NAMES[label], "too small")] if sizes else []


def _successors(part: Array, own: Array, kidney: Array | None) -> Any:
    """What a removed lesion becomes.

    The tissue that it touches most: the other kind of lesion when it is a speck in one, else kidney when it is kidney
    by the kidney stage, or is at least as much surrounded by tissue as by background; else background.
    """
    shell = dilated_mm(own, (1.0, 1.0, 1.0), 1.0) & ~own
    counts = np.bincount(part[shell], minlength=CYST + 1)[: CYST + 1]
    tissue = int(counts[1:].sum())
    lesion = TUMOR if counts[TUMOR] >= counts[CYST] else CYST
    if counts[lesion] > max(counts[KIDNEY], counts[BACKGROUND]):
        return lesion
    if kidney is not None:
        return np.where(kidney != 0, KIDNEY, BACKGROUND).astype(part.dtype)
    return KIDNEY if tissue and tissue >= counts[BACKGROUND] else BACKGROUND
