"""A CT or a label map in canonical order, and the way back to how its file stores it.

Canonical is what nnU-Net's ``NibabelIOWithReorient`` gives: the closest axis order to RAS, indexed z, y, x. Reading and
writing is in :mod:`kits_cascade.volumes.nifti`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final, cast

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

from kits_cascade.errors import GeometryError

Array = np.ndarray[Any, Any]
Spacing = tuple[float, float, float]
_STRIP: Final = 4  # rows that are copied at a time


@dataclass(frozen=True)
class StoredAs:
    """How the file stores the volume: what is needed to write a result beside it."""

    shape: tuple[int, int, int]
    affine: Array
    header: Any

    @property
    def orientation(self) -> Array:
        """nibabel's orientation array from the stored axes to RAS."""
        return cast("Array", io_orientation(self.affine))


@dataclass(frozen=True)
class Volume:
    """An array in canonical z, y, x order with its place in the world."""

    array: Array
    affine: Array  # of the canonical array in x, y, z order, RAS millimetres
    stored: StoredAs

    @property
    def spacing(self) -> Spacing:
        """Voxel size in mm, z, y, x."""
        return affine_spacing(self.affine)

    @property
    def voxel_mm3(self) -> float:
        """Volume of one voxel."""
        return float(np.prod(self.spacing))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the canonical array, z, y, x."""
        return cast("tuple[int, int, int]", self.array.shape)

    def with_array(self, array: Array) -> Volume:
        """Another array of the same shape in the same place."""
        if array.shape != self.array.shape:
            raise GeometryError(f"an array of shape {array.shape} does not fit a volume of shape {self.array.shape}")
        return replace(self, array=array)

    def cropped(self, slices: tuple[slice, slice, slice]) -> Volume:
        """The part inside ``slices`` (z, y, x), a volume of its own, in its place in the world, stored canonically."""
        start = np.array([s.indices(n)[0] for s, n in zip(slices, self.shape, strict=True)])
        affine = self.affine.copy()
        affine[:3, 3] += self.affine[:3, :3] @ start[::-1]
        return volume_from_array(self.array[slices], affine)


def affine_spacing(affine: Array) -> Spacing:
    """Voxel size in mm, z, y, x, in the single precision in which NIfTI headers (and so nnU-Net) hold it."""
    sizes = np.sqrt((affine[:3, :3].astype(np.float64) ** 2).sum(axis=0)).astype(np.float32)
    return cast("Spacing", tuple(float(size) for size in sizes[::-1]))


def laid_out(view: Array) -> Array:
    """The array in C's order, copied only where it lies in memory in another one.

    In strips, as they lie first: numpy alone would jump through the whole of a scan that is stored slice by slice for
    every row, which takes three times as long.
    """
    if view.flags.c_contiguous or view.ndim != 3:
        return np.ascontiguousarray(view)
    made = np.empty(view.shape, view.dtype)
    for start in range(0, view.shape[1], _STRIP):
        strip = slice(start, start + _STRIP)
        made[:, strip] = view[:, strip].copy(order="K")
    return made


def volume_from_array(array: Array, affine: Array | None = None, spacing: Spacing | None = None) -> Volume:
    """A volume from a canonical z, y, x array, with an RAS affine or only a spacing (z, y, x)."""
    if affine is None:
        sizes = spacing or (1.0, 1.0, 1.0)
        affine = np.diag([*sizes[::-1], 1.0])
    header = nib.Nifti1Header()
    stored = StoredAs(cast("tuple[int, int, int]", array.shape[::-1]), affine, header)
    return Volume(array, affine, stored)


def volume_from_stored(array: Array, affine: Array, header: Any | None = None) -> Volume:
    """A volume from an array in a file's own axis order (as nibabel indexes it) and that file's affine."""
    check_affine(affine)
    header = nib.Nifti1Header() if header is None else header
    stored = StoredAs(cast("tuple[int, int, int]", array.shape), np.asarray(affine, dtype=np.float64), header)
    canonical = apply_orientation(array, stored.orientation)
    return Volume(canonical.transpose(2, 1, 0), stored.affine @ inv_ornt_aff(stored.orientation, array.shape), stored)


def to_stored(volume: Volume, array: Array | None = None) -> Array:
    """The array in the axis order of the file (the inverse of reading). A view where numpy can."""
    data = volume.array if array is None else array
    if data.shape != volume.array.shape:
        raise GeometryError(f"an array of shape {data.shape} does not fit a volume of shape {volume.array.shape}")
    return cast("Array", apply_orientation(data.transpose(2, 1, 0), _inverse(volume.stored.orientation)))


def _inverse(orientation: Array) -> Array:
    """Orientation that takes RAS axes to the stored ones."""
    inverse = np.empty_like(orientation)
    for axis, (target, flip) in enumerate(orientation):
        inverse[int(target)] = (axis, flip)
    return inverse


def check_affine(affine: Array) -> None:
    """An affine that places voxels: finite, no axis of length zero, not flat."""
    block = np.asarray(affine)[:3, :3]
    if not np.isfinite(affine).all():
        raise GeometryError("the affine has values that are not finite; rewrite the file with a valid header")
    if (np.abs(block).sum(axis=0) == 0).any() or abs(np.linalg.det(block)) < 1e-12:
        raise GeometryError("a voxel size is zero or the affine is singular; rewrite the file with its true spacing")
