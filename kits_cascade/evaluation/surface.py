"""Surfaces of masks, their area, and the distances between them.

The same quantities as DeepMind's ``surface-distance`` package (Apache-2.0), which the challenge scores with, and the
same numbers: a surface element sits at each corner of the voxel grid whose eight voxels are not all alike, and its area
is that of the triangles that marching cubes lays there. What differs is the way: distances are looked up among near
grid corners first, and only corners far from the other surface ask a k-d tree, so no distance map is ever made.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Final, cast

import numpy as np
from scipy.spatial import KDTree

from kits_cascade.volumes.volume import Array, Spacing

# Marching cubes' normals, in eighths of a voxel face, for the 14 neighbourhoods that differ by more than a rotation, a
# reflection, or the exchange of inside and outside. A digit per axis; signs do not matter for an area.
# Derived from `lookup_tables.py` of surface-distance, Copyright 2018 Google Inc., Apache-2.0.
_NORMALS: Final = {
    0b00000000: "",
    0b00000001: "111",
    0b00000011: "220 220",
    0b00000110: "111 111",
    0b00000111: "400 222 111",
    0b00001111: "400 400",
    0b00010110: "111 111 111",
    0b00010111: "111 222 222 111",
    0b00011000: "111 111",
    0b00011001: "022 022 111",
    0b00011011: "111 333 022 202",
    0b00011110: "400 111 222 111",
    0b00111100: "220 220 220 220",
    0b01101001: "111 111 111 111",
}
_BITS: Final = np.array([[[128, 64], [32, 16]], [[8, 4], [2, 1]]])
_NEAR_MM: Final = 4.0
_NEAR_OFFSETS: Final = 160


@cache
def _normals() -> Array:
    """Normals of all 256 neighbourhood codes: (256, 4, 3), not negative."""
    table = np.zeros((256, 4, 3))
    for code, text in _NORMALS.items():
        normals = np.array([[int(digit) for digit in word] for word in text.split()]).reshape(-1, 3) / 8
        corners = (code & _BITS) > 0
        for axes in itertools.permutations(range(3)):
            turned = corners.transpose(axes)
            for flips in itertools.product((slice(None), slice(None, None, -1)), repeat=3):
                image = int(_BITS[turned[flips]].sum())
                for same in (image, 255 - image):
                    table[same, : len(normals)] = normals[:, axes]
    return table


def surfel_areas(spacing: Spacing) -> Array:
    """Area in mm2 of the surface element of each of the 256 neighbourhood codes."""
    z, y, x = spacing
    return cast("Array", np.linalg.norm(_normals() * (y * x, z * x, z * y), axis=2).sum(axis=1))


def neighbour_codes(mask: Array) -> Array:
    """Code of the eight voxels around each corner of the voxel grid; outside the array is background."""
    codes: Array = np.pad(np.ascontiguousarray(mask).view(np.uint8), 1)
    codes = (codes[:, :, :-1] << 1) | codes[:, :, 1:]
    codes = (codes[:, :-1] << 2) | codes[:, 1:]
    return (codes[:-1] << 4) | codes[1:]


@dataclass(frozen=True)
class Surface:
    """The surface elements of a mask."""

    points: Array  # (n, 3) corners of the voxel grid, z, y, x
    areas: Array  # (n,) mm2
    shape: tuple[int, int, int]  # of the corner grid
    spacing: Spacing

    @staticmethod
    def of(mask: Array, spacing: Spacing) -> Surface:
        """The surface of a boolean mask."""
        codes = neighbour_codes(mask)
        # Codes 1..254 are surface; the subtraction wraps 0 to 255, and one comparison does for both ends.
        index = np.flatnonzero((codes - np.uint8(1)) < 254)
        points = np.stack(np.unravel_index(index, codes.shape), axis=1).astype(np.int32)
        areas = surfel_areas(spacing)[codes.reshape(-1)[index]]
        return Surface(points, areas, cast("tuple[int, int, int]", codes.shape), spacing)

    @property
    def area(self) -> float:
        """Area of the whole surface in mm2."""
        return float(self.areas.sum())

    @cached_property
    def tree(self) -> KDTree:
        """The surface's points in mm."""
        return KDTree(self.points * np.asarray(self.spacing), balanced_tree=False, compact_nodes=False, leafsize=32)

    def distances_to(self, other: Surface) -> Array:
        """Distance in mm from each element to the nearest one of ``other``; infinite where that has none."""
        distances = np.full(len(self.points), np.inf)
        if len(other.points) == 0 or len(self.points) == 0:
            return distances
        far = _near_distances(self, other, distances)
        if len(far):
            distances[far] = other.tree.query(self.points[far] * np.asarray(self.spacing))[0]
        return distances


