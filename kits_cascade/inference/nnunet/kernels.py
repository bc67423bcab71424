"""Convolution kernels in bfloat16, rounded so that the errors of neighbouring taps cancel.

Features change little from voxel to voxel. So what a kernel as a whole is off by counts for more than what each of its
taps is: an error is handed on to the taps beside it that are still to be rounded, the small ones last, whose steps are
the finest. It costs nothing when the network computes.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from kits_cascade.volumes.volume import Array

_NEARNESS: Final = 4.0  # how quickly a tap's share of an error falls with the distance, per voxel
_AT_ONCE: Final = 4096  # rows that stay in the processor's cache


def to_bfloat16(values: Array) -> Array:
    """The nearest values that bfloat16 has, in single precision."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32)


def rounded_kernels(kernels: Array) -> Array:
    """Kernels (out, in, then the taps' axes) with values that bfloat16 has."""
    taps = np.stack(np.meshgrid(*map(np.arange, kernels.shape[2:]), indexing="ij"), -1).reshape(-1, kernels.ndim - 2)
    near = np.exp(-_NEARNESS * np.linalg.norm(taps[:, None] - taps[None], axis=-1)).astype(np.float32)
    np.fill_diagonal(near, 0)
    values = kernels.reshape(-1, len(taps)).astype(np.float32)
    for start in range(0, len(values), _AT_ONCE):
        _round(values[start : start + _AT_ONCE], near)
    return values.reshape(kernels.shape)


def _round(values: Array, near: Array) -> None:
    """Kernels by row, in place."""
    order, rows = np.argsort(-np.abs(values), axis=1), np.arange(len(values))
    open_ones = np.ones_like(values)
    for tap in order.T:
        exact = values[rows, tap]
        values[rows, tap] = to_bfloat16(exact)
        open_ones[rows, tap] = 0
        share = near[tap] * open_ones
        share /= np.maximum(share.sum(axis=1, keepdims=True), np.finfo(np.float32).tiny)  # the last one has no heir
        values += share * (exact - values[rows, tap])[:, None]
