"""Where the fine stages look: boxes around the kidneys that the coarse stage found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from kits_cascade.volumes.components import components
from kits_cascade.volumes.geometry import Box, picked_from, resampled_size
from kits_cascade.volumes.volume import Array, Spacing

_STRETCH: Final = 0.25  # by how much of its length an edge may grow for the sake of its grid


@dataclass(frozen=True)
class FineGrid:
    """What the fine networks work on, in the volume's axes."""

    spacing: Spacing
    patch: tuple[int, int, int]  # the longest edges of any network's patch, in voxels of that spacing
    tile_step: float

    def voxels(self, axis: int, size: int, spacing: Spacing) -> int:
        """The length of an edge once it is resampled."""
        return resampled_size(size, spacing[axis], self.spacing[axis])

    def tiles(self, axis: int, size: int, spacing: Spacing) -> int:
        """How many patches an edge takes."""
        beyond = self.voxels(axis, size, spacing) - self.patch[axis]
        return 1 + max(0, math.ceil(beyond / (self.patch[axis] * self.tile_step)))


def surroundings(box: Box, spacing: Spacing, grid: FineGrid, shape: Sequence[int]) -> Box:
    """What the fine networks are shown: the box, and around it what costs the one with the longest patch no tile.

    An edge that is shorter than a patch would be padded with a constant. In training that is rare from left to right,
    where one region holds both kidneys; and the constant lies among the values of soft tissue. And an edge that loses
    or gains exactly one voxel on the way to a fine spacing that is nearly its own has the worst of grids: the two drift
    apart by half a voxel up to the middle of the box, where the kidney is, and every sample there lies between two
    voxels. With two voxels they meet again in the middle.
    """
    start, stop = [0, 0, 0], [0, 0, 0]
    for axis in range(3):
        size = _edge(axis, box.shape[axis], spacing, grid, shape[axis])
        before = (size - box.shape[axis]) // 2
        start[axis] = min(max(0, box.start[axis] - before), shape[axis] - size)
        stop[axis] = start[axis] + size
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


def _edge(axis: int, size: int, spacing: Spacing, grid: FineGrid, most: int) -> int:
    """The length of an edge with its surroundings."""
    tiles = grid.tiles(axis, size, spacing)
    longest = max(size, min(most, int((grid.patch[axis] + 0.5) * grid.spacing[axis] / spacing[axis])))
    while grid.tiles(axis, longest, spacing) > tiles:
        longest -= 1
    stretched = range(longest, min(most, longest + int(_STRETCH * longest)) + 1)
    cheap = (n for n in stretched if grid.tiles(axis, n, spacing) == tiles)
    return next((n for n in cheap if abs(grid.voxels(axis, n, spacing) - n) != 1), longest)


def mask_on_grid(mask: Array, box: Box, shape: Sequence[int]) -> Array:
    """A mask of the whole field of view at any resolution, at the voxels of ``box`` in a grid of ``shape``."""
    index = [
        np.minimum(((np.arange(a, b) + 0.5) * (m / n)).astype(np.intp), m - 1)
        for a, b, m, n in zip(box.start, box.stop, mask.shape, shape, strict=True)
    ]
    return picked_from(mask, index)


def without_strangers(kidney: Array, near: Array | None, box: Box, shape: Sequence[int]) -> Array:
    """The kidney mask of a box without other organs that reach into it (spleen and liver, mostly).

    What the box cuts, and the coarse stage, which looks for recall, did not see at all, belongs to something that lies
    outside. Left in, it would also make the box grow into that organ.
    """
    if near is None or not box.inner_faces_touched(kidney, shape):
        return kidney
    found = components(kidney)
    seen = np.unique(found.labels[near != 0])
    cut = [
        number
        for number in range(1, found.count + 1)
        if number not in seen and box.inner_faces_touched(found.labels == number, shape)
    ]
    return found.keep([number for number in range(1, found.count + 1) if number not in cut]) if cut else kidney
