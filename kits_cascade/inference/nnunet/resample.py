"""The resampling of nnU-Net's plans, computed as products along single axes.

nnU-Net resamples with scikit-image in float64, a whole volume at a time. The same interpolation (cubic B-spline with
its prefilter, linear, nearest; per slice where a plan separates the coarse axis) is separable: each axis is one small
matrix. So a full field of view goes through in slabs, and only the result is ever held in floating point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, cast

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional

from kits_cascade.background import ahead
from kits_cascade.volumes.geometry import resampled_size
from kits_cascade.volumes.volume import Array, Spacing

Prepare = Callable[[Array], Array]
_SLAB_VOXELS: Final = 1 << 20  # as floats they fit the processor's cache
_NEGLIGIBLE: Final = 1e-10


@dataclass(frozen=True)
class Method:
    """How one array goes from one grid to another."""

    order: int  # 0 nearest, 1 linear, 3 cubic spline
    separate: int | None = None  # the axis that is treated apart from the other two, with order_z
    order_z: int = 0
    clip: bool = True  # keep splines from overshooting the values that they came from

    def order_along(self, axis: int) -> int:
        """Order of the interpolation along an axis."""
        return self.order_z if axis == self.separate else self.order


@lru_cache(maxsize=64)
def _spline_matrix(size: int, target: int, order: int) -> torch.Tensor:
    """The matrix that scipy's zoom applies along an axis: what it makes of each unit vector."""
    factors: Any = (target / size, 1)
    columns = ndimage.zoom(np.eye(size), factors, order=cast("Any", order), mode="nearest", grid_mode=True)
    # The prefilter's weights fade fourfold a sample: what is beyond float32's reach only costs (denormals are slow).
    columns[np.abs(columns) < _NEGLIGIBLE] = 0
    return torch.from_numpy(np.ascontiguousarray(columns, dtype=np.float32))


def nearest_index(size: int, target: int) -> Array:
    """Which sample the nearest neighbour takes."""
    centres = (np.arange(target) + 0.5) * (size / target) - 0.5
    index: Array = ndimage.map_coordinates(np.arange(size), [centres], order=0, mode="nearest")
    return index.astype(np.intp)


def _neighbours(size: int, target: int) -> tuple[Array, Array, torch.Tensor]:
    """For each target sample the one before it, the one after it, and how far it is on the way between them."""
    centres = ((np.arange(target) + 0.5) * (size / target) - 0.5).clip(0, size - 1)
    low = np.minimum(centres.astype(np.intp), max(size - 2, 0))
    return low, np.minimum(low + 1, size - 1), torch.from_numpy((centres - low).astype(np.float32))


def places_between(planes: Array, size: int, target: int) -> tuple[Array, Array, torch.Tensor]:
    """The same as places in ``planes``, which are those of the ``size`` that are needed."""
    low, high, weights = _neighbours(size, target)
    return np.searchsorted(planes, low), np.searchsorted(planes, high), weights


def _linear(values: torch.Tensor, planes: Array, size: int, target: int) -> torch.Tensor:
    """Linear interpolation along the first axis, of whose ``size`` planes those that are needed are given."""
    first, second, weights = places_between(planes, size, target)
    result = values.new_empty((target, *values.shape[1:]))
    weights = weights.to(values.device)
    # Plane by plane: in the processor's cache, and without a copy of all neighbours.
    for number, (one, other) in enumerate(zip(first, second, strict=True)):
        torch.lerp(values[one], values[other], weights[number], out=result[number])
    return result


def in_plane(block: torch.Tensor, shape: Sequence[int], order: int) -> torch.Tensor:
    """Planes of a stack to another shape."""
    if tuple(block.shape[1:]) == tuple(shape):
        return block
    if order == 1:
        return functional.interpolate(block[:, None], tuple(shape), mode="bilinear", align_corners=False)[:, 0]
    if order == 0:
        rows, columns = (torch.from_numpy(nearest_index(n, m)) for n, m in zip(block.shape[1:], shape, strict=True))
        return block[:, rows.to(block.device)][:, :, columns.to(block.device)]
    for axis, target in ((1, shape[0]), (2, shape[1])):
        if block.shape[axis] != target:
            matrix = _spline_matrix(block.shape[axis], target, order).to(block.device)
            block = torch.matmul(matrix, block) if axis == 1 else torch.matmul(block, matrix.T)
    return block


