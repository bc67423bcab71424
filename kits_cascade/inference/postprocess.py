"""Clean a label map without doing harm: what the ground truth holds stays, what lies outside the kidneys goes.

Thresholds are volumes in mm3. The published rule counts voxels instead (:attr:`PostprocessOptions.min_voxels`), which
deletes true lesions on thick slices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import edt
import numpy as np
from scipy import ndimage

from kits_cascade.labels import BACKGROUND, CYST, KIDNEY, LABEL_NAMES, TUMOR
from kits_cascade.volumes.components import Components, components, dilated_mm, volumes_mm3
from kits_cascade.volumes.geometry import Box
from kits_cascade.volumes.volume import Array, Spacing
from kits_cascade.words import some

# 20,000 / 200 / 50 voxels at the fine spacing of 0.78125 mm.
KIDNEY_MM3: Final = 9537.0
TUMOR_MM3: Final = 95.4
CYST_MM3: Final = 23.8
TOUCH_MM: Final = 3.0
# What is no cyst but the rim of a tumour; of 240 masks of KiTS23 six change, by 0.4 mL at the most.
_RIM_MM: Final = 2.5  # from its surface to its middle, a small rim is no deeper, or one voxel
_RIM_MM3: Final = 1000.0  # how large a small one may be
_RIM_FLAT: Final = 7.0  # times the largest ball inside: any rim; true cysts beside a tumour have 5 times at most
_RIM_SHARE: Final = 0.2  # of the faces of a rim touch the tumour


@dataclass(frozen=True)
class PostprocessOptions:
    """Each step is a switch of its own."""

    small_kidneys: bool = True  # remove kidneys (judged with their masses) below kidney_mm3; the largest stays
    detached_lesions: bool = True  # remove lesions that touch no kidney dilated by touch_mm
    small_lesions: bool = True  # give lesions below their volume back to what surrounds them
    thin_rims: bool = True  # give cysts that are but the rim of a tumour to it
    kidney_mm3: float = KIDNEY_MM3
    tumor_mm3: float = TUMOR_MM3
    cyst_mm3: float = CYST_MM3
    touch_mm: float = TOUCH_MM
    min_voxels: tuple[int, int, int] | None = None  # kidney, tumour, cyst: the published rule, in place of the volumes

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
    notes: list[str] = []
    if options.thin_rims:
        notes += _thin_rims(part, spacing)
    if options.small_lesions:
        inside = None if kidney is None else box.crop(kidney)
        for label in (TUMOR, CYST):
            notes += _small_lesions(part, spacing, options, label, inside)
    notes += _only_at_kidneys(part, spacing, options)
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
    table = np.concatenate([[False], ~kidneys])  # the background is component 0
    strays = _Voxels.of(table[found.labels], labels, found.labels)
    if not len(strays.labels):
        return []
    near = _near(found, np.concatenate([[False], kidneys]), strays, spacing, options.touch_mm)
    return _remove_strays(labels, strays, near, options, voxel)


@dataclass(frozen=True)
class _Voxels:
    """The few voxels that are judged one by one: where they are, their labels, and the components that they are of."""

    where: tuple[Array, ...]
    labels: Array
    components: Array

    @staticmethod
    def of(mask: Array, labels: Array, component_map: Array) -> _Voxels:
        where = np.nonzero(mask)
        return _Voxels(where, labels[where], component_map[where])


def _near(found: Components, kidneys: Array, strays: _Voxels, spacing: Spacing, reach_mm: float) -> Array:
    """For each component, whether it is a stray with a lesion that has a voxel within reach of a kidney."""
    near = np.zeros(found.count + 1, dtype=bool)
    with_lesion = np.bincount(strays.components, weights=strays.labels != KIDNEY, minlength=found.count + 1) > 0
    chosen = with_lesion[strays.components]
    if not chosen.any():
        return near
    points = np.stack([axis[chosen] for axis in strays.where], axis=1)
    low, high = points.min(axis=0), points.max(axis=0) + 1
    box = Box((low[0], low[1], low[2]), (high[0], high[1], high[2])).grown(reach_mm, spacing)
    box = box.clipped(found.labels.shape)
    reach = dilated_mm(kidneys[box.crop(found.labels)], spacing, reach_mm)
    near[strays.components[chosen][reach[tuple((points - box.start).T)]]] = True
    return near


def _remove_strays(labels: Array, strays: _Voxels, near: Array, options: PostprocessOptions, voxel: float) -> list[str]:
    """Blank the kidney label in strays, and their lesions where these are out of a kidney's reach."""
    notes = []
    for label, name in LABEL_NAMES.items():
        goes = strays.labels == label
        if label == KIDNEY:
            goes &= options.small_kidneys
        else:
            goes &= options.detached_lesions & ~near[strays.components]
        if goes.any():
            labels[tuple(axis[goes] for axis in strays.where)] = BACKGROUND
            _, counts = np.unique(strays.components[goes], return_counts=True)
            why = "too small for a kidney" if label == KIDNEY else "away from the kidneys"
            notes.append(_note(counts * voxel, name, why))
    return notes


