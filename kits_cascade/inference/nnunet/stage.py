"""One stage of the cascade: its networks, the way of a CT to them, and the way of their answer back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, cast

import numpy as np

from kits_cascade.inference.certainty import Agreement, Certainty
from kits_cascade.inference.nnunet.decide import Decision, decision_of, is_plain, resampled_labels
from kits_cascade.inference.nnunet.engines import Computing
from kits_cascade.inference.nnunet.network_source import NetworkSource
from kits_cascade.inference.nnunet.plan_rules import BY_VOXEL, box_of_nonzero, normalizer, plan_method, unchanged
from kits_cascade.inference.nnunet.resample import Method, new_shape, resample
from kits_cascade.inference.nnunet.sliding_window import SlidingWindow
from kits_cascade.inference.nnunet.tiles import TileOptions, load_predictor
from kits_cascade.inference.roi import FineGrid
from kits_cascade.models.network import StageModel
from kits_cascade.volumes.geometry import Box
from kits_cascade.volumes.volume import Array, Spacing

# Logits where no tile was predicted: surely background, but small enough to be interpolated with.
_NOT_PREDICTED: Final = -20.0


@dataclass
class Prepared:
    """A region as a network sees it, and what is needed to go back."""

    data: Array  # channels, z, y, x on the network's grid
    spacing: Spacing  # of the region, in the plan's axis order
    shape: tuple[int, int, int]  # of the region, in the plan's axis order
    box: Box  # the part of the region that is not empty, as nnU-Net crops it


@dataclass
class StageNetwork:
    """The networks of one stage (its folds), with the stage's preprocessing and the way back."""

    model: StageModel
    computing: Computing
    tiles: TileOptions
    plans: Any = field(init=False)  # of nnU-Net's kind
    dataset: dict[str, Any] = field(init=False)
    labels_of_plan: Any = field(init=False)  # nnU-Net's label manager
    predictor: SlidingWindow = field(init=False)

    def __post_init__(self) -> None:
        source = NetworkSource.of(self.model)
        self.plans, self.dataset = source.plans, source.dataset
        self.labels_of_plan = self.plans.get_label_manager(self.dataset)
        self.predictor = load_predictor(source, self.computing.of_stage(self.model.key), self.tiles)

    @cached_property
    def configuration(self) -> Any:
        """The plan's configuration that the network was trained in."""
        return self.plans.get_configuration(self.model.configuration)

    @property
    def channels(self) -> int:
        """Input channels of the network."""
        return len(self.dataset.get("channel_names", {"0": "CT"}))

    @property
    def grid(self) -> FineGrid | None:
        """Spacing and tiles in the volume's axes; None for a network that looks at single slices."""
        spacing, patch = self.configuration.spacing, self.configuration.patch_size
        if len(spacing) != 3:
            return None
        first, second, third = self.plans.transpose_backward
        return FineGrid(
            (float(spacing[first]), float(spacing[second]), float(spacing[third])),
            (int(patch[first]), int(patch[second]), int(patch[third])),
            self.tiles.step,
        )

    def prepare(self, channels: Sequence[Array], spacing: Spacing, cache: dict[Any, Array]) -> Prepared:
        """Crop away what is empty, normalise and resample. What another stage has prepared alike is in ``cache``."""
        forward = self.plans.transpose_forward
        turned = [channel.transpose(forward) for channel in channels]
        turned_spacing = cast("Spacing", tuple(spacing[i] for i in forward))
        box = box_of_nonzero(turned)
        cropped = [box.crop(channel) for channel in turned]
        parts = []
        for number, channel in enumerate(cropped):
            key = (number, box, tuple(forward), self._recipe(number))
            if key not in cache:
                cache[key] = self._prepare_channel(number, channel, turned_spacing)
            parts.append(cache[key])
        data = parts[0][None] if len(parts) == 1 else np.stack(parts)
        return Prepared(data, turned_spacing, cast("tuple[int, int, int]", turned[0].shape), box)

    def _recipe(self, channel: int) -> str:
        """All that decides how a channel is prepared."""
        settings = self.configuration.configuration
        names = ("spacing", "resampling_fn_data", "resampling_fn_data_kwargs")
        norm = (self.configuration.normalization_schemes[channel], self.configuration.use_mask_for_norm[channel])
        return repr((*(settings[name] for name in names), norm, self._intensities(channel)))

    def _intensities(self, channel: int) -> dict[str, float]:
        properties = self.plans.foreground_intensity_properties_per_channel
        return cast("dict[str, float]", properties[str(channel)])

    def _target_spacing(self, spacing: Spacing) -> Spacing:
        target = list(self.configuration.spacing)
        return cast("Spacing", tuple(target if len(target) == 3 else [spacing[0], *target]))

    def _prepare_channel(self, number: int, channel: Array, spacing: Spacing) -> Array:
        name = self.configuration.normalization_schemes[number]
        normalize = normalizer(name, self.configuration.use_mask_for_norm[number], self._intensities(number))
        target = self._target_spacing(spacing)
        shape = new_shape(channel.shape, spacing, target)
        if name not in BY_VOXEL:
            channel, normalize = normalize(channel), unchanged
        settings = self.configuration.configuration
        method = plan_method(settings["resampling_fn_data"], settings["resampling_fn_data_kwargs"], spacing, target)
        if method is None:
            whole = normalize(np.ascontiguousarray(channel))[None]
            return np.asarray(self.configuration.resampling_fn_data(whole, shape, spacing, target)[0], np.float32)
        return resample(channel, shape, method, normalize)

    def logits(self, prepared: Prepared, near: Array | None, on_tile: Callable[[], None] | None = None) -> Array:
        """The networks' answer on their own grid; ``near`` (of the region) says where it can matter."""
        wanted = self._wanted(prepared, near)
        logits = self.predictor.logits(prepared.data, wanted, on_tile)
        if wanted is not None:
            _fill_gaps(logits, self.labels_of_plan.has_regions)
        return logits

    @property
    def agreements(self) -> list[Agreement]:
        """Among the folds, and among the mirrored tiles, of the last image."""
        votes = self.predictor.votes.items()
        return [Agreement(self.model.key, among, v.both, v.total) for among, v in votes if v.total]

    def _wanted(self, prepared: Prepared, near: Array | None) -> Callable[[Box], bool] | None:
        if near is None or self.tiles.skip_beyond_mm is None:
            return None
        mask = prepared.box.crop(near.transpose(self.plans.transpose_forward))
        shape, margin = prepared.data.shape[1:], self.tiles.skip_beyond_mm
        spacing = self._target_spacing(prepared.spacing)

        def wanted(tile: Box) -> bool:
            return bool(tile.grown(margin, spacing).clipped(shape).on_grid(shape, mask.shape).crop(mask).any())

        return wanted

    def _way_back(self, prepared: Prepared) -> Method | None:
        """How logits come to the region's voxels; None for functions that are not known here."""
        settings = self.configuration.configuration
        name, options = settings["resampling_fn_probabilities"], settings["resampling_fn_probabilities_kwargs"]
        return plan_method(name, options, self._target_spacing(prepared.spacing), prepared.spacing)

    def resampled_logits(self, logits: Array, prepared: Prepared) -> Array:
        """The logits at the voxels of the region's part that is not empty, as exact as they are."""
        shape = prepared.box.shape
        if tuple(logits.shape[1:]) == shape:
            return logits
        method = self._way_back(prepared)
        if method is None:
            source = self._target_spacing(prepared.spacing)
            exact = logits.astype(np.float32, copy=False)
            return np.asarray(self.configuration.resampling_fn_probabilities(exact, shape, source, prepared.spacing))
        result = np.empty((logits.shape[0], *shape), logits.dtype)
        for channel, part in enumerate(logits):
            result[channel] = resample(part, shape, method)
        return result

    def region_labels(self, logits: Array, prepared: Prepared) -> Array:
        """The label map at the region's voxels, from logits on the network's grid."""
        method, shape = self._way_back(prepared), prepared.box.shape
        if method is None or not is_plain(method) or tuple(logits.shape[1:]) == shape:
            return self.labels(self.resampled_logits(logits, prepared), prepared)
        return self._back(resampled_labels(logits, shape, method, self._decision), prepared, 0)

    @cached_property
    def _decision(self) -> Decision:
        return decision_of(self.labels_of_plan)

    def labels(self, logits: Array, prepared: Prepared | None = None) -> Array:
        """nnU-Net's label map from logits; with ``prepared`` put back into the region's axes and shape."""
        labels = self._decision.labels(logits)
        return labels if prepared is None else self._back(labels, prepared, 0)

    def probabilities(self, logits: Array, prepared: Prepared) -> Array:
        """Class or region probabilities in the region's axes and shape (outside of what was predicted: background)."""
        values = np.asarray(self.labels_of_plan.apply_inference_nonlin(logits))
        fill = [0.0] * len(values) if self.labels_of_plan.has_regions else [1.0] + [0.0] * (len(values) - 1)
        return np.stack([self._back(v, prepared, f) for v, f in zip(values, fill, strict=True)])

    def certainty(self, logits: Array, prepared: Prepared) -> Certainty:
        """How sure the network is of its decisions, at every second voxel of its own grid."""
        backward = self.plans.transpose_backward
        thin = logits[:, ::2, ::2, ::2].astype(np.float32)
        if self.labels_of_plan.has_regions:
            others = np.exp(-np.abs(thin).min(axis=0))
        else:
            others = np.exp(thin - thin.max(axis=0)).sum(axis=0) - 1
        sure: Array = 1 / (1 + others)
        start, stop = ([edge[axis] for axis in backward] for edge in (prepared.box.start, prepared.box.stop))
        part = Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))
        return Certainty(self.model.key, sure.transpose(backward), part)

    def _back(self, values: Array, prepared: Prepared, fill: float) -> Array:
        whole = values
        if prepared.box.shape != prepared.shape:
            whole = np.full(prepared.shape, fill, dtype=values.dtype)
            prepared.box.paste(whole, values)
        return whole.transpose(self.plans.transpose_backward)

    def holds(self, labels: Array, *names: str) -> Array:
        """Where a label map has a value of one of the named labels or regions."""
        values = {int(v) for name in names for v in np.atleast_1d(self.dataset["labels"].get(name, []))}
        found = np.zeros(labels.shape, dtype=bool)
        for value in values:  # faster than a table: there are few
            np.logical_or(found, labels == value, out=found)
        return found


def _fill_gaps(logits: Array, regions: bool) -> None:
    """Background where no tile was predicted, which nnU-Net's averaging leaves as 0 / 0."""
    gaps = np.isnan(logits[0])
    if gaps.any():
        logits[:, gaps] = _NOT_PREDICTED
        if not regions:
            logits[0, gaps] = -_NOT_PREDICTED
