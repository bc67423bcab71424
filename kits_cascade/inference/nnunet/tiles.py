"""Networks from trained models, in a predictor of nnU-Net that leaves out the tiles that cannot matter."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from kits_cascade.errors import ModelError
from kits_cascade.models.checkpoint import load_checkpoint
from kits_cascade.models.network import StageModel
from kits_cascade.training.architecture import build_network
from kits_cascade.training.prior import with_binary_prior
from kits_cascade.training.trainer_options import TrainerOptions
from kits_cascade.volumes.geometry import Box


@dataclass(frozen=True)
class TileOptions:
    """How a network walks over an image."""

    step: float = 0.5
    mirror: bool = True
    skip_beyond_mm: float | None = 10.0  # leave out tiles further than this from what can matter


class Predictor(nnUNetPredictor):  # type: ignore[misc]
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


def load_predictor(
    model: StageModel, plans: PlansManager, dataset: dict[str, Any], device: torch.device, tiles: TileOptions
) -> Predictor:
    """The networks of a model (its folds) in nnU-Net's predictor, without running any code from their files."""
    checkpoints = [load_checkpoint(path) for path in model.checkpoints]
    with contextlib.redirect_stdout(io.StringIO()):  # its remark on devices is for others
        predictor = Predictor(
            tile_step_size=tiles.step,
            use_mirroring=tiles.mirror,
            perform_everything_on_device=device.type == "cuda",
            device=device,
            allow_tqdm=False,
        )
    network = _network(model, plans, dataset)
    try:
        network.load_state_dict(checkpoints[0]["network_weights"])
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"{model.folder}: the weights do not fit the network of its plans ({reason})") from error
    predictor.manual_initialization(
        network,
        plans,
        plans.get_configuration(model.configuration),
        [checkpoint["network_weights"] for checkpoint in checkpoints],
        dataset,
        model.trainer,
        checkpoints[0].get("inference_allowed_mirroring_axes"),
    )
    return predictor


def _network(model: StageModel, plans: PlansManager, dataset: dict[str, Any]) -> torch.nn.Module:
    configuration = plans.get_configuration(model.configuration)
    inputs = determine_num_input_channels(plans, configuration, dataset)
    outputs = plans.get_label_manager(dataset).num_segmentation_heads
    # Our trainers complete their entry in the plans: by it they are known, without a search through all of nnU-Net's
    # trainers, which takes seconds. They train the network that the plans name, and so does nnU-Net's own.
    ours = TrainerOptions.from_plans(plans.plans).prior_channels is not None
    if not ours and model.trainer != "nnUNetTrainer":
        network = _trainer_class(model.trainer).build_network_architecture(
            plans, configuration, inputs, outputs, enable_deep_supervision=False
        )
        return cast("torch.nn.Module", network)
    architecture = configuration.configuration["architecture"]
    network = build_network(architecture, inputs, outputs, deep_supervision=False, init=False)
    return with_binary_prior(network, plans.plans) if ours else network


def _trainer_class(name: str) -> Any:
    """A trainer that may build a network of its own, found by nnU-Net's search."""
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return recursive_find_trainer_class_by_name(name)
    except RuntimeError as error:
        raise ModelError(f"the model was trained with {name}, which nnU-Net does not find here ({error})") from error