def _note(sizes: Array, name: str, why: str) -> str:
    listed = some(f"{size:.3g}" for size in np.sort(sizes)[::-1])
    return f"removed {len(sizes)} {name} component{'s' if len(sizes) > 1 else ''} {why} ({listed} mm3)"


def _small_lesions(
    labels: Array, spacing: Spacing, options: PostprocessOptions, label: int, kidney: Array | None
) -> list[str]:
    """Give small lesions of one kind back to what surrounds them."""
    voxel = float(np.prod(spacing))
    found = components(labels == label)
    voxels = found.voxels
    small = voxels < options.smallest(label, voxel)
    if not small.any():
        return []
    chosen = _Voxels.of(np.concatenate([[False], small])[found.labels], labels, found.labels)
    becomes = _successors(_contacts(labels, chosen, found), label)[chosen.components]
    if kidney is not None:
        by_kidney = np.where(kidney[chosen.where] != 0, KIDNEY, BACKGROUND)
        becomes = np.where(np.isin(becomes, (TUMOR, CYST)), becomes, by_kidney)
    labels[chosen.where] = becomes
    return [_note(voxels[small] * voxel, LABEL_NAMES[label], "too small")]


def _thin_rims(labels: Array, spacing: Spacing) -> list[str]:
    """Where the outputs for masses and for tumours end a voxel apart, what lies between is no cyst."""
    cysts = np.ascontiguousarray(labels == CYST)
    found = components(cysts)
    if not found.count or not (labels == TUMOR).any():
        return []
    depth = edt.edt(cysts, anisotropy=spacing)
    deepest = ndimage.maximum(depth, found.labels, np.arange(1, found.count + 1))
    volumes = volumes_mm3(found, spacing)
    small = (np.asarray(deepest) <= max(_RIM_MM, *spacing)) & (volumes < _RIM_MM3)
    flat = volumes > _RIM_FLAT * 4 / 3 * np.pi * np.asarray(deepest) ** 3
    thin = np.concatenate([[False], small | flat])
    contacts = _contacts(labels, _Voxels.of(thin[found.labels], labels, found.labels), found)
    rims = thin & (contacts[:, TUMOR] > _RIM_SHARE * contacts.sum(axis=1))
    if not rims.any():
        return []
    labels[rims[found.labels]] = TUMOR
    sizes = some(f"{size:.3g}" for size in np.sort(volumes[rims[1:]])[::-1])
    return [
        f"gave {rims.sum()} cyst component{'s' if rims.sum() > 1 else ''} to the tumour that they edge ({sizes} mm3)"
    ]


def _contacts(labels: Array, chosen: _Voxels, found: Components) -> Array:
    """For each component how many faces of its voxels touch each label; its own voxels do not count."""
    counts = np.zeros((found.count + 1) * (CYST + 1), dtype=np.int64)
    for axis in range(3):
        for step in (-1, 1):
            where = list(chosen.where)
            where[axis] = where[axis] + step
            inside = (where[axis] >= 0) & (where[axis] < labels.shape[axis])
            there = tuple(index[inside] for index in where)
            own = chosen.components[inside]
            other = found.labels[there] != own
            counts += np.bincount(
                own[other].astype(np.int64) * (CYST + 1) + labels[there][other], minlength=len(counts)
            )
    return counts.reshape(-1, CYST + 1)


def _successors(contacts: Array, label: int) -> Array:
    """What each removed lesion becomes.

    The other kind of lesion when it is a speck in one; else kidney when it touches at least as much tissue as
    background; else background.
    """
    other = CYST if label == TUMOR else TUMOR
    tissue = contacts[:, KIDNEY] + contacts[:, other]
    becomes = np.where((tissue > 0) & (tissue >= contacts[:, BACKGROUND]), KIDNEY, BACKGROUND)
    return np.where(contacts[:, other] > np.maximum(contacts[:, KIDNEY], contacts[:, BACKGROUND]), other, becomes)
