"""Masks as closed, smooth surfaces in the world's millimetres, as a viewer draws them."""

from __future__ import annotations

import gzip
import struct
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import ndimage

from kits_cascade.volumes.geometry import Box
from kits_cascade.volumes.volume import Array, Spacing

_SMOOTH_MM: Final = 1.0
_FINEST_MM: Final = 0.5
_COARSEST_MM: Final = 1.5
_STEPS: Final = 14  # across the shortest side of a small lesion
_MZ3_MAGIC: Final = 23117
_MZ3_FACES_AND_VERTICES: Final = 3


@dataclass(frozen=True)
class Surface:
    """Triangles in world coordinates (RAS millimetres), seen from outside counter-clockwise."""

    vertices: Array  # n, 3
    faces: Array  # m, 3

    @property
    def volume_mm3(self) -> float:
        """What the surface encloses."""
        first, second, third = (self.vertices[self.faces[:, corner]].astype(np.float64) for corner in range(3))
        return float(np.einsum("ij,ij->i", first, np.cross(second, third)).sum() / 6)

    def to_mz3(self) -> bytes:
        """In Surfice's and NiiVue's own compact format."""
        head = struct.pack("<HHIII", _MZ3_MAGIC, _MZ3_FACES_AND_VERTICES, len(self.faces), len(self.vertices), 0)
        return gzip.compress(head + self.faces.astype("<i4").tobytes() + self.vertices.astype("<f4").tobytes(), mtime=0)


def mask_surface(mask: Array, spacing: Spacing, affine: Array) -> Surface | None:
    """The surface of a canonical (z, y, x) mask; None where nothing is in it."""
    from skimage.measure import marching_cubes

    box = Box.around(mask)
    if box is None:
        return None
    field, scale = _smooth_field(np.pad(box.crop(mask), 3), spacing)
    vertices, faces, _, _ = marching_cubes(field, 0.5)
    zyx = vertices * scale - 3 + np.array(box.start)
    world = zyx[:, ::-1] @ affine[:3, :3].T + affine[:3, 3]
    surface = Surface(world.astype(np.float32), faces)
    # Which way round the triangles run depends on the axes; outside is where the volume is positive.
    return surface if surface.volume_mm3 > 0 else Surface(surface.vertices, faces[:, ::-1])


def _smooth_field(mask: Array, spacing: Spacing) -> tuple[Array, Array]:
    """A mask as a smooth field on a grid of nearly equal steps, and how many voxels of the mask such a step is."""
    extent = min((n - 6) * size for n, size in zip(mask.shape, spacing, strict=True))
    step = float(np.clip(extent / _STEPS, _FINEST_MM, _COARSEST_MM))
    sharp = mask.astype(np.float32)
    field = ndimage.gaussian_filter(sharp, [_SMOOTH_MM / size for size in spacing], truncate=2.5)
    if field.max() <= 0.6:  # a speck would be smoothed away
        field = sharp
    sizes = [max(2, round((n - 1) * size / step) + 1) for n, size in zip(mask.shape, spacing, strict=True)]
    zoomed = ndimage.zoom(field, [new / old for new, old in zip(sizes, mask.shape, strict=True)], order=1)
    scale = (np.array(mask.shape) - 1) / (np.array(zoomed.shape) - 1)
    if zoomed.max() <= 0.5:  # a single voxel that the grid's points have missed
        return field, np.ones(3)
    return zoomed, scale
