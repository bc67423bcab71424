"""What the checks of plausibility look at, measured once per case and coarsely, so that it costs next to nothing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final, cast

import numpy as np
from scipy import ndimage

from kits_cascade.volumes.components import components
from kits_cascade.volumes.volume import Array, Spacing, Volume, laid_out

_SKETCH_MM: Final = 4.0  # a look at the whole scan
PADDING_HU: Final = -1100  # below it there is no air but what scanners write where they have measured nothing
_TISSUE_HU: Final = -300
_BONE_HU: Final = 200
_MIDDLE_MM: Final = 40.0  # how far from the body's middle a spine may well stand; kidneys lie at 60 and more
_SLAB_MM: Final = 40.0  # a vertebra with its disc: bone is in each
_IN_NEARLY_ALL: Final = 0.3
_BACK: Final = 0.55  # of the body's depth; spines stand at 0.15 ... 0.5
_AS_DENSE: Final = 0.2  # beside the densest column of all
_SLICE_STRIDE: Final = 4


def every_mm(spacing: Spacing, target_mm: float) -> tuple[slice, slice, slice]:
    """Slices that take a voxel about every ``target_mm``."""
    first, second, third = (slice(None, None, max(1, round(target_mm / size))) for size in spacing)
    return first, second, third


def stepped(steps: tuple[slice, ...], spacing: Spacing) -> Spacing:
    """The spacing of what they take."""
    first, second, third = (step.step * size for step, size in zip(steps, spacing, strict=True))
    return first, second, third


@dataclass(frozen=True, eq=False)
class ImageFacts:
    """The scan as a whole, at about 4 mm."""

    sketch: Array  # float32
    spacing: Spacing  # of the sketch
    full_shape: tuple[int, int, int]
    full_spacing: Spacing
    affine: Array
    jumps: Array  # from each slice to the next: mean absolute difference, clipped to soft tissue; 0 for the very same
    air_only: bool = False

    @staticmethod
    def of(volume: Volume, air_only: bool = False) -> ImageFacts:
        """Of a volume in canonical axes."""
        steps = every_mm(volume.spacing, _SKETCH_MM)
        sketch = volume.array[steps].astype(np.float32)
        sizes = stepped(steps, volume.spacing)
        jumps = _slice_jumps(volume.array)
        return ImageFacts(sketch, sizes, volume.shape, volume.spacing, volume.affine, jumps, air_only)

    @cached_property
    def values(self) -> Array:
        """The values that were measured: without what stands for nothing measured."""
        flat = self.sketch.ravel()
        lowest = float(flat.min())
        rest = flat[flat > lowest]
        # One value far below all others is padding, whatever it is.
        if len(rest) and float(rest.min()) - lowest > -PADDING_HU / 3 and len(rest) < 0.999 * len(flat):
            return cast("Array", rest)
        return cast("Array", flat)

    @cached_property
    def body(self) -> Array:
        """Mask of the body: its largest piece of tissue, with the air inside."""
        thin = ndimage.binary_opening(self.sketch > _TISSUE_HU)
        found = components(thin)
        if not found.count:
            return cast("Array", thin)
        largest = found.labels == int(found.voxels.argmax()) + 1
        for plane in largest:
            ndimage.binary_fill_holes(plane, output=plane)
        return cast("Array", largest)

    @cached_property
    def smooth(self) -> Array:
        """The sketch without its noise, cut to soft tissue and a little more."""
        smooth: Array = ndimage.uniform_filter(self.sketch.clip(-200, 400), 3)
        return smooth

    @cached_property
    def inner(self) -> Array:
        """Values of the inside of the body, without its surface and without air."""
        inner: Array = self.smooth[ndimage.binary_erosion(self.body & (self.smooth > -190))]
        return inner

    @cached_property
    def bone(self) -> Array:
        """Mask of what is as dense as bone (and contrast medium)."""
        return cast("Array", (self.sketch > _BONE_HU) & self.body)

    @cached_property
    def lungs(self) -> Array:
        """Mask of air in the body, without what is thin."""
        return cast("Array", ndimage.binary_opening((self.sketch < -500) & (self.sketch > PADDING_HU) & self.body))

    @cached_property
    def spine(self) -> tuple[float, float] | None:
        """Where the spine stands, y and x in mm from the corner of the scan: the densest column near the middle.

        Contrast medium in the bowel may be denser, but does not stand in one column from slab to slab, and lies in
        front; so what stands in the back half is the spine, if there is anything like one.
        """
        columns = self.body.sum(axis=(0, 1), dtype=np.float64)
        if not self.bone.any():
            return None
        # Kidneys full of contrast medium are as dense, but do not stand in the middle of the body.
        middle = float(columns @ np.arange(len(columns)) / columns.sum())
        away = (np.arange(len(columns)) - middle) * self.spacing[2] / _MIDDLE_MM
        slabs = np.array_split(self.bone, max(1, round(len(self.bone) * self.spacing[0] / _SLAB_MM)))
        blurred = [
            ndimage.gaussian_filter(slab.mean(axis=0, dtype=np.float32), [12.0 / s for s in self.spacing[1:]])
            for slab in slabs
        ]
        dense = np.quantile(blurred, _IN_NEARLY_ALL, axis=0)
        dense = (dense if dense.any() else np.mean(blurred, axis=0)) * np.exp(-0.5 * away**2)
        rows = np.flatnonzero(self.body.any(axis=(0, 2)))
        back = dense[: rows[0] + round(_BACK * len(rows))]
        column = back if back.max(initial=0) > _AS_DENSE * dense.max() else dense
        y, x = np.unravel_index(int(column.argmax()), column.shape)
        return float(y * self.spacing[1]), float(x * self.spacing[2])

    def full_voxel(self, height: float, y_mm: float, x_mm: float) -> tuple[int, int, int]:
        """The scan's voxel at a slice of the sketch and at a place in it, in mm from the corner."""
        place = (height * self.spacing[0], y_mm, x_mm)
        z, y, x = (
            min(n - 1, round(mm / size)) for mm, size, n in zip(place, self.full_spacing, self.full_shape, strict=True)
        )
        return z, y, x

    def is_filled(self, index: int) -> bool:
        """Whether there is more than one value in a slice of the scan, by the nearest of the sketch."""
        plane = self.sketch[min(len(self.sketch) - 1, round(index * self.full_spacing[0] / self.spacing[0]))]
        return float(np.ptp(plane)) > 0


def _slice_jumps(array: Array) -> Array:
    """How much each slice differs from the next, in blocks, so that noise says little."""
    part = array[:, ::_SLICE_STRIDE, ::_SLICE_STRIDE]
    rows, columns = (max(1, n // 4) * 4 for n in part.shape[1:])
    if min(part.shape[1:]) < 4:
        return np.zeros(0)
    part = laid_out(part[:, :rows, :columns])  # slices are looked at one by one, as they may not lie in memory
    jumps = np.zeros(max(0, len(part) - 1), dtype=np.float32)
    before, blocks_before = part[0], _blocks(part[0])
    for number, plane in enumerate(part[1:]):
        blocks = _blocks(plane)
        if not np.array_equal(before, plane):
            jumps[number] = np.abs(blocks_before - blocks).mean() + 1e-6
        before, blocks_before = plane, blocks
    return jumps


def _blocks(plane: Array) -> Array:
    soft = plane.astype(np.float32).clip(-200, 300)
    rows, columns = soft.shape
    return cast("Array", soft.reshape(rows // 4, 4, columns // 4, 4).mean(axis=(1, 3)))
