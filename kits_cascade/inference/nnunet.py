"""The only module that knows nnU-Net's predictor: its networks, sliding window and preprocessing, in our process.

What nnU-Net does file by file with worker pools is done here on arrays, with the same arithmetic: normalisation by the
plan's own classes, resampling by the plan's method (see :mod:`kits_cascade.inference.resample`), tiles, folds and
mirroring by nnU-Net's predictor.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, cast

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.preprocessing.resampling.default_resampling import determine_do_sep_z_and_axis
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from kits_cascade.errors import EnvironmentNotReadyError, ModelError
from kits_cascade.files import read_json
from kits_cascade.geometry import Box
from kits_cascade.inference.checkpoint import load_checkpoint
from kits_cascade.inference.models import CascadeModels, StageModel
from kits_cascade.inference.resample import Method, new_shape, resample
from kits_cascade.training.augment import BinaryPrior
from kits_cascade.training.options import TrainerOptions
from kits_cascade.volume import Array, Spacing

log = logging.getLogger(__name__)

# These trainers build the network that the plan describes (ours also make its kidney channel binary): no search through
# all of nnU-Net's trainers is needed, which takes seconds. tests/inference/test_nnunet_adapter.py holds them to it.
OUR_TRAINERS: Final = (
    "SurfaceLossTrainer",
    "BoundaryLossTrainer",
    "RegionTrainer",
    "KidneyTrainer",
    "MassTrainer",
    "TumorTrainer",
    "RegionSurfaceLossTrainer",
    "KidneySurfaceLossTrainer",
    "MassSurfaceLossTrainer",
    "TumorSurfaceLossTrainer",
    "DemoTrainer",
    "DemoSurfaceLossTrainer",
    "DemoQuickTrainer",
    "DemoQuickSurfaceLossTrainer",
)
PLAN_NETWORK_TRAINERS: Final = ("nnUNetTrainer", *OUR_TRAINERS)
# Normalisations that look at one voxel at a time: they may run on parts of an image.
_BY_VOXEL: Final = ("CTNormalization", "NoNormalization")
_EPOCHS: Final = re.compile(r"_\d+epochs?$")
# Logits where no tile was predicted: surely background, but small enough to be interpolated with.
_NOT_PREDICTED: Final = -20.0


@dataclass(frozen=True)
class TileOptions:
    """How a network walks over an image."""

    step: float = 0.5
    mirror: bool = True
    skip_beyond_mm: float | None = 10.0  # leave out tiles further than this from what can matter


def choose_device(name: str) -> torch.device:
    """The device by name; ``auto`` takes what there is."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise EnvironmentNotReadyError(f"there is no device {name!r}; use auto, cuda, cuda:N, cpu or mps") from error
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if not available.get(device.type, False):
        raise EnvironmentNotReadyError(f"this PyTorch has no {device.type} device here; use --device cpu")
    return device