def _along_first(values: torch.Tensor, planes: Array, size: int, target: int, order: int) -> torch.Tensor:
    """A stack to another number of planes (nearest is done before, by choosing planes)."""
    if size == target:
        return values
    if order == 1:
        return _linear(values, planes, size, target)
    matrix = _spline_matrix(size, target, order).to(values.device)
    return (matrix @ values.reshape(size, -1)).reshape(target, *values.shape[1:])


def _as_float(part: Array) -> Array:
    return part.astype(np.float32)


def stream_axis(source: Array, method: Method) -> int:
    """The axis to walk along: the separate one, else the one that is slowest in memory."""
    if method.separate is not None:
        return method.separate
    return int(np.argmax(np.abs(source.strides)))


def resample(
    source: Array, shape: Sequence[int], method: Method, prepare: Prepare = _as_float, device: Any = "cpu"
) -> torch.Tensor:
    """``source`` (three axes) on a grid of ``shape``, as float32.

    ``prepare`` makes float32 of a part of the source (and normalises it, value by value).
    """
    axis = stream_axis(source, method)
    moved = np.moveaxis(source, axis, 0)
    others = [n for i, n in enumerate(shape) if i != axis]
    order = method.order_along(axis)
    size = moved.shape[0]
    planes, repeat = chosen_planes(size, shape[axis], order)
    result = torch.empty((len(planes), *others), dtype=torch.float32, device=device)
    limits = _Limits(per_plane=method.separate is not None)
    step = max(1, _SLAB_VOXELS // max(1, moved.shape[1] * moved.shape[2]))
    slabs = [planes[begin : begin + step] for begin in range(0, len(planes), step)]
    begin = 0
    for ready in _in_order(lambda part: _slab(moved, part, prepare), slabs):
        block = ready.to(device)
        changed = in_plane(block, others, method.order)
        there = result[begin : begin + len(block)]
        there.copy_(limits.clipped(changed, block) if method.clip and method.order > 1 else changed)
        begin += len(block)
    if repeat is not None:
        result = result[torch.from_numpy(repeat).to(device)]
    else:
        result = _along_first(result, planes, size, shape[axis], order)
        if method.clip and not limits.per_plane and method.order > 1:
            result.clamp_(limits.low, limits.high)
    return result.movedim(0, axis).contiguous()


def _slab(moved: Array, part: Array, prepare: Prepare) -> torch.Tensor:
    """Planes in floating point. Neighbours are read as a view; a choice of planes is a copy of what is needed only."""
    chosen = moved[part[0] : part[-1] + 1] if _is_run(part) else moved[part]
    # Laid out anew before they are made float: half the bytes.
    return torch.from_numpy(np.ascontiguousarray(prepare(np.ascontiguousarray(chosen))))


def _in_order(work: Callable[[Array], torch.Tensor], parts: Sequence[Array]) -> Iterator[torch.Tensor]:
    """The parts' results in their order, some made ahead by other threads where there are any to spare."""
    spare = torch.get_num_threads()
    return map(work, parts) if spare < 2 or len(parts) < 2 else ahead(work, parts, spare)


def _is_run(index: Array) -> bool:
    return len(index) > 0 and int(index[-1]) - int(index[0]) + 1 == len(index)


def chosen_planes(size: int, target: int, order: int) -> tuple[Array, Array | None]:
    """The planes that are needed, and, for the nearest neighbour, which of them each target plane takes."""
    if order > 1 or size == target:
        return np.arange(size), None
    if order == 1:
        low, high, _ = _neighbours(size, target)
        return np.unique(np.concatenate([low, high])), None
    planes, repeat = np.unique(nearest_index(size, target), return_inverse=True)
    return planes, repeat


class _Limits:
    """Smallest and largest value of what goes in, by plane or of all."""

    def __init__(self, per_plane: bool) -> None:
        self.per_plane = per_plane
        self.low, self.high = float("inf"), float("-inf")

    def clipped(self, changed: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
        if self.per_plane:
            low, high = block.amin(dim=(1, 2), keepdim=True), block.amax(dim=(1, 2), keepdim=True)
            return torch.minimum(torch.maximum(changed, low), high)
        low_now, high_now = torch.aminmax(block)
        self.low, self.high = min(self.low, float(low_now)), max(self.high, float(high_now))
        return changed


def new_shape(shape: Sequence[int], spacing: Spacing, target: Sequence[float]) -> tuple[int, int, int]:
    """Voxels of the same field of view at another spacing, rounded as nnU-Net does."""
    first, second, third = map(resampled_size, shape, spacing, target)
    return first, second, third
