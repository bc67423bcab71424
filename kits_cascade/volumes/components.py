"""Connected components (26-connected, by cc3d) and distances in mm (by edt)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, cast

import cc3d
import edt
import numpy as np

from kits_cascade.volumes.geometry import Box
from kits_cascade.volumes.volume import Array, Spacing

# A component of a coarse kidney mask below this is noise: the smallest kidney has fifty times as much.
SPECK_MM3: Final = 200.0


@dataclass(frozen=True)
class Components:
    """A mask's components, numbered from 1."""

    labels: Array
    count: int

    @cached_property
    def statistics(self) -> dict[str, Any]:
        """cc3d's statistics; index 0 is the background."""
        return cast("dict[str, Any]", cc3d.statistics(self.labels))

    @cached_property
    def voxels(self) -> Array:
        """Voxels of each component, from component 1 on."""
        inside = self.labels[self.labels != 0]  # mostly few: counting takes eight bytes for each
        return np.bincount(inside, minlength=self.count + 1)[1:]

    def box(self, number: int) -> Box:
        """Smallest box around a component."""
        found = Box.around(self.labels == number)
        if found is None:
            raise ValueError(f"there is no component {number}")
        return found

    def boxes(self, numbers: Iterable[int]) -> list[tuple[int, Box]]:
        """Boxes of components, all from one pass over the array."""
        found = self.statistics["bounding_boxes"]
        return [(int(n), Box.of_slices(found[int(n)])) for n in numbers]

    def keep(self, numbers: Array | list[int]) -> Array:
        """Mask of the components whose numbers are given."""
        table = np.zeros(self.count + 1, dtype=bool)
        table[np.asarray(numbers, dtype=np.intp)] = True
        return cast("Array", table[self.labels])


def components(mask: Array) -> Components:
    """Components of a mask, 26-connected as in the challenge's own lesion definition."""
    labels, count = cc3d.connected_components(np.ascontiguousarray(mask, dtype=bool), connectivity=26, return_N=True)
    return Components(labels, int(count))


def volumes_mm3(found: Components, spacing: Spacing) -> Array:
    """Volume of each component, from component 1 on."""
    return cast("Array", found.voxels * float(np.prod(spacing)))


def without_specks(mask: Array, spacing: Spacing, smallest_mm3: float = SPECK_MM3) -> Array:
    """The mask without tiny components, unless there is nothing else: then recall matters more, and all of it stays."""
    found = components(mask)
    large = np.flatnonzero(volumes_mm3(found, spacing) >= smallest_mm3) + 1
    return found.keep(large) if len(large) else mask.astype(bool)


def dilated_mm(mask: Array, spacing: Spacing, radius_mm: float) -> Array:
    """All voxels whose centre is at most ``radius_mm`` from a voxel centre of the mask."""
    if not mask.any():
        return np.zeros(mask.shape, dtype=bool)
    outside = np.ascontiguousarray(mask == 0)
    return cast("Array", edt.edtsq(outside, anisotropy=spacing) <= radius_mm**2 + 1e-6)