class _Predictor(nnUNetPredictor):  # type: ignore[misc]
    """nnU-Net's predictor, which leaves out the tiles that cannot matter."""

    wanted: Callable[[Box], bool] | None = None
    before_padding: tuple[int, ...] = ()
    on_tile: Callable[[], None] | None = None

    def _internal_get_sliding_window_slicers(self, image_size: tuple[int, ...]) -> list[tuple[Any, ...]]:
        slicers: list[tuple[Any, ...]] = super()._internal_get_sliding_window_slicers(image_size)
        if self.wanted is None or any(not isinstance(part, slice) for part in slicers[0]):
            return slicers
        # nnU-Net pads images smaller than a tile on both sides.
        offset = [-((n - m) // 2) for n, m in zip(image_size, self.before_padding, strict=True)]
        return [s for s in slicers if self.wanted(_tile_box(s[1:]).shifted(offset).clipped(self.before_padding))]

    def _internal_maybe_mirror_and_predict(self, x: torch.Tensor) -> torch.Tensor:
        if self.on_tile is not None:
            self.on_tile()
        return cast("torch.Tensor", super()._internal_maybe_mirror_and_predict(x))


def _tile_box(slicer: tuple[slice, ...]) -> Box:
    first, second, third = slicer
    return Box((first.start, second.start, third.start), (first.stop, second.stop, third.stop))


@dataclass
class Prepared:
    """A region as a network sees it, and what is needed to go back."""

    data: torch.Tensor  # channels, z, y, x on the network's grid
    spacing: Spacing  # of the region, in the plan's axis order
    shape: tuple[int, int, int]  # of the region, in the plan's axis order
    box: Box  # the part of the region that is not empty, as nnU-Net crops it


@dataclass
class StageNetwork:
    """The networks of one stage (its folds), with the stage's preprocessing and the way back."""

    model: StageModel
    device: torch.device
    tiles: TileOptions
    plans: PlansManager = field(init=False)
    dataset: dict[str, Any] = field(init=False)
    predictor: _Predictor = field(init=False)

    def __post_init__(self) -> None:
        self.plans = PlansManager(read_json(self.model.folder / "plans.json"))
        self.dataset = read_json(self.model.folder / "dataset.json")
        self.predictor = self._load()

    @cached_property
    def configuration(self) -> Any:
        """The plan's configuration that the network was trained in."""
        return self.plans.get_configuration(self.model.configuration)

    def _load(self) -> _Predictor:
        checkpoints = [
            load_checkpoint(self.model.folder / f"fold_{fold}" / self.model.checkpoint) for fold in self.model.folds
        ]
        with contextlib.redirect_stdout(io.StringIO()):  # its remark on devices is for others
            predictor = _Predictor(
                tile_step_size=self.tiles.step,
                use_mirroring=self.tiles.mirror,
                perform_everything_on_device=self.device.type == "cuda",
                device=self.device,
                allow_tqdm=False,
            )
        network = self._network()
        try:
            network.load_state_dict(checkpoints[0]["network_weights"])
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise ModelError(
                f"{self.model.folder}: the weights do not fit the network of its plans ({reason})"
            ) from error
        predictor.manual_initialization(
            network,
            self.plans,
            self.configuration,
            [checkpoint["network_weights"] for checkpoint in checkpoints],
            self.dataset,
            self.model.trainer,
            checkpoints[0].get("inference_allowed_mirroring_axes"),
        )
        return predictor

    def _network(self) -> torch.nn.Module:
        inputs = determine_num_input_channels(self.plans, self.configuration, self.dataset)
        outputs = self.plans.get_label_manager(self.dataset).num_segmentation_heads
        trainer = _EPOCHS.sub("", self.model.trainer)
        if trainer not in PLAN_NETWORK_TRAINERS:
            network = _trainer_class(self.model.trainer).build_network_architecture(
                self.plans, self.configuration, inputs, outputs, enable_deep_supervision=False
            )
            return cast("torch.nn.Module", network)
        network = get_network_from_plans(
            self.configuration.network_arch_class_name,
            self.configuration.network_arch_init_kwargs,
            self.configuration.network_arch_init_kwargs_req_import,
            inputs,
            outputs,
            allow_init=False,
            deep_supervision=False,
        )
        if trainer in OUR_TRAINERS and (prior := TrainerOptions.from_plans(self.plans.plans).prior_channels):
            network.register_forward_pre_hook(BinaryPrior(prior))
        return cast("torch.nn.Module", network)

    @property
    def channels(self) -> int:
        """Input channels of the network."""
        return len(self.dataset.get("channel_names", {"0": "CT"}))

    def prepare(self, channels: Sequence[Array], spacing: Spacing, cache: dict[Any, torch.Tensor]) -> Prepared:
        """Crop away what is empty, normalise and resample. What another stage has prepared alike is in ``cache``."""
        forward = self.plans.transpose_forward
        turned = [channel.transpose(forward) for channel in channels]
        turned_spacing = cast("Spacing", tuple(spacing[i] for i in forward))
        box = _not_empty(turned)
        cropped = [box.crop(channel) for channel in turned]
        parts = []
        for number, channel in enumerate(cropped):
            key = (number, box, tuple(forward), self._recipe(number))
            if key not in cache:
                cache[key] = self._prepare_channel(number, channel, turned_spacing)
            parts.append(cache[key])
        data = parts[0][None] if len(parts) == 1 else torch.stack(parts)
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

    def _prepare_channel(self, number: int, channel: Array, spacing: Spacing) -> torch.Tensor:
        name = self.configuration.normalization_schemes[number]
        normalize = _normalizer(name, self.configuration.use_mask_for_norm[number], self._intensities(number))
        target = self._target_spacing(spacing)
        shape = new_shape(channel.shape, spacing, target)
        if name not in _BY_VOXEL:
            channel, normalize = normalize(channel), _unchanged
        settings = self.configuration.configuration
        method = plan_method(settings["resampling_fn_data"], settings["resampling_fn_data_kwargs"], spacing, target)
        if method is None:
            whole = normalize(np.ascontiguousarray(channel))[None]
            return torch.as_tensor(self.configuration.resampling_fn_data(whole, shape, spacing, target))[0].float()
        return resample(channel, shape, method, normalize)

    def logits(self, prepared: Prepared, near: Array | None, on_tile: Callable[[], None] | None = None) -> torch.Tensor:
        """The networks' answer on their own grid; ``near`` (of the region) says where it can matter."""
        predictor, shape = self.predictor, tuple(prepared.data.shape[1:])
        predictor.before_padding = shape
        predictor.on_tile = on_tile
        predictor.wanted = self._wanted(prepared, near)
        logits = predictor.predict_logits_from_preprocessed_data(prepared.data)
        if predictor.wanted is not None:
            _fill_gaps(logits, predictor.label_manager.has_regions)
        return cast("torch.Tensor", logits)

    def _wanted(self, prepared: Prepared, near: Array | None) -> Callable[[Box], bool] | None:
        if near is None or self.tiles.skip_beyond_mm is None:
            return None
        mask = prepared.box.crop(near.transpose(self.plans.transpose_forward))
        shape, margin = prepared.data.shape[1:], self.tiles.skip_beyond_mm
        spacing = self._target_spacing(prepared.spacing)

        def wanted(tile: Box) -> bool:
            return bool(tile.grown(margin, spacing).clipped(shape).on_grid(shape, mask.shape).crop(mask).any())

        return wanted

    def resampled_logits(self, logits: torch.Tensor, prepared: Prepared) -> torch.Tensor:
        """The logits at the voxels of the region's part that is not empty, in half precision as nnU-Net has them."""
        source = self._target_spacing(prepared.spacing)
        settings = self.configuration.configuration
        name, options = settings["resampling_fn_probabilities"], settings["resampling_fn_probabilities_kwargs"]
        shape = prepared.box.shape
        if tuple(logits.shape[1:]) == shape:
            return logits
        method = plan_method(name, options, source, prepared.spacing)
        if method is None:
            return torch.as_tensor(
                self.configuration.resampling_fn_probabilities(logits, shape, source, prepared.spacing)
            )
        result = torch.empty((logits.shape[0], *shape), dtype=logits.dtype)
        for channel, part in enumerate(logits):
            result[channel] = resample(part.numpy(), shape, method)
        return result

    def labels(self, logits: torch.Tensor, prepared: Prepared | None = None) -> Array:
        """nnU-Net's label map from logits; with ``prepared`` put back into the region's axes and shape."""
        labels = np.asarray(_label_map(logits, self.predictor.label_manager))
        return labels if prepared is None else self._back(labels, prepared, 0)

    def probabilities(self, logits: torch.Tensor, prepared: Prepared) -> Array:
        """Class or region probabilities in the region's axes and shape (outside of what was predicted: background)."""
        values = self.predictor.label_manager.apply_inference_nonlin(logits).numpy()
        fill = [0.0] * len(values) if self.predictor.label_manager.has_regions else [1.0] + [0.0] * (len(values) - 1)
        return np.stack([self._back(v, prepared, f) for v, f in zip(values, fill, strict=True)])

    def _back(self, values: Array, prepared: Prepared, fill: float) -> Array:
        whole = values
        if prepared.box.shape != prepared.shape:
            whole = np.full(prepared.shape, fill, dtype=values.dtype)
            prepared.box.paste(whole, values)
        return whole.transpose(self.plans.transpose_backward)

    def holds(self, labels: Array, *names: str) -> Array:
        """Where a label map has a value of one of the named labels or regions."""
        table = np.zeros(256, dtype=bool)
        for name in names:
            entry = self.dataset["labels"].get(name, [])
            table[np.asarray(entry, dtype=np.intp)] = True
        return cast("Array", table[labels])


@torch.inference_mode()
def _fill_gaps(logits: torch.Tensor, regions: bool) -> None:
    """Background where no tile was predicted, which nnU-Net's averaging leaves as 0 / 0."""
    gaps = torch.isnan(logits[0])
    if gaps.any():
        logits[:, gaps] = _NOT_PREDICTED
        if not regions:
            logits[0, gaps] = -_NOT_PREDICTED


def _label_map(logits: torch.Tensor, manager: Any) -> torch.Tensor:
    """As nnU-Net's label manager decides, without its copies: a sigmoid above 0.5 is a logit above 0."""
    if manager.has_regions:
        labels = torch.zeros(logits.shape[1:], dtype=torch.uint8)
        for channel, value in enumerate(manager.regions_class_order):
            labels[logits[channel] > 0] = int(value)
        return labels
    if logits.shape[0] == 2:
        return (logits[1] > logits[0]).to(torch.uint8)
    return torch.from_numpy(logits.float().numpy().argmax(0).astype(np.uint8))


def _unchanged(part: Array) -> Array:
    return part


def _normalizer(name: str, use_mask: bool, properties: dict[str, float]) -> Callable[[Array], Array]:
    from nnunetv2.preprocessing.normalization import default_normalization_schemes as schemes

    normalization = getattr(schemes, name, None)
    if normalization is None:
        raise ModelError(f"the plan's normalisation {name!r} is not one of nnU-Net's")
    instance = normalization(use_mask_for_norm=use_mask, intensityproperties=properties)

    def run(part: Array) -> Array:
        # A copy, in the memory order of the part: nnU-Net's classes work in place.
        image = part.astype(np.float32)
        return cast("Array", instance.run(image, np.where(image != 0, 0, -1) if use_mask else None))

    return run


def _not_empty(channels: Sequence[Array]) -> Box:
    """Where any channel is not zero, as nnU-Net crops before all else; the whole where all are zero."""
    whole = Box.full(channels[0].shape)
    box: Box | None = None
    for channel in channels:
        if all(channel.take(index, axis).any() for axis in range(3) for index in (0, -1)):
            return whole  # reaches all faces: nothing to crop
        found = Box.around(channel)
        box = found if box is None else box.union(found) if found is not None else box
    return box or whole


def plan_method(name: str, options: dict[str, Any], spacing: Sequence[float], target: Sequence[float]) -> Method | None:
    """What a plan's resampling function does between two spacings; None for functions that are not known here."""
    separate, axis = determine_do_sep_z_and_axis(options.get("force_separate_z"), spacing, target)
    at = int(axis) if separate else None
    if name == "resample_data_or_seg_to_shape":
        return Method(int(options.get("order", 3)), at, int(options.get("order_z", 0)))
    known = (
        options.get("mode", "linear") == "linear" and options.get("aniso_axis_mode", "nearest-exact") == "nearest-exact"
    )
    if name == "resample_torch_fornnunet" and known:
        return Method(1, at, 0, clip=False)
    return None


def _trainer_class(name: str) -> Any:
    """A trainer that builds a network of its own: ours, else found by nnU-Net's search."""
    from kits_cascade.training import trainers

    ours = getattr(trainers, name, None)
    if ours is not None:
        return ours
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return recursive_find_trainer_class_by_name(name)
    except RuntimeError as error:
        raise ModelError(f"the model was trained with {name}, which nnU-Net does not find here ({error})") from error


class Region:
    """One region of interest: its CT is resampled once and shared by the fine stages where their plans agree."""

    def __init__(self, networks: NnunetPredictors, image: Array, spacing: Spacing) -> None:
        self._networks = networks
        self._image = np.ascontiguousarray(image)
        self._spacing = spacing
        self._cache: dict[Any, torch.Tensor] = {}
        self.probabilities: dict[str, Array] = {}

    def kidney(self, near: Array | None) -> Array:
        """Kidneys with their masses, at the region's voxels."""
        stage = self._networks.kidney_stage
        return cast("Array", self._predict(stage, [self._image], near) > 0)

    def masses(self, kidney: Array) -> tuple[Array, Array]:
        """Masses and tumours, at the region's voxels."""
        answers = []
        for stage in self._networks.mass_stages:
            channels = [self._image, kidney][: stage.channels]
            answers.append((stage, self._predict(stage, channels, kidney)))
            self._cache = {key: value for key, value in self._cache.items() if key[0] == 0}
        (first, masses), (last, tumor) = answers[0], answers[-1]
        return first.holds(masses, "masses", "tumor"), last.holds(tumor, "tumor")

    def _predict(self, stage: StageNetwork, channels: Sequence[Array], near: Array | None) -> Array:
        prepared = stage.prepare(channels, self._spacing, self._cache)
        with self._networks.timed("network"):
            logits = stage.logits(prepared, near, self._networks.on_tile)
        back = stage.resampled_logits(logits, prepared)
        if self._networks.keep_probabilities:
            self.probabilities[stage.model.key] = stage.probabilities(back, prepared)
        return stage.labels(back, prepared)


class NnunetPredictors:
    """All stages, loaded once. The callables that the orchestrator works with."""

    def __init__(
        self,
        models: CascadeModels,
        device: str = "auto",
        coarse: TileOptions | None = None,
        fine: TileOptions | None = None,
    ) -> None:
        self.device = choose_device(device)
        coarse = coarse or TileOptions(0.75, mirror=False)
        fine = fine or TileOptions()
        self.coarse_stage = StageNetwork(models.coarse, self.device, coarse)
        self.kidney_stage = StageNetwork(models.kidney, self.device, fine)
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

    def coarse(self, image: Array, spacing: Spacing) -> Array:
        """Kidneys with their masses, on the coarse network's own grid of the same field of view."""
        stage = self.coarse_stage
        prepared = stage.prepare([image], spacing, {})
        with self.timed("network"):
            logits = stage.logits(prepared, None, self.on_tile)
        mask = stage.labels(logits) > 0
        return _uncropped(mask, prepared).transpose(stage.plans.transpose_backward)

    def region(self, image: Array, spacing: Spacing, box: Box) -> Region:
        """A region of interest for the fine stages."""
        return Region(self, image, spacing)


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
