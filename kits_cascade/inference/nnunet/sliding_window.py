"""nnU-Net's sliding window: the same tiles, folds, mirroring and order; in PyTorch the same logits, to the last bit.

Written anew rather than taken over, since nnU-Net's module loads PyTorch and its compiler, most of the time to the
first tile. And here tiles that cannot matter are left out, the next one is at work while one is added up, and the
answers of folds and of mirrored tiles are compared.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import lru_cache, reduce
from typing import Any, Final, Protocol

import numpy as np
from scipy import ndimage

from kits_cascade.background import ahead
from kits_cascade.errors import ModelError, UsageError
from kits_cascade.inference.certainty import FOLDS, MIRRORS
from kits_cascade.inference.nnunet.arrays import AnyArray, library, moved_to, zeros
from kits_cascade.volumes.geometry import Box
from kits_cascade.volumes.volume import Array

Place = tuple[Any, ...]  # of a tile: slices of channels and axes; for networks of slices, a number for the first axis
_SIGMA: Final = 1 / 8  # of the tiles' weights, in tiles; and the largest weight
_PEAK: Final = 10


class Network(Protocol):
    """A network in an engine, with the weights of one of its folds."""

    sums: str  # the type in which tiles are added up
    ahead: bool  # the next tile is computed while one is added up

    def choose(self, fold: Any) -> None:
        """Take the weights of a fold."""

    def computing(self) -> AbstractContextManager[Any]:
        """What must hold while tiles are computed and added up."""

    def near(self, data: Array, work: Callable[[AnyArray], AnyArray]) -> Array:
        """What ``work`` makes of the image where the network computes, or beside it."""

    def __call__(self, tile: AnyArray) -> AnyArray:
        """The answer, where the tile lies."""

    def release(self) -> None:
        """Let go of memory at the end of an image."""


@dataclass
class Votes:
    """How alike several answers are to their mean: of what each takes for foreground."""

    both: int = 0
    total: int = 0

    def count(self, answers: Sequence[AnyArray], mean: AnyArray) -> None:
        """Add masks, each against that of the mean."""
        size = int(mean.sum())
        for answer in answers:
            self.both += int((answer & mean).sum())
            self.total += int(answer.sum()) + size


@dataclass
class SlidingWindow:
    """A network with its folds, walking over an image."""

    network: Network
    folds: Sequence[Any]  # what the network chooses by
    patch: tuple[int, ...]
    heads: int
    regions: bool  # heads are decided one by one; else the largest wins, and the first is the background
    step: float
    mirror_axes: tuple[int, ...]  # counted from the first axis of the image
    fell_back: str = ""  # why the engine is not the one that was asked for
    votes: dict[str, Votes] = field(default_factory=dict)  # of the last image, among folds and among mirrored tiles

    def logits(
        self,
        data: Array,
        wanted: Callable[[Box], bool] | None = None,
        on_tile: Callable[[], None] | None = None,
    ) -> Array:
        """Mean logits over folds, mirrors and tiles; 0 / 0 where no tile was ``wanted``."""
        self.votes = {FOLDS: Votes(), MIRRORS: Votes()}
        padded, inside = pad(data, self.patch)
        places = self._places(padded.shape[1:], data.shape[1:], wanted)
        mean, decisions = None, []
        for fold in self.folds:
            self.network.choose(fold)
            with self.network.computing():
                found = self.network.near(padded, lambda there: self._sum(there, places, on_tile))
            found = found[(slice(None), *inside)]
            if len(self.folds) > 1:
                decisions.append(self._foreground(found))
            if mean is None:
                mean = found
            else:
                mean += found
        self.network.release()
        if mean is None:
            raise ModelError("a model without folds")
        if len(self.folds) > 1:
            mean /= len(self.folds)
            self.votes[FOLDS].count(decisions, self._foreground(mean))
        return mean

    def _places(self, padded: Sequence[int], shape: Sequence[int], wanted: Callable[[Box], bool] | None) -> list[Place]:
        steps = tile_starts(tuple(padded[len(padded) - len(self.patch) :]), self.patch, self.step)
        flat = [range(padded[0])] if len(self.patch) < len(padded) else []
        places: list[Place] = []
        for corner in itertools.product(*flat, *steps):
            tile = [slice(a, a + n) for a, n in zip(corner[len(flat) :], self.patch, strict=True)]
            places.append((slice(None), *corner[: len(flat)], *tile))
        if wanted is None or flat:
            return places
        # Images smaller than a tile are padded on both sides.
        offset = [-((n - m) // 2) for n, m in zip(padded, shape, strict=True)]
        return [place for place in places if wanted(_tile_box(place[1:]).shifted(offset).clipped(shape))]

    def _sum(self, data: AnyArray, places: list[Place], on_tile: Callable[[], None] | None) -> AnyArray:
        logits = zeros((self.heads, *data.shape[1:]), self.network.sums, data)
        weights = zeros(data.shape[1:], self.network.sums, data)
        gaussian = moved_to(tile_weights(self.patch), data)
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            for place, answer in self._answers(data, places, on_tile):
                weighted = answer
                weighted *= gaussian  # in place: it is ours
                logits[place] += weighted
                weights[place[1:]] += gaussian
            logits /= weights
        if library(data).isinf(logits).any():
            raise ModelError("the network's answer is too large to be averaged over tiles")
        return logits

    def _answers(
        self, data: AnyArray, places: list[Place], on_tile: Callable[[], None] | None
    ) -> Iterator[tuple[Place, AnyArray]]:
        """The tiles' places and answers. PyTorch gains nothing by being ahead: its own threads fill the cores."""

        def answer(place: Place) -> tuple[Place, AnyArray]:
            if on_tile is not None:
                on_tile()
            return place, self.predict_tile(data[place][None])[0]

        return ahead(answer, places, 1) if self.network.ahead else map(answer, places)

    def predict_tile(self, tile: AnyArray) -> AnyArray:
        """The network's answer, averaged over the mirrored copies of the tile."""
        mean = self.network(tile)
        if not self.mirror_axes:
            return mean
        flip, decisions = library(tile).flip, [self._foreground(mean[0])]
        axes = [axis + 2 for axis in self.mirror_axes]
        mirrored = [some for count in range(1, len(axes) + 1) for some in itertools.combinations(axes, count)]
        for flips in mirrored:
            one = flip(self.network(flip(tile, flips)), flips)
            decisions.append(self._foreground(one[0]))
            mean += one
        mean /= len(mirrored) + 1
        self.votes.setdefault(MIRRORS, Votes()).count(decisions, self._foreground(mean[0]))
        return mean

    def _foreground(self, logits: AnyArray) -> AnyArray:
        if self.regions:
            return (logits > 0).any(axis=0)
        return library(logits).amax(logits[1:], axis=0) > logits[0]


