"""The only place that knows how nnU-Net predicts: its networks, sliding window and preprocessing, in our process.

What nnU-Net does file by file with worker pools is done here on arrays, with the same arithmetic: normalisation by the
plan's own classes, resampling by the plan's method (:mod:`kits_cascade.inference.nnunet.resample`), tiles, folds and
mirroring as its predictor has them (:mod:`kits_cascade.inference.nnunet.sliding_window`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from typing import Any, cast

import numpy as np

from kits_cascade.inference.certainty import Agreement, Certainty
from kits_cascade.inference.nnunet.engine_networks import describe_computing
from kits_cascade.inference.nnunet.engines import Computing, as_nnunet
from kits_cascade.inference.nnunet.stage import Prepared, StageNetwork
from kits_cascade.inference.nnunet.tiles import TileOptions
from kits_cascade.inference.roi import FineGrid
from kits_cascade.models.fine import kits_names
from kits_cascade.models.network import CascadeModels, StageModel
from kits_cascade.volumes.geometry import Box
from kits_cascade.volumes.volume import Array, Spacing, laid_out


class Roi:
    """One region of interest: its CT is resampled once and shared by the fine stages where their plans agree."""

    def __init__(self, networks: NnunetPredictors, image: Array, spacing: Spacing) -> None:
        self._networks = networks
        self._image = laid_out(image)
        self._spacing = spacing
        self._cache: dict[Any, Array] = {}
        self._answer: Array = np.zeros(0, dtype=np.uint8)
        self.probabilities: dict[str, Array] = {}
        self.certainty: list[Certainty] = []
        self.agreements: list[Agreement] = []

    def kidney(self, near: Array | None) -> Array:
        """Kidneys with their masses, at the region's voxels."""
        stage = self._networks.kidney_stage
        self._answer = self._predict(stage, [self._image], near)
        names = self._networks.fine_names
        return cast("Array", self._answer > 0) if names is None else stage.holds(self._answer, *names["kidney"])

    def masses(self, kidney: Array, near: Array) -> tuple[Array, Array]:
        """Masses and tumours, at the region's voxels."""
        names = self._networks.fine_names
        if names is not None:
            stage = self._networks.kidney_stage
            found = [stage.holds(self._answer, *names[region]) & kidney for region in ("masses", "tumor")]
            return found[0], found[1]
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
        alone = self._networks.fine_names is not None
        self.agreements.extend(replace(one, stage="kidney") if alone else one for one in stage.agreements)
        told = stage.certainty(logits, prepared)
        # A single fine network is as sure of the masses as of the kidney around them.
        for name in ("kidney", "masses") if alone else (told.stage,):
            self.certainty.append(replace(told, stage=name))
        if not self._networks.keep_probabilities:
            return stage.region_labels(logits, prepared)
        back = stage.resampled_logits(logits, prepared)
        self.probabilities[stage.model.label] = stage.probabilities(back, prepared)
        return stage.labels(back, prepared)


class NnunetPredictors:
    """All stages, loaded once. The callables that the orchestrator works with."""

    def __init__(
        self,
        models: CascadeModels,
        computing: Computing | str = "auto",
        coarse: TileOptions | None = None,
        fine: TileOptions | None = None,
        kidney: TileOptions | None = None,
    ) -> None:
        self.computing = _settled(computing)
        coarse = coarse or TileOptions(0.75, mirror=False)
        fine = fine or TileOptions()
        wanted = [(models.coarse, coarse), (models.kidney, kidney or fine), *((model, fine) for model in models.masses)]
        with ThreadPoolExecutor(len(wanted)) as pool:
            loaded = list(pool.map(lambda one: StageNetwork(one[0], self.computing, one[1]), wanted))
        self.coarse_stage, self.kidney_stage, *self.mass_stages = loaded
        # A single fine network answers for the kidney and for what is in it.
        self.fine_names = None if models.masses else kits_names(self.kidney_stage.dataset["labels"])
        self.keep_probabilities = False
        self.on_tile: Callable[[], None] | None = None
        self.seconds: dict[str, float] = {}

    @property
    def stages(self) -> tuple[StageNetwork, ...]:
        """In the order in which they are used."""
        return (self.coarse_stage, self.kidney_stage, *self.mass_stages)

    @property
    def computed_with(self) -> dict[str, Any]:
        """For run.json."""
        return _computed_with(self.computing, self.stages)

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

    def __init__(
        self, model: StageModel, computing: Computing | str = "auto", tiles: TileOptions | None = None
    ) -> None:
        self.computing = _settled(computing)
        self.stage = StageNetwork(model, self.computing, tiles or TileOptions())
        self.seconds: dict[str, float] = {}

    @property
    def computed_with(self) -> dict[str, Any]:
        """For run.json."""
        return _computed_with(self.computing, [self.stage])

    def whole(self, image: Array, spacing: Spacing) -> Array:
        """KiTS labels at the voxels of the image."""
        prepared = self.stage.prepare([np.ascontiguousarray(image)], spacing, {})
        logits = self.stage.logits(prepared, None)
        return self.stage.region_labels(logits, prepared)


def _settled(computing: Computing | str) -> Computing:
    """By a device's name: what nnU-Net itself would compute with there."""
    if isinstance(computing, Computing):
        return computing
    from kits_cascade.training.devices import choose_device

    return as_nnunet(str(choose_device(computing)))


def _computed_with(computing: Computing, stages: Sequence[StageNetwork]) -> dict[str, Any]:
    """Engine, precision and device, and the networks that the engine could not take."""
    fell_back = {stage.model.label: stage.predictor.fell_back for stage in stages if stage.predictor.fell_back}
    return describe_computing(computing) | ({"in_torch_instead": fell_back} if fell_back else {})


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
