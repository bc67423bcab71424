"""Slices to look at: axial, coronal and sagittal through the largest lesion, as a radiologist hangs them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, cast

import numpy as np

from kits_cascade.errors import GeometryError
from kits_cascade.labels import CYST, KIDNEY, TUMOR
from kits_cascade.volumes.components import components
from kits_cascade.volumes.geometry import Box
from kits_cascade.volumes.volume import Array, Volume

MARGIN_MM: Final = 30.0
WINDOW_HU: Final = (-160.0, 240.0)  # soft tissue
_PLANES: Final = (("axial", 0), ("coronal", 1), ("sagittal", 2))


@dataclass(frozen=True)
class Plane:
    """One slice, hung: the patient's right is on the left, the front (sagittal: on the left) and the head are up."""

    name: str
    position: int  # index in the canonical volume
    image: Array | None  # grey levels 0..255
    truth: Array | None
    prediction: Array | None
    row_mm: float
    column_mm: float

    @property
    def size_mm(self) -> tuple[float, float]:
        """Height and width."""
        rows, columns = self._any.shape
        return rows * self.row_mm, columns * self.column_mm

    @property
    def _any(self) -> Array:
        return next(a for a in (self.image, self.truth, self.prediction) if a is not None)


def window(image: Array, limits: tuple[float, float] = WINDOW_HU) -> Array:
    """Grey levels 0..255 of CT numbers."""
    low, high = limits
    values = np.nan_to_num(image.astype(np.float32), nan=low, posinf=high, neginf=low)
    levels: Array = np.clip((values - low) * (255 / (high - low)), 0, 255).astype(np.uint8)
    return levels


def focus(*label_maps: Array | None) -> tuple[int, int, int] | None:
    """Where the largest lesion of the first label map that has one is widest, z, y, x.

    A tumour comes before a cyst, a cyst before a kidney; within one rank the truth (first) decides.
    """
    known = [labels for labels in label_maps if labels is not None]
    for group in ((TUMOR,), (CYST,), (KIDNEY,)):
        for labels in known:
            mask = np.isin(labels, group)
            if mask.any():
                return _widest(mask)
    return None


def _widest(mask: Array) -> tuple[int, int, int]:
    found = components(mask)
    number = int(found.voxels.argmax()) + 1
    z, y, x = (int(np.argmax((found.labels == number).sum(axis=tuple({0, 1, 2} - {axis})))) for axis in range(3))
    return z, y, x


def planes(
    image: Volume | None,
    truth: Volume | None,
    prediction: Volume | None,
    margin_mm: float = MARGIN_MM,
    point: tuple[int, int, int] | None = None,
) -> list[Plane]:
    """The three slices of a case, cut to what is segmented with a margin; the whole slices where nothing is.

    They meet in ``point``, or in the largest lesion.
    """
    given = [volume for volume in (image, truth, prediction) if volume is not None]
    shape, spacing = given[0].shape, given[0].spacing
    for volume in given:
        if volume.shape != shape:
            raise GeometryError(f"image, truth and prediction have different shapes: {volume.shape} and {shape}")
    maps = [volume.array for volume in (truth, prediction) if volume is not None]
    boxes = [box for box in map(Box.around, maps) if box is not None]
    segmented = boxes[0].union(boxes[-1]) if boxes else Box.full(shape)
    view = segmented.grown(margin_mm, spacing).clipped(shape)
    if point is not None:
        met = [min(max(p, a), b - 1) for p, a, b in zip(point, view.start, view.stop, strict=True)]
    else:
        centre = focus(*(segmented.crop(labels) for labels in maps)) or tuple(n // 2 for n in segmented.shape)
        met = [c + s for c, s in zip(centre, segmented.start, strict=True)]
    return list(_cut(image, truth, prediction, view, met))


def sagittal_planes(
    image: Volume, truth: Volume, prediction: Volume, count: int, margin_mm: float = MARGIN_MM
) -> list[Plane]:
    """Evenly spread slices through all that is segmented, from the patient's right to the left."""
    boxes = [box for box in map(Box.around, (truth.array, prediction.array)) if box is not None]
    segmented = boxes[0].union(boxes[-1]) if boxes else Box.full(image.shape)
    view = segmented.grown(margin_mm, image.spacing).clipped(image.shape)
    places = np.linspace(segmented.stop[2] - 1, segmented.start[2], count + 2)[1:-1]
    points = [[*segmented.start[:2], round(place)] for place in places.tolist()]
    return [list(_cut(image, truth, prediction, view, point))[2] for point in points]


def _cut(
    image: Volume | None, truth: Volume | None, prediction: Volume | None, view: Box, point: list[int]
) -> Iterator[Plane]:
    spacing = next(volume for volume in (image, truth, prediction) if volume is not None).spacing
    for name, axis in _PLANES:
        rows, columns = (i for i in range(3) if i != axis)
        where: list[slice | int] = list(view.slices)
        where[axis] = point[axis]
        # Canonical axes run to the patient's right, front and head: all of them are turned for hanging.
        cut = [None if v is None else v.array[tuple(where)][::-1, ::-1] for v in (image, truth, prediction)]
        grey = None if cut[0] is None else window(cut[0])
        yield Plane(name, point[axis], grey, cut[1], cut[2], spacing[rows], spacing[columns])


def outlines(mask: Array, plane: Plane) -> list[Array]:
    """Closed lines around a mask of the plane: (n, 2) points x, y in mm from the upper left corner."""
    from contourpy import contour_generator

    padded = np.pad(mask.astype(np.float32), 1)
    # Index i of the padded mask is the centre of pixel i - 1.
    lines = cast("list[Array]", contour_generator(z=padded).lines(0.5))
    return [(line - 0.5) * np.array((plane.column_mm, plane.row_mm)) for line in lines]
