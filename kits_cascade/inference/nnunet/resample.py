"""The resampling of nnU-Net's plans, computed as products along single axes.

nnU-Net resamples with scikit-image in float64, a whole volume at a time. The same interpolation (cubic B-spline with
its prefilter, linear, nearest; per slice where a plan separates the coarse axis) is separable: each axis is one small
matrix. So a full field of view goes through in slabs, and only the result is ever held in floating point.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, cast

import numpy as np
from scipy import ndimage

from kits_cascade.background import ahead
from kits_cascade.inference.nnunet.arrays import lerp
from kits_cascade.processor import threads_here
from kits_cascade.volumes.geometry import resampled_size
from kits_cascade.volumes.volume import Array, Spacing

Prepare = Callable[[Array], Array]
_SLAB_VOXELS: Final = 1 << 20  # as floats they fit the processor's cache
_NEGLIGIBLE: Final = 1e-10
_LIMITS_AT_A_TIME: Final = threading.Lock()


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
def _spline_matrix(size: int, target: int, order: int) -> Array:
    """The matrix that scipy's zoom applies along an axis: what it makes of each unit vector."""
    factors: Any = (target / size, 1)
    columns = ndimage.zoom(np.eye(size), factors, order=cast("Any", order), mode="nearest", grid_mode=True)
    # The prefilter's weights fade fourfold a sample: what is beyond float32's reach only costs (denormals are slow).
    columns[np.abs(columns) < _NEGLIGIBLE] = 0
    return np.ascontiguousarray(columns, dtype=np.float32)


def nearest_index(size: int, target: int) -> Array:
    """Which sample the nearest neighbour takes."""
    centres = (np.arange(target) + 0.5) * (size / target) - 0.5
    index: Array = ndimage.map_coordinates(np.arange(size), [centres], order=0, mode="nearest")
    return index.astype(np.intp)


def _neighbours(size: int, target: int) -> tuple[Array, Array, Array]:
    """For each target sample the one before it, the one after it, and how far it is on the way between them."""
    centres = ((np.arange(target) + 0.5) * (size / target) - 0.5).clip(0, size - 1)
    low = np.minimum(centres.astype(np.intp), max(size - 2, 0))
    return low, np.minimum(low + 1, size - 1), (centres - low).astype(np.float32)


def places_between(planes: Array, size: int, target: int) -> tuple[Array, Array, Array]:
    """The same as places in ``planes``, which are those of the ``size`` that are needed."""
    low, high, weights = _neighbours(size, target)
    return np.searchsorted(planes, low), np.searchsorted(planes, high), weights


def _linear(values: Array, planes: Array, size: int, target: int) -> Array:
    """Linear interpolation along the first axis, of whose ``size`` planes those that are needed are given."""
    first, second, weights = places_between(planes, size, target)
    result = np.empty((target, *values.shape[1:]), np.float32)
    # Plane by plane: in the processor's cache, and without a copy of all neighbours.
    for number, (one, other) in enumerate(zip(first, second, strict=True)):
        lerp(values[one], values[other], weights[number], result[number])
    return result


def in_plane(block: Array, shape: Sequence[int], order: int) -> Array:
    """Planes of a stack to another shape."""
    change = {0: _nearest_along, 1: _linear_along}.get(order, _spline_along)
    # What makes planes smaller goes first.
    for axis in sorted((1, 2), key=lambda axis: shape[axis - 1] / block.shape[axis]):
        if block.shape[axis] != shape[axis - 1]:
            block = change(block, axis, shape[axis - 1], order)
    return block


def _nearest_along(block: Array, axis: int, target: int, _: int) -> Array:
    taken: Array = np.take(block, nearest_index(block.shape[axis], target), axis)
    return taken


def _linear_along(block: Array, axis: int, target: int, _: int) -> Array:
    low, high, weights = _neighbours(block.shape[axis], target)
    first = np.take(block, low, axis)
    return lerp(first, np.take(block, high, axis), weights[:, None] if axis == 1 else weights)


