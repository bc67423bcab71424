"""The kidneys of a result as numbers: size, place, values, edges, flat ends."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, cast

import numpy as np
from scipy import ndimage

from kits_cascade.inference.measure import LesionRow
from kits_cascade.inference.plausibility_facts import ImageFacts, every_mm, stepped
from kits_cascade.labels import KIDNEY
from kits_cascade.volumes.components import Components, components
from kits_cascade.volumes.geometry import Box
from kits_cascade.volumes.volume import Array, Spacing

_CLOSE_MM: Final = 2.0  # finer than what is measured here, and cheap
_PIECE_ML: Final = 12.0  # what is smaller is a piece and no kidney
_AROUND_MM: Final = 10.0
_EDGE_MM: Final = 2.5  # how far to either side of a surface one looks
_EDGE_HU: Final = 25.0  # a step of this much is seen through the noise of a mean over that distance
_SOFT_HU: Final = (-200, 400)
_AIR_HU: Final = -160.0  # of values cut to the soft ones: most of what is near is air
_FAT_HU: Final = -25.0
_BONE_HU: Final = 300.0  # far above what contrast medium makes of a kidney; a pelvis full of it is not labelled kidney
_LEAST_VOXELS: Final = 30


@dataclass(frozen=True)
class KidneyFacts:
    """One kidney with its masses: a large component of all labels."""

    volume_ml: float
    tissue_ml: float  # of what is labelled kidney
    centre: tuple[int, int, int]  # canonical voxel of the scan
    centre_mm: tuple[float, float, float]  # the same in mm from the corner of the scan
    hu: float  # median of what is labelled kidney
    hu_spread: float  # between its quartiles
    fat: float  # share of what is labelled kidney that is fat or air
    bone: float  # and that is as dense as bone
    edge: float  # share of the surface at which the image changes
    air: float  # share of the surface beyond which there is lung, or the outside of the body
    flat: float  # the largest flat end, as a share of the largest section across the same axis
    flat_at: tuple[int, int, int]  # canonical voxel
    cut: bool  # by the border of the scan
    outside: float  # share outside of the body


@dataclass(frozen=True)
class ResultFacts:
    """A result with its scan: kidneys at about 2 mm, lesions as they were measured."""

    image: ImageFacts
    kidneys: list[KidneyFacts]  # the largest first
    pieces: list[tuple[int, int, int]]  # where components are that are too small for a kidney, the largest first
    lesions: list[LesionRow]
    volumes_ml: dict[str, float]
    certainty: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(
        image: ImageFacts,
        labels: Array,
        grey: Array,
        bounds: Box,
        lesions: list[LesionRow],
        volumes_ml: dict[str, float],
        certainty: dict[str, Any] | None = None,
    ) -> ResultFacts:
        """``labels`` and ``grey`` are the part of the scan inside ``bounds``."""
        kidneys, pieces = measure_kidneys(image, labels, grey, bounds)
        return ResultFacts(image, kidneys, pieces, lesions, volumes_ml, certainty or {})


def measure_kidneys(
    image: ImageFacts, labels: Array, grey: Array, bounds: Box
) -> tuple[list[KidneyFacts], list[tuple[int, int, int]]]:
    """All kidneys, the largest first, and where the components lie that are none."""
    steps = every_mm(image.full_spacing, _CLOSE_MM)
    close = _Close(image, labels[steps], grey[steps], steps, bounds)
    found = components(close.labels > 0)
    ml = found.voxels * float(np.prod(close.spacing)) / 1000
    order = np.argsort(-ml, kind="stable") + 1
    large = [int(n) for n in order if ml[n - 1] >= _PIECE_ML] or [int(n) for n in order[:1]]
    small = [found.statistics["centroids"][n] for n in order if n not in large]
    kidneys = [_kidney(close, found, number, box) for number, box in found.boxes(large)]
    return kidneys, [close.full(centre) for centre in small]


@dataclass(frozen=True)
class _Close:
    """The part of the scan with the kidneys, at about 2 mm."""

    image: ImageFacts
    labels: Array
    grey: Array
    steps: tuple[slice, slice, slice]
    bounds: Box

    @property
    def spacing(self) -> Spacing:
        return stepped(self.steps, self.image.full_spacing)

    def full(self, point: Any) -> tuple[int, int, int]:
        """A point here as a voxel of the scan."""
        z, y, x = (round(float(p)) * s.step + a for p, s, a in zip(point, self.steps, self.bounds.start, strict=True))
        return z, y, x


def _kidney(close: _Close, found: Components, number: int, tight: Box) -> KidneyFacts:
    box = tight.grown(_AROUND_MM, close.spacing).clipped(close.labels.shape)
    mask = box.crop(found.labels) == number
    labels, grey = box.crop(close.labels), box.crop(close.grey).astype(np.float32)
    voxel_ml = float(np.prod(close.spacing)) / 1000
    tissue = mask & (labels == KIDNEY)
    centre = close.full(np.argwhere(mask).mean(axis=0) + box.start)
    low, median, high, fat, bone = _values(grey, tissue, close.spacing)
    flat, flat_at = _flat_end(mask, box, close)
    edge, air = _surface(grey, mask, labels > 0, close.spacing)
    return KidneyFacts(
        volume_ml=float(np.count_nonzero(mask)) * voxel_ml,
        tissue_ml=float(np.count_nonzero(tissue)) * voxel_ml,
        centre=centre,
        centre_mm=_triple(c * s for c, s in zip(centre, close.image.full_spacing, strict=True)),
        hu=median,
        hu_spread=high - low,
        fat=fat,
        bone=bone,
        edge=edge,
        air=air,
        flat=flat,
        flat_at=flat_at,
        cut=_cut(close, tight),
        outside=_outside(close, mask, box),
    )


def _triple(values: Any) -> tuple[float, float, float]:
    first, second, third = (float(v) for v in values)
    return first, second, third


def _values(grey: Array, tissue: Array, spacing: Spacing) -> tuple[float, float, float, float, float]:
    """Quartiles of a tissue, and its shares of fat and bone; away from its surface where there is enough of it."""
    inner = ndimage.binary_erosion(tissue)
    inner = inner if np.count_nonzero(inner) >= _LEAST_VOXELS else tissue
    if not inner.any():
        return 0.0, 0.0, 0.0, 0.0, 0.0
    smooth = ndimage.gaussian_filter(grey, [min(1.0, 2.0 / s) for s in spacing])[inner]
    low, median, high = (float(q) for q in np.percentile(smooth, (25, 50, 75)))
    return low, median, high, float((smooth < _FAT_HU).mean()), float((smooth > _BONE_HU).mean())


def _surface(grey: Array, mask: Array, labelled: Array, spacing: Spacing) -> tuple[float, float]:
    """Shares of the surface at which the means on its two sides differ, and beyond which there is air."""
    sigma = [_EDGE_MM / s for s in spacing]
    soft = grey.clip(*_SOFT_HU)
    inside, outside = _local_mean(soft, mask, sigma), _local_mean(soft, ~labelled, sigma)
    surface = mask & ~ndimage.binary_erosion(mask, border_value=1)
    if not surface.any():
        return 1.0, 0.0
    steps, beyond = np.abs(inside - outside)[surface], outside[surface]
    return float((steps > _EDGE_HU).mean()), float((beyond < _AIR_HU).mean())


def _local_mean(grey: Array, mask: Array, sigma: list[float]) -> Array:
    weight = mask.astype(np.float32)
    total = ndimage.gaussian_filter(grey * weight, sigma, truncate=2.0)
    return cast("Array", total / np.maximum(ndimage.gaussian_filter(weight, sigma, truncate=2.0), 1e-3))


def _flat_end(mask: Array, box: Box, close: _Close) -> tuple[float, tuple[int, int, int]]:
    """The largest area that ends within one step along an axis, other than at the border of the scan."""
    best, at = 0.0, (0, 0, 0)
    for axis in range(3):
        turned = np.moveaxis(mask, axis, 0)
        sections = turned.sum(axis=(1, 2))
        for earlier, later, offset in ((turned[:-1], turned[1:], 0), (turned[1:], turned[:-1], 1)):
            ends = (earlier & ~later).sum(axis=(1, 2))
            share = float(ends.max(initial=0)) / max(1, int(sections.max()))
            if share > best:
                index = int(ends.argmax()) + offset
                best, at = share, _on_plane(turned[index], axis, index)
    return best, close.full(np.add(at, box.start))


def _on_plane(plane: Array, axis: int, index: int) -> tuple[int, int, int]:
    point = [round(float(c)) for c in np.argwhere(plane).mean(axis=0)]
    point.insert(axis, index)
    return point[0], point[1], point[2]


def _cut(close: _Close, tight: Box) -> bool:
    starts, stops = close.full(tight.start), close.full(tight.stop)
    steps = [s.step for s in close.steps]
    shape = close.image.full_shape
    return any(a <= 0 or b >= n or n - b < s for a, b, n, s in zip(starts, stops, shape, steps, strict=True))


def _outside(close: _Close, mask: Array, box: Box) -> float:
    """Share of a mask that lies outside of the body."""
    points = np.argwhere(mask)[::5] + box.start
    full = points * [s.step for s in close.steps] + close.bounds.start
    sketch = close.image.body
    scale = [a / b for a, b in zip(close.image.full_spacing, close.image.spacing, strict=True)]
    there = np.minimum((full * scale).astype(int), np.array(sketch.shape) - 1)
    return 1.0 - float(sketch[tuple(there.T)].mean()) if len(there) else 0.0


def voxel_at(image: ImageFacts, world_mm: tuple[float, float, float]) -> tuple[int, int, int]:
    """The canonical voxel z, y, x at a place x, y, z in the world."""
    xyz = np.linalg.solve(image.affine[:3, :3], np.asarray(world_mm) - image.affine[:3, 3])
    x, y, z = (int(np.clip(round(float(v)), 0, n - 1)) for v, n in zip(xyz, image.full_shape[::-1], strict=True))
    return z, y, x
