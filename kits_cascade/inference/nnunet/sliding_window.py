"""nnU-Net's sliding window: the same tiles, folds and mirroring, in the same precision and order, so the same logits.

Written anew rather than taken over, since nnU-Net's module loads PyTorch's compiler, half of the time to the
first tile. And here tiles that cannot matter are left out, the next one is at work while one is added up, and the
answers of folds and of mirrored tiles are compared.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window
from torch import nn
from torch.nn import functional

from kits_cascade.background import ahead
from kits_cascade.errors import ModelError
from kits_cascade.inference.certainty import FOLDS, MIRRORS
from kits_cascade.volumes.geometry import Box

Place = tuple[Any, ...]  # of a tile: slices of channels and axes; for networks of slices, a number for the first axis


@dataclass
class Votes:
    """How alike several answers are to their mean: of what each takes for foreground."""

    both: int = 0
    total: int = 0

    def count(self, answers: Sequence[torch.Tensor], mean: torch.Tensor) -> None:
        """Add masks, each against that of the mean."""
        size = int(mean.sum())
        for answer in answers:
            self.both += int((answer & mean).sum())
            self.total += int(answer.sum()) + size


@dataclass
class SlidingWindow:
    """A network with its folds, walking over an image."""

    network: nn.Module
    folds: Sequence[Any]  # what the network's load_state_dict takes
    patch: tuple[int, ...]
    heads: int
    regions: bool  # heads are decided one by one; else the largest wins, and the first is the background
    step: float
    mirror_axes: tuple[int, ...]  # counted from the first axis of the image
    device: torch.device
    ahead: bool = False  # the next tile is computed while one is added up
    release: Callable[[], None] = lambda: None  # called at the end of an image
    fell_back: str = ""  # why the engine is not the one that was asked for
    _gaussians: dict[torch.device, torch.Tensor] = field(default_factory=dict)
    votes: dict[str, Votes] = field(default_factory=dict)  # of the last image, among folds and among mirrored tiles

    @torch.inference_mode()
    def logits(
        self,
        data: torch.Tensor,
        wanted: Callable[[Box], bool] | None = None,
        on_tile: Callable[[], None] | None = None,
    ) -> torch.Tensor:
        """Mean logits over folds, mirrors and tiles; 0 / 0 where no tile was ``wanted``."""
        self.votes = {FOLDS: Votes(), MIRRORS: Votes()}
        padded, inside = pad(data, self.patch)
        places = self._places(padded.shape[1:], data.shape[1:], wanted)
        self.network.to(self.device).eval()
        mean, decisions = None, []
        for weights in self.folds:
            self.network.load_state_dict(weights)
            found = self._on_device_or_beside(padded, places, on_tile)[(slice(None), *inside)].cpu()
            if len(self.folds) > 1:
                decisions.append(self._foreground(found))
            mean = found if mean is None else mean.add_(found)
        self.release()
        if mean is None:
            raise ModelError("a model without folds")
        if len(self.folds) > 1:
            mean /= len(self.folds)
            self.votes[FOLDS].count(decisions, self._foreground(mean))
        return mean

    def _places(self, padded: Sequence[int], shape: Sequence[int], wanted: Callable[[Box], bool] | None) -> list[Place]:
        steps = compute_steps_for_sliding_window(tuple(padded[len(padded) - len(self.patch) :]), self.patch, self.step)
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

    def _on_device_or_beside(
        self, data: torch.Tensor, places: list[Place], on_tile: Callable[[], None] | None
    ) -> torch.Tensor:
        """The sum over tiles where the network is; in the computer's own memory where a GPU's does not suffice."""
        beside = torch.device("cpu")
        there = beside if self.device.type == "mps" else self.device  # Apple's GPUs keep no sums, as in nnU-Net
        with self._autocast():
            try:
                return self._sum(data, places, there, on_tile)
            except torch.cuda.OutOfMemoryError:
                if there == beside:
                    raise
        # Not before here has the try let go of its memory: until then its frames are part of the error.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        with self._autocast():
            return self._sum(data, places, beside, on_tile)

    def _autocast(self) -> Any:
        return torch.autocast("cuda") if self.device.type == "cuda" else nullcontext()

    def _sum(
        self, data: torch.Tensor, places: list[Place], there: torch.device, on_tile: Callable[[], None] | None
    ) -> torch.Tensor:
        data = data.to(there)
        logits = torch.zeros((self.heads, *data.shape[1:]), dtype=torch.half, device=there)
        weights = torch.zeros(data.shape[1:], dtype=torch.half, device=there)
        gaussian = self.gaussian(there)
        for place, answer in self._answers(data, places, on_tile):
            logits[place] += answer.to(there).mul_(gaussian)
            weights[place[1:]] += gaussian
        torch.div(logits, weights, out=logits)
        if torch.isinf(logits).any():
            raise ModelError("the network's answer is beyond what half precision holds; it cannot be averaged")
        return logits

    def gaussian(self, there: torch.device) -> torch.Tensor:
        """How much each voxel of a tile counts; computed once."""
        if there not in self._gaussians:
            made = compute_gaussian(self.patch, sigma_scale=1.0 / 8, value_scaling_factor=10, device=there)
            self._gaussians[there] = made
        return self._gaussians[there]

    def _answers(
        self, data: torch.Tensor, places: list[Place], on_tile: Callable[[], None] | None
    ) -> Iterator[tuple[Place, torch.Tensor]]:
        """The tiles' places and answers. PyTorch gains nothing by being ahead: its own threads fill the cores."""

        def answer(place: Place) -> tuple[Place, torch.Tensor]:
            tile = torch.clone(data[place][None], memory_format=torch.contiguous_format).to(self.device)
            if on_tile is not None:
                on_tile()
            return place, self.predict_tile(tile)[0]

        return ahead(answer, places, 1) if self.ahead else map(answer, places)

    @torch.inference_mode()
    def predict_tile(self, tile: torch.Tensor) -> torch.Tensor:
        """The network's answer, averaged over the mirrored copies of the tile."""
        mean: torch.Tensor = self.network(tile)
        if not self.mirror_axes:
            return mean
        decisions = [self._foreground(mean[0])]
        axes = [axis + 2 for axis in self.mirror_axes]
        mirrored = [some for count in range(1, len(axes) + 1) for some in itertools.combinations(axes, count)]
        for flips in mirrored:
            one = torch.flip(self.network(torch.flip(tile, flips)), flips)
            decisions.append(self._foreground(one[0]))
            mean += one
        mean /= len(mirrored) + 1
        self.votes.setdefault(MIRRORS, Votes()).count(decisions, self._foreground(mean[0]))
        return mean

    def _foreground(self, logits: torch.Tensor) -> torch.Tensor:
        return (logits > 0).any(dim=0) if self.regions else logits[1:].amax(dim=0) > logits[0]


def pad(data: torch.Tensor, patch: Sequence[int]) -> tuple[torch.Tensor, tuple[slice, ...]]:
    """The image no smaller than a tile, and where it lies in that: in the middle."""
    shape = data.shape[data.ndim - len(patch) :]
    missing = [max(0, n - m) for n, m in zip(patch, shape, strict=True)]
    inside = tuple(slice(gap // 2, gap // 2 + m) for gap, m in zip(missing, shape, strict=True))
    if any(missing):
        both = [(gap // 2, gap - gap // 2) for gap in reversed(missing)]
        data = functional.pad(data, [side for pair in both for side in pair])
    return data, (*[slice(None)] * (data.ndim - 1 - len(patch)), *inside)


def _tile_box(place: Place) -> Box:
    first, second, third = place
    return Box((first.start, second.start, third.start), (first.stop, second.stop, third.stop))
