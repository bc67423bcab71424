"""Boxes: one frozen type serves the training ROI, the inference ROI and scoring."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kits_cascade.errors import GeometryError
from kits_cascade.volumes.volume import Array, Spacing

Triple = tuple[int, int, int]


def _triple(values: Sequence[Any]) -> Triple:
    first, second, third = (int(v) for v in values)
    return first, second, third


def _span(hits: Array) -> slice:
    """From the first to the last hit; empty where there is none."""
    places = np.flatnonzero(hits)
    return slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, 0)


def resampled_size(size: int, spacing: float, target: float) -> int:
    """The length of an edge at another spacing, rounded as nnU-Net does."""
    return round(spacing / target * size)


@dataclass(frozen=True)
class Box:
    """A box of whole voxels in an array of z, y, x order: start inside, stop outside."""

    start: Triple
    stop: Triple

    @staticmethod
    def full(shape: Sequence[int]) -> Box:
        """The box of a whole array."""
        return Box((0, 0, 0), _triple(shape))

    @staticmethod
    def around(mask: Array) -> Box | None:
        """The smallest box around all non-zero voxels; None when there are none."""
        bits = (mask if mask.dtype.itemsize == 1 else mask != 0).view(np.uint8)
        # The axes as they lie in memory, slowest first, all running forward: one pass at the speed of memory.
        order = sorted(range(3), key=lambda axis: -abs(bits.strides[axis]))
        back = [bits.strides[axis] < 0 for axis in order]
        forward = bits.transpose(order)[tuple(slice(None, None, -1 if turned else 1) for turned in back)]
        front = np.bitwise_or.reduce(forward, axis=0)
        second, third = _span(front.any(axis=1)), _span(front.any(axis=0))
        first = _span(np.asarray(forward[:, second, third].any(axis=(1, 2))))
        if first.stop == 0:
            return None
        start, stop = [0, 0, 0], [0, 0, 0]
        for axis, span, turned in zip(order, (first, second, third), back, strict=True):
            size = mask.shape[axis]
            start[axis], stop[axis] = (size - span.stop, size - span.start) if turned else (span.start, span.stop)
        return Box(_triple(start), _triple(stop))

    @staticmethod
    def of_slices(slices: Sequence[slice]) -> Box:
        """The inverse of :attr:`slices`."""
        return Box(_triple([s.start for s in slices]), _triple([s.stop for s in slices]))

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """For indexing."""
        first, second, third = (slice(a, b) for a, b in zip(self.start, self.stop, strict=True))
        return first, second, third

    @property
    def shape(self) -> Triple:
        """Voxels along each axis."""
        return _triple([b - a for a, b in zip(self.start, self.stop, strict=True)])

    @property
    def size(self) -> int:
        """Number of voxels."""
        return math.prod(self.shape)

    def grown(self, margin_mm: float, spacing: Spacing) -> Box:
        """Larger by at least ``margin_mm`` on each side. May leave the volume: see :meth:`clipped`."""
        margin = [math.ceil(round(margin_mm / s, 6)) for s in spacing]
        return Box(
            _triple([a - m for a, m in zip(self.start, margin, strict=True)]),
            _triple([b + m for b, m in zip(self.stop, margin, strict=True)]),
        )

    def clipped(self, shape: Sequence[int]) -> Box:
        """The part inside an array of ``shape``."""
        start = _triple([min(max(a, 0), n) for a, n in zip(self.start, shape, strict=True)])
        stop = _triple([min(max(b, a), n) for a, b, n in zip(start, self.stop, shape, strict=True)])
        return Box(start, stop)

    def union(self, other: Box) -> Box:
        """The smallest box around both."""
        return Box(
            _triple([min(a, b) for a, b in zip(self.start, other.start, strict=True)]),
            _triple([max(a, b) for a, b in zip(self.stop, other.stop, strict=True)]),
        )

    def intersects(self, other: Box) -> bool:
        """Whether the two share a voxel."""
        return all(a < d and c < b for a, b, c, d in zip(self.start, self.stop, other.start, other.stop, strict=True))

    def shifted(self, offset: Sequence[int]) -> Box:
        """Moved by whole voxels."""
        return Box(
            _triple([a + o for a, o in zip(self.start, offset, strict=True)]),
            _triple([b + o for b, o in zip(self.stop, offset, strict=True)]),
        )

    def seen_from(self, outer: Box) -> Box:
        """The same box in the voxels of ``outer``."""
        return self.shifted([-a for a in outer.start])

    def on_grid(self, own: Sequence[int], other: Sequence[int]) -> Box:
        """The box on another sampling of the same field of view: all voxels of ``other`` that this one touches."""
        scale = [n / m for m, n in zip(own, other, strict=True)]
        start = [math.floor(round(a * s, 6)) for a, s in zip(self.start, scale, strict=True)]
        stop = [math.ceil(round(b * s, 6)) for b, s in zip(self.stop, scale, strict=True)]
        return Box(_triple(start), _triple(stop)).clipped(other)

    def crop(self, array: Array) -> Array:
        """The part of the last three axes inside the box; a view."""
        self._check(array.shape[-3:])
        view: Array = array[(..., *self.slices)]
        return view

    def paste(self, into: Array, patch: Array) -> None:
        """Write ``patch`` into the box of ``into``."""
        self._check(into.shape[-3:])
        if patch.shape[-3:] != self.shape:
            raise GeometryError(f"a patch of shape {patch.shape} does not fit a box of shape {self.shape}")
        into[(..., *self.slices)] = patch

    def _check(self, shape: Sequence[int]) -> None:
        inside = all(0 <= a <= b <= n for a, b, n in zip(self.start, self.stop, shape, strict=True))
        if not inside:
            raise GeometryError(
                f"box {self.start}..{self.stop} lies outside an array of shape {tuple(shape)}; clip it first"
            )

    def inner_faces_touched(self, mask: Array, shape: Sequence[int]) -> bool:
        """Whether ``mask`` (of the box) reaches a face of the box that is no face of the volume: the box is small."""
        for axis in range(3):
            low, high = mask.take(0, axis), mask.take(-1, axis)
            if (self.start[axis] > 0 and low.any()) or (self.stop[axis] < shape[axis] and high.any()):
                return True
        return False

    def to_json(self) -> dict[str, list[int]]:
        """For roi.json and run.json."""
        return {"start": list(self.start), "stop": list(self.stop)}

    @staticmethod
    def from_json(content: dict[str, list[int]]) -> Box:
        """The inverse of :meth:`to_json`."""
        return Box(_triple(content["start"]), _triple(content["stop"]))


def picked_from(array: Array, index: Sequence[Array]) -> Array:
    """``array[np.ix_(*index)]``, the fastest axis first: so that most of it is copied in whole rows."""
    first, second, third = index
    result: Array = array[:, :, third][:, second][first]
    return result