@cache
def _near_offsets(spacing: Spacing) -> tuple[Array, Array]:
    """Offsets between near grid corners and their lengths in mm, in ascending order: a complete ball."""
    reach = [min(int(_NEAR_MM / s), 6) for s in spacing]
    grids = np.meshgrid(*(np.arange(-r, r + 1) for r in reach), indexing="ij")
    offsets = np.stack([g.ravel() for g in grids], axis=1)
    lengths = np.sqrt(((offsets * np.asarray(spacing)) ** 2).sum(axis=1))
    # Complete up to the nearest corner that the grid of offsets leaves out.
    limit = min((r + 1) * s for r, s in zip(reach, spacing, strict=True))
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] < limit][:_NEAR_OFFSETS]
    return offsets[order], lengths[order]


def _near_distances(surface: Surface, other: Surface, distances: Array) -> Array:
    """Fill in the distances to near corners of ``other``; the elements that have none near."""
    offsets, lengths = _near_offsets(surface.spacing)
    margin = np.abs(offsets).max(axis=0)
    padded = np.asarray(surface.shape) + 2 * margin
    strides = np.array([padded[1] * padded[2], padded[2], 1])
    occupied = np.zeros(int(np.prod(padded)), dtype=bool)
    occupied[(other.points + margin) @ strides] = True
    left = np.arange(len(surface.points))
    places = (surface.points + margin) @ strides
    for step, length in zip((offsets @ strides).tolist(), lengths.tolist(), strict=True):
        hit = occupied[places + step]
        distances[left[hit]] = length
        left, places = left[~hit], places[~hit]
        if not len(left):
            break
    return left


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances between two surfaces, in both directions, with the areas that weigh them."""

    truth_to_prediction: Array
    prediction_to_truth: Array
    truth_areas: Array
    prediction_areas: Array

    @staticmethod
    def between(truth: Array, prediction: Array, spacing: Spacing) -> SurfaceDistances:
        """Of two boolean masks of one shape."""
        a, b = Surface.of(truth, spacing), Surface.of(prediction, spacing)
        return SurfaceDistances(a.distances_to(b), b.distances_to(a), a.areas, b.areas)

    def dice(self, tolerance_mm: float) -> float:
        """Share of both surfaces that lies within the tolerance of the other: the challenge's surface Dice."""
        near = self.truth_areas[self.truth_to_prediction <= tolerance_mm].sum()
        near += self.prediction_areas[self.prediction_to_truth <= tolerance_mm].sum()
        return float(near / (self.truth_areas.sum() + self.prediction_areas.sum()))

    def hausdorff(self, percent: float = 100.0) -> float:
        """The (robust) Hausdorff distance in mm: the larger of the two directions' percentiles by area."""
        return max(
            _percentile(self.truth_to_prediction, self.truth_areas, percent),
            _percentile(self.prediction_to_truth, self.prediction_areas, percent),
        )

    def mean(self) -> float:
        """Average symmetric surface distance in mm, weighted by area over both surfaces together."""
        total = self.truth_to_prediction @ self.truth_areas + self.prediction_to_truth @ self.prediction_areas
        return float(total / (self.truth_areas.sum() + self.prediction_areas.sum()))


def _percentile(distances: Array, areas: Array, percent: float) -> float:
    if percent >= 100:
        return float(distances.max())
    # Sorted and summed as the package does it, so that rounding falls alike where a step meets the percentile.
    order = np.lexsort((areas, distances))
    share = np.cumsum(areas[order]) / np.sum(areas[order])
    place = int(np.searchsorted(share, percent / 100))
    return float(distances[order[min(place, len(order) - 1)]])
