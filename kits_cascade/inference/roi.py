"""Where the fine stages look: boxes around the kidneys that the coarse stage found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from kits_cascade.components import components, without_specks
from kits_cascade.geometry import Box, resampled_size, roi_box
from kits_cascade.volume import Array, Spacing

_STRETCH: Final = 0.25  # by how much of its length an edge may grow for the sake of its grid


def regions_of(mask: Array, spacing: Spacing, margin_mm: float) -> list[Box]:
    """The boxes to work on, on the mask's own grid: one for each kidney where these lie well apart.

    Boxes that share a voxel become one, and so do boxes whose common box is no larger than the two: so no voxel is in
    two boxes, and never are there more voxels in them than in the one box around everything.
    """
    found = components(without_specks(mask, spacing))
    boxes = [found.box(number).grown(margin_mm, spacing).clipped(mask.shape) for number in range(1, found.count + 1)]
    whole = roi_box(found.labels, spacing, margin_mm)
    apart = merged(boxes)
    if whole is None or sum(box.size for box in apart) < whole.size:
        return apart
    return [whole]


def regions_in_volume(coarse: Array, spacing: Spacing, shape: Sequence[int], margin_mm: float) -> list[Box]:
    """The boxes that a coarse mask asks for, in a volume of ``shape`` whose whole field of view it shows."""
    first, second, third = (s * n / m for s, n, m in zip(spacing, shape, coarse.shape, strict=True))
    boxes = regions_of(coarse, (first, second, third), margin_mm)
    # Rounding outwards must not make them overlap.
    return merged([box.on_grid(coarse.shape, shape) for box in boxes])


def merged(boxes: Sequence[Box]) -> list[Box]:
    """Unite boxes until no two intersect, and none could be united without work on more voxels."""
    done: list[Box] = []
    for box in sorted(boxes, key=lambda b: b.start):
        current = box
        # The united box may reach others that it did not reach before, so start over until nothing joins.
        while (other := next((b for b in done if _belong_together(b, current)), None)) is not None:
            done.remove(other)
            current = current.union(other)
        done.append(current)
    return sorted(done, key=lambda b: b.start)


def _belong_together(first: Box, second: Box) -> bool:
    return first.intersects(second) or first.union(second).size <= first.size + second.size


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


def sampled(mask: Array, box: Box, shape: Sequence[int]) -> Array:
    """A mask of the whole field of view at any resolution, at the voxels of ``box`` in a grid of ``shape``."""
    index = [
        np.minimum(((np.arange(a, b) + 0.5) * (m / n)).astype(np.intp), m - 1)
        for a, b, m, n in zip(box.start, box.stop, mask.shape, shape, strict=True)
    ]
    result: Array = mask[np.ix_(*index)]
    return result


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