def _spline_along(block: Array, axis: int, target: int, order: int) -> Array:
    matrix = _spline_matrix(block.shape[axis], target, order)
    changed: Array = np.matmul(matrix, block) if axis == 1 else np.matmul(block, matrix.T)
    return changed


def _along_first(values: Array, planes: Array, size: int, target: int, order: int) -> Array:
    """A stack to another number of planes (nearest is done before, by choosing planes)."""
    if size == target:
        return values
    if order == 1:
        return _linear(values, planes, size, target)
    matrix = _spline_matrix(size, target, order)
    changed: Array = np.matmul(matrix, values.reshape(size, -1))
    return changed.reshape(target, *values.shape[1:])


def _as_float(part: Array) -> Array:
    return part.astype(np.float32)


def stream_axis(source: Array, method: Method) -> int:
    """The axis to walk along: the separate one, else the one that is slowest in memory."""
    if method.separate is not None:
        return method.separate
    return int(np.argmax(np.abs(source.strides)))


def resample(source: Array, shape: Sequence[int], method: Method, prepare: Prepare = _as_float) -> Array:
    """``source`` (three axes) on a grid of ``shape``, as float32.

    ``prepare`` makes float32 of a part of the source (and normalises it, value by value).
    """
    axis = stream_axis(source, method)
    moved = np.moveaxis(source, axis, 0)
    others = [n for i, n in enumerate(shape) if i != axis]
    order = method.order_along(axis)
    size = moved.shape[0]
    planes, repeat = chosen_planes(size, shape[axis], order)
    result = np.empty((len(planes), *others), np.float32)
    limits = _Limits(per_plane=method.separate is not None)
    step = max(1, _SLAB_VOXELS // max(1, moved.shape[1] * moved.shape[2]))
    slabs = [slice(begin, begin + step) for begin in range(0, len(planes), step)]

    def change(slab: slice) -> tuple[Array, Array]:
        block = _planes_as_float(moved, planes[slab], prepare)
        return block, in_plane(block, others, method.order)

    with _one_thread_each() if method.order > 1 else nullcontext():
        for slab, (block, changed) in zip(slabs, _in_order(change, slabs), strict=True):
            result[slab] = limits.clipped(changed, block) if method.clip and method.order > 1 else changed
    if repeat is not None:
        result = result[repeat]
    else:
        result = _along_first(result, planes, size, shape[axis], order)
        if method.clip and not limits.per_plane and method.order > 1:
            result.clip(limits.low, limits.high, out=result)
    return np.ascontiguousarray(np.moveaxis(result, 0, axis))


def _planes_as_float(moved: Array, part: Array, prepare: Prepare) -> Array:
    """Planes in floating point. Neighbours are read as a view; a choice of planes is a copy of what is needed only."""
    chosen = moved[part[0] : part[-1] + 1] if _is_run(part) else moved[part]
    # Laid out anew before they are made float: half the bytes.
    return np.ascontiguousarray(prepare(np.ascontiguousarray(chosen)))


def _in_order(work: Callable[[slice], Any], parts: Sequence[slice]) -> Iterator[Any]:
    """The parts' results in their order, some made ahead by other threads where there are any to spare."""
    spare = threads_here()
    return map(work, parts) if spare < 2 or len(parts) < 2 else ahead(work, parts, spare)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Slabs are multiplied in threads already; more of them in each product only wait for one another."""
    from threadpoolctl import threadpool_limits

    # What one sets and puts back, another would take for what was there before.
    with _LIMITS_AT_A_TIME, threadpool_limits(1, "blas"):
        yield


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

    def clipped(self, changed: Array, block: Array) -> Array:
        if self.per_plane:
            return changed.clip(block.min(axis=(1, 2), keepdims=True), block.max(axis=(1, 2), keepdims=True))
        self.low, self.high = min(self.low, float(block.min())), max(self.high, float(block.max()))
        return changed


def new_shape(shape: Sequence[int], spacing: Spacing, target: Sequence[float]) -> tuple[int, int, int]:
    """Voxels of the same field of view at another spacing, rounded as nnU-Net does."""
    first, second, third = map(resampled_size, shape, spacing, target)
    return first, second, third
