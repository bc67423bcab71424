"""The only place that knows nnU-Net's predictor: its networks, sliding window and preprocessing, in our process.

What nnU-Net does file by file with worker pools is done here on arrays, with the same arithmetic: normalisation by the
plan's own classes, resampling by the plan's method (:mod:`kits_cascade.inference.nnunet.resample`), tiles, folds and
mirroring by nnU-Net's predictor.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch

from kits_cascade.inference.certainty import Certainty
from kits_cascade.inference.nnunet.stage import Prepared, StageNetwork
from kits_cascade.inference.nnunet.tiles import TileOptions
from kits_cascade.inference.roi import FineGrid
from kits_cascade.models.network import CascadeModels, StageModel
from kits_cascade.training.devices import choose_device
from kits_cascade.volumes.geometry import Box
from kits_cascade.volumes.volume import Array, Spacing


class Roi:
    """One region of interest: its CT is resampled once and shared by the fine stages where their plans agree."""

    def __init__(self, networks: NnunetPredictors, image: Array, spacing: Spacing) -> None:
        self._networks = networks
        self._image = np.ascontiguousarray(image)
        self._spacing = spacing
        self._cache: dict[Any, torch.Tensor] = {}
        self.probabilities: dict[str, Array] = {}
        self.certainty: list[Certainty] = []

    def kidney(self, near: Array | None) -> Array:
        """Kidneys with their masses, at the region's voxels."""
        stage = self._networks.kidney_stage
        return cast("Array", self._predict(stage, [self._image], near) > 0)

    def masses(self, kidney: Array, near: Array) -> tuple[Array, Array]:
        """Masses and tumours, at the region's voxels."""
        answers = []
        for stage in self._networks.mass_stages:
            channels = [self._image, kidney][: stage.channels]
            answers.append((stage, self._predict(stage, channels, near)))
            self._cache = {key: value for key, value in self._cache.items() if key[0] == 0}
        (first, masses), (last, tumor) = answers[0], answers[-1]
        return first.holds(masses, "masses", "tumor"), last.holds(tumor, "tumor")

    def _predict(self, stage: StageNetwork, channels: Sequence[Array], near: Array | None) -> Array:
        prepared = stage.prepare(channels, self._spacing, self._cache)
        with self._networks.timed("network"):
            logits = stage.logits(prepared, near, self._networks.on_tile)
        self.certainty.append(stage.certainty(logits, prepared))
        back = stage.resampled_logits(logits, prepared)
        if self._networks.keep_probabilities:
            self.probabilities[stage.model.label] = stage.probabilities(back, prepared)
        return stage.labels(back, prepared)


class NnunetPredictors:
    """All stages, loaded once. The callables that the orchestrator works with."""

    def __init__(
        self,
        models: CascadeModels,
        device: str = "auto",
        coarse: TileOptions | None = None,
        fine: TileOptions | None = None,
        kidney: TileOptions | None = None,
    ) -> None:
        self.device = choose_device(device)
        coarse = coarse or TileOptions(0.75, mirror=False)
        fine = fine or TileOptions()
        self.coarse_stage = StageNetwork(models.coarse, self.device, coarse)
        self.kidney_stage = StageNetwork(models.kidney, self.device, kidney or fine)
        self.mass_stages = [StageNetwork(model, self.device, fine) for model in models.masses]
        self.keep_probabilities = False
        self.on_tile: Callable[[], None] | None = None
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds up the seconds of a kind of work."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    @cached_property
    def grid(self) -> FineGrid | None:
        """What the fine networks work on; None where one looks at single slices."""
        grids = [stage.grid for stage in (self.kidney_stage, *self.mass_stages)]
        known = [grid for grid in grids if grid is not None]
        if len(known) < len(grids):
            return None
        own = known[0].spacing
        patch = [max(round(g.patch[axis] * g.spacing[axis] / own[axis]) for g in known) for axis in range(3)]
        return replace(known[0], patch=(patch[0], patch[1], patch[2]))

    def coarse(self, image: Array, spacing: Spacing) -> Array:
        """Kidneys with their masses, on the coarse network's own grid of the same field of view."""
        stage = self.coarse_stage
        prepared = stage.prepare([image], spacing, {})
        with self.timed("network"):
            logits = stage.logits(prepared, None, self.on_tile)
        mask = stage.labels(logits) > 0
        return _uncropped(mask, prepared).transpose(stage.plans.transpose_backward)

    def region(self, image: Array, spacing: Spacing, box: Box) -> Roi:
        """A region of interest for the fine stages."""
        return Roi(self, image, spacing)


class WholePredictor:
    """One network for the whole scan; it answers with KiTS labels, as its dataset has them."""

    def __init__(self, model: StageModel, device: str = "auto", tiles: TileOptions | None = None) -> None:
        self.device = choose_device(device)
        self.stage = StageNetwork(model, self.device, tiles or TileOptions())
        self.seconds: dict[str, float] = {}

    def whole(self, image: Array, spacing: Spacing) -> Array:
        """KiTS labels at the voxels of the image."""
        prepared = self.stage.prepare([np.ascontiguousarray(image)], spacing, {})
        logits = self.stage.logits(prepared, None)
        return self.stage.labels(self.stage.resampled_logits(logits, prepared), prepared)


def _uncropped(mask: Array, prepared: Prepared) -> Array:
    """The mask of the whole field of view, where nnU-Net had cropped away what is empty."""
    if prepared.box.shape == prepared.shape:
        return mask
    scale = [n / m for n, m in zip(mask.shape, prepared.box.shape, strict=True)]
    shape = [max(1, round(n * s)) for n, s in zip(prepared.shape, scale, strict=True)]
    whole = np.zeros(shape, dtype=mask.dtype)
    start = [min(round(a * s), n - m) for a, s, n, m in zip(prepared.box.start, scale, shape, mask.shape, strict=True)]
    whole[tuple(slice(a, a + m) for a, m in zip(start, mask.shape, strict=True))] = mask
    return whole
