"""A CT and its labels, made small enough to stand in a page."""

from __future__ import annotations

import base64
import gzip
from dataclasses import dataclass
from typing import Final, Literal

import nibabel as nib
import numpy as np
from scipy import ndimage

from kits_cascade.errors import UsageError
from kits_cascade.volumes.volume import Array, Volume

MARGIN_MM: Final = 25.0
MEGABYTES: Final = 10.0
# What 8 bits hold: from fat to contrast medium in steps of 2.4 HU. Wider windows need 16 bits.
_EIGHT_BIT_HU: Final = (-200.0, 400.0)
_SIXTEEN_BIT_HU: Final = (-1024, 3071)
_DATA_SHARE: Final = 0.98


@dataclass(frozen=True)
class ViewOptions:
    """How much of the CT goes into the page."""

    bits: int = 8
    megabytes: float = MEGABYTES  # of the CT as it stands in the page; resolution is what gives way
    margin_mm: float = MARGIN_MM

    def __post_init__(self) -> None:
        if self.bits not in (8, 16):
            raise UsageError(f"{self.bits} bits for a voxel; choose 8 or 16")
        if not self.megabytes > 0:
            raise UsageError(f"a page of {self.megabytes:g} MB cannot be; give a size above 0")


def pack_scan(image: Volume, labels: Volume, options: ViewOptions) -> tuple[str, str, tuple[str, ...]]:
    """CT and labels as base64 of compressed NIfTI, no larger than was asked for; and what that has cost."""
    most = options.megabytes * 1e6 * 3 / 4
    levels, slope, inter = _levels(image.array, options.bits)
    factor = max(1.0, (_expected_bytes(levels) / most) ** (1 / 3))
    while True:
        step = _steps(image, factor)
        shown = _resampled(levels, step, order=1)
        packed = _nifti(shown, _scaled(image.affine, levels.shape, shown.shape), slope, inter)
        if len(packed) <= most or max(shown.shape) <= 16:
            break
        factor *= max(1.03, (len(packed) / most / _DATA_SHARE) ** (1 / 3))
    overlay = _resampled(labels.array, step, order=0)
    coarser = tuple(f"{new / old:.2f}" for new, old in zip(shown.shape, levels.shape, strict=True))
    note = (f"The CT is shown at a lower resolution ({' x '.join(reversed(coarser))}) to keep the page small.",)
    encoded = _nifti(overlay.astype(np.uint8), _scaled(labels.affine, levels.shape, overlay.shape))
    return to_base64(packed), to_base64(encoded), note if shown.shape != levels.shape else ()


def _levels(array: Array, bits: int) -> tuple[Array, float, float]:
    """Voxels as stored, and what turns them back into HU."""
    if bits == 16:
        return np.clip(np.nan_to_num(array), *_SIXTEEN_BIT_HU).astype(np.int16), 1.0, 0.0
    low, high = _EIGHT_BIT_HU
    scaled = (np.nan_to_num(array.astype(np.float32)) - low) * (255 / (high - low))
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8), (high - low) / 255, low


def _expected_bytes(levels: Array) -> float:
    """Of the whole, once compressed, from some of its slices."""
    some = np.ascontiguousarray(levels[:: max(1, len(levels) // 8)])
    return len(gzip.compress(some.tobytes(), 6, mtime=0)) * len(levels) / len(some)


def _steps(image: Volume, factor: float) -> Array:
    """By how much each axis is coarsened (z, y, x) so that a voxel is ``factor`` cubed as large: the finest first."""
    spacing = np.array(image.spacing)
    low, high = spacing.min(), spacing.max() * factor * 2
    for _ in range(40):
        middle = (low + high) / 2
        grown = np.maximum(spacing, middle) / spacing
        low, high = (middle, high) if grown.prod() < factor**3 else (low, middle)
    return np.maximum(spacing, high) / spacing if factor > 1 else np.ones(3)


def _resampled(array: Array, step: Array, order: Literal[0, 1]) -> Array:
    if (step <= 1.0).all():
        return array
    factors = [max(2, round(old / by)) / old for old, by in zip(array.shape, step.tolist(), strict=True)]
    work: Array = array
    if order and (step > 1.2).any():  # the finer grid's noise would only be aliased
        work = ndimage.gaussian_filter(array, np.where(step > 1.2, 0.35 * step, 0), truncate=2)
    return ndimage.zoom(work, factors, order=order, grid_mode=True, mode="nearest")


def _scaled(affine: Array, old: tuple[int, ...], new: tuple[int, ...]) -> Array:
    """The affine of the same field of view with other voxels: the outer corners coincide."""
    scale = (np.array(old) / np.array(new))[::-1]
    scaled = affine.copy()
    scaled[:3, :3] = affine[:3, :3] * scale
    scaled[:3, 3] += affine[:3, :3] @ ((scale - 1) / 2)
    return scaled


def _nifti(array: Array, affine: Array, slope: float = 1.0, inter: float = 0.0) -> bytes:
    """A compressed NIfTI file; by hand, since nibabel chooses the scaling itself."""
    header = nib.Nifti1Header()
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape[::-1])
    header.set_xyzt_units("mm")
    header.set_sform(affine, code=1)
    header.set_qform(affine, code=1)
    header.set_slope_inter(slope, inter)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    # z, y, x in C order is x, y, z in Fortran order, as NIfTI has it.
    return gzip.compress(header.binaryblock + bytes(4) + np.ascontiguousarray(array).tobytes(), 6, mtime=0)


def to_base64(content: bytes) -> str:
    """As text that a page can hold."""
    return base64.b64encode(content).decode("ascii")
