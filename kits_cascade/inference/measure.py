"""Lesions as numbers: side, volume, largest axial diameter, mean HU, and whether the scan cuts them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np

from kits_cascade.inference.certainty import calibrated, mean_certainty
from kits_cascade.inference.postprocess import KIDNEY_MM3
from kits_cascade.labels import CYST, LABEL_NAMES, TUMOR
from kits_cascade.volumes.components import Components, components
from kits_cascade.volumes.geometry import Box
from kits_cascade.volumes.volume import Array, Spacing

Side = Literal["left", "right"]
_TISSUE_HU: Final = -300
_STRIDE: Final = 4  # for the body's midline every fourth voxel will do
_JOINED: Final = 0.2  # a kidney with this part of itself on either side of the midline is a horseshoe
_APART_MM: Final = 60.0  # two kidneys this far apart lie on two sides
# An outline through the middle of the pixels' edges: n pixels in a row are n pixels long.
_EDGES: Final = np.array([(0.5, 0.0), (-0.5, 0.0), (0.0, 0.5), (0.0, -0.5)])


@dataclass(frozen=True)
class LesionRow:
    """One lesion: a 26-connected component of tumour or of cyst."""

    kind: str  # tumor or cyst
    number: int  # from 1, by volume, within its kind
    side: Side  # of the patient
    volume_ml: float
    diameter_mm: float  # the largest in-plane distance in any axial slice
    mean_hu: float
    cut_by_border: bool
    x_mm: float  # centroid, in the world of the file (RAS)
    y_mm: float
    z_mm: float
    slice: int  # canonical slice with the largest diameter, counted from 0 at the feet
    voxels: int
    certainty: float | None = None  # mean, of the network that told it; None where none has
    confidence: float | None = None  # how often such lesions are right; None of networks that were not calibrated


def volumes_ml(labels: Array, spacing: Spacing) -> dict[str, float]:
    """Volume of each label in mL."""
    voxel = np.prod(spacing)
    counts = {name: np.count_nonzero(labels == label) for label, name in LABEL_NAMES.items()}
    return {name: round(float(count * voxel) / 1000, 4) for name, count in counts.items()}


def body_midline(image: Array, affine: Array) -> float | None:
    """World x of the middle of the body, from the whole image; None when nothing is in it."""
    tissue = image[::_STRIDE, ::_STRIDE, ::_STRIDE] > _TISSUE_HU
    total = int(np.count_nonzero(tissue))
    if not total:
        return None
    along = [tissue.sum(axis=tuple(a for a in range(3) if a != axis)) for axis in (2, 1, 0)]
    mean = [float(counts @ np.arange(len(counts))) / total * _STRIDE for counts in along] + [1.0]
    return float(affine[0] @ mean)


def measure_lesions(
    labels: Array,
    image: Array,
    spacing: Spacing,
    affine: Array,
    origin: Box | None = None,
    full_shape: tuple[int, int, int] | None = None,
    midline_x: float | None = None,
    sure: Array | None = None,
    curve: tuple[float, float] | None = None,
) -> list[LesionRow]:
    """Measure every lesion in a canonical label map.

    ``labels`` and ``image`` may be the part inside ``origin`` of a scan of ``full_shape``; ``affine`` is always that of
    the whole scan. ``midline_x`` (see :func:`body_midline`) helps where there are not two kidneys to tell the sides by.
    ``sure`` is a certainty map of the same part (see :func:`kits_cascade.inference.certainty.certainty_map`), and
    ``curve`` says what that is worth (see :func:`kits_cascade.inference.certainty.calibrated`).
    """
    full_shape = full_shape or (labels.shape[0], labels.shape[1], labels.shape[2])
    origin = origin or Box.full(full_shape)
    box = Box.around(labels)
    if box is None:
        return []
    labels, image = box.crop(labels), box.crop(image)
    sure = None if sure is None else box.crop(sure)
    place = _Place(box.shifted(origin.start), affine, spacing, full_shape)
    sides = _Sides(labels, place, midline_x)
    rows = []
    for label in (TUMOR, CYST):
        found = components(labels == label)
        order = np.argsort(-found.voxels, kind="stable") + 1
        for rank, (number, part) in enumerate(found.boxes(order), start=1):
            mask = part.crop(found.labels) == number
            row = _row(LABEL_NAMES[label], rank, mask, part, image, place, sides)
            rows.append(row if sure is None else _rated(row, part.crop(sure)[mask], curve))
    return rows


@dataclass(frozen=True)
class _Place:
    """Where the measured part lies in the scan, and the scan in the world."""

    box: Box
    affine: Array
    spacing: Spacing
    full_shape: tuple[int, int, int]

    def world(self, zyx: Array) -> Array:
        """World coordinates of voxel indices in the part, one row per point."""
        xyz = (np.atleast_2d(zyx) + self.box.start)[:, ::-1]
        world: Array = xyz @ self.affine[:3, :3].T + self.affine[:3, 3]
        return world

    @property
    def axial_mm(self) -> Array:
        """Two-dimensional vectors in mm of a step along y and along x, also on oblique grids."""
        step_x, step_y = self.affine[:3, 0], self.affine[:3, 1]
        along = step_x / np.linalg.norm(step_x)
        across = step_y - (step_y @ along) * along
        return np.array([[step_y @ along, np.linalg.norm(across)], [np.linalg.norm(step_x), 0.0]])

    def cut(self, part: Box) -> bool:
        """Whether a part of the box reaches the border of the scan."""
        there = part.shifted(self.box.start)
        return any(a <= 0 or b >= n for a, b, n in zip(there.start, there.stop, self.full_shape, strict=True))


def _row(kind: str, rank: int, mask: Array, part: Box, image: Array, place: _Place, sides: _Sides) -> LesionRow:
    points = np.argwhere(mask) + part.start
    centre = place.world(points.mean(axis=0))[0]
    diameter, index = largest_axial_diameter(mask, place.axial_mm)
    return LesionRow(
        kind=kind,
        number=rank,
        side=sides.of(points, float(centre[0])),
        volume_ml=round(len(points) * float(np.prod(place.spacing)) / 1000, 4),
        diameter_mm=round(diameter, 2),
        mean_hu=round(float(part.crop(image)[mask].mean(dtype=np.float64)), 2),
        cut_by_border=place.cut(part),
        x_mm=round(float(centre[0]), 2),
        y_mm=round(float(centre[1]), 2),
        z_mm=round(float(centre[2]), 2),
        slice=index + part.start[0] + place.box.start[0],
        voxels=len(points),
    )


def _rated(row: LesionRow, levels: Array, curve: tuple[float, float] | None) -> LesionRow:
    """With its certainty, and what that is worth."""
    mean = mean_certainty(levels)
    if mean is None:
        return row
    worth = None if curve is None else round(calibrated(mean, curve), 4)
    return replace(row, certainty=round(mean, 4), confidence=worth)


def largest_axial_diameter(mask: Array, axial_mm: Array) -> tuple[float, int]:
    """Largest in-plane distance between two points of one axial slice's outline, and that slice's index."""
    from scipy.spatial.distance import pdist  # here, since no lesion is measured before the first tile

    best, at = 0.0, 0
    for index, plane in enumerate(mask):
        outline = _outline(plane)
        if not len(outline):
            continue
        points = outline @ axial_mm
        if float(np.linalg.norm(np.ptp(points, axis=0))) <= best:
            continue  # not even its bounding box is longer
        length = float(pdist(_hull(points)).max())
        if length > best:
            best, at = length, index
    return best, at


def _outline(plane: Array) -> Array:
    """Edge middles of the first and the last pixel of each row and each column: all that a hull can need."""
    ends = []
    for swap, array in ((False, plane), (True, plane.T)):
        rows = np.flatnonzero(array.any(axis=1))
        first = array[rows].argmax(axis=1)
        last = array.shape[1] - 1 - array[rows, ::-1].argmax(axis=1)
        pairs = np.concatenate([np.stack([rows, first], axis=1), np.stack([rows, last], axis=1)])
        ends.append(pairs[:, ::-1] if swap else pairs)
    pixels = np.unique(np.concatenate(ends), axis=0)
    outline: Array = (pixels[:, None, :] + _EDGES).reshape(-1, 2)
    return outline


def _hull(points: Array) -> Array:
    from scipy.spatial import ConvexHull, QhullError

    try:
        corners: Array = points[ConvexHull(points).vertices]
    except QhullError:  # never for outlines of pixels, which have an extent; but a diameter must not fail
        return points
    return corners


class _Sides:
    """Tells left from right: by the middle between two kidneys, else by the body's or the scan's middle."""

    def __init__(self, labels: Array, place: _Place, midline_x: float | None) -> None:
        self._found = components(labels > 0)
        self._place = place
        kidneys = self._kidneys()
        self._middle = self._choose_middle(kidneys, midline_x)
        self._sides = {number: side for number, x in kidneys.items() if (side := self._one_side(number, x))}

    def _kidneys(self) -> dict[int, float]:
        """World x of each component that is large enough for a kidney with its masses."""
        found, spacing = self._found, self._place.spacing
        large = np.flatnonzero(found.voxels * np.prod(spacing) >= KIDNEY_MM3) + 1
        return {int(n): float(self._place.world(c)[0][0]) for n, c in _centroids(found, large)}

    def _choose_middle(self, kidneys: dict[int, float], midline_x: float | None) -> float:
        largest = sorted(kidneys, key=lambda n: -int(self._found.voxels[n - 1]))[:2]
        xs = sorted(kidneys[number] for number in largest)
        if len(xs) == 2 and xs[1] - xs[0] >= _APART_MM and not (midline_x is not None and xs[0] < midline_x < xs[1]):
            return (xs[0] + xs[1]) / 2
        if midline_x is not None:
            return midline_x
        full = np.array(self._place.full_shape)
        return float(self._place.world((full - 1) / 2 - self._place.box.start)[0][0])

    def _one_side(self, number: int, x: float) -> Side | None:
        """The side of a kidney; None for one that lies on both (a horseshoe, or two that touch)."""
        own = self._place.world(np.argwhere(self._found.labels == number)[::7])[:, 0]
        right = float((own > self._middle).mean())
        return None if _JOINED <= right <= 1 - _JOINED else self._side(x)

    def _side(self, x: float) -> Side:
        # RAS: x grows towards the patient's right.
        return "right" if x > self._middle else "left"

    def of(self, points: Array, x: float) -> Side:
        """The side of a lesion: that of the kidney it is part of, else its own."""
        number = int(self._found.labels[tuple(points[0])])
        return self._sides.get(number) or self._side(x)


def _centroids(found: Components, numbers: Array) -> list[tuple[int, Array]]:
    centroids = found.statistics["centroids"]
    return [(int(n), centroids[int(n)]) for n in numbers]