def tile_starts(shape: Sequence[int], patch: Sequence[int], step: float) -> list[list[int]]:
    """Where tiles begin, axis by axis, as nnU-Net's ``compute_steps_for_sliding_window`` has it."""
    if not 0 < step <= 1:
        raise UsageError(f"a tile step of {step}: it is above 0, and 1 at most")
    starts = []
    for size, tile in zip(shape, patch, strict=True):
        count = int(np.ceil((size - tile) / (tile * step))) + 1
        width = (size - tile) / max(1, count - 1)
        starts.append([int(np.round(width * number)) for number in range(count)])
    return starts


@lru_cache(maxsize=4)
def tile_weights(patch: tuple[int, ...]) -> Array:
    """How much each voxel of a tile counts: nnU-Net's ``compute_gaussian``, which is in half precision.

    It blurs a point in all axes, which is the product of a blurred point in each, to the last bit.
    """
    weights = reduce(np.multiply.outer, [_blurred_point(n) for n in patch])
    weights /= weights.max() / _PEAK
    halves = weights.astype(np.float32).astype(np.float16)  # rounded twice, as PyTorch does
    halves[halves == 0] = halves[halves != 0].min()
    result: Array = halves.astype(np.float32)  # which is faster to compute with
    return result


def _blurred_point(size: int) -> Array:
    point = np.zeros(size)
    point[size // 2] = 1
    blurred: Array = ndimage.gaussian_filter(point, size * _SIGMA, 0, mode="constant", cval=0)
    return blurred


def pad(data: Array, patch: Sequence[int]) -> tuple[Array, tuple[slice, ...]]:
    """The image no smaller than a tile, and where it lies in that: in the middle."""
    others = data.ndim - len(patch)
    shape = data.shape[others:]
    missing = [max(0, n - m) for n, m in zip(patch, shape, strict=True)]
    inside = tuple(slice(gap // 2, gap // 2 + m) for gap, m in zip(missing, shape, strict=True))
    if any(missing):
        data = np.pad(data, [(0, 0)] * others + [(gap // 2, gap - gap // 2) for gap in missing])
    return data, (*[slice(None)] * (others - 1), *inside)


def _tile_box(place: Place) -> Box:
    first, second, third = place
    return Box((first.start, second.start, third.start), (first.stop, second.stop, third.stop))
