"""Networks from trained models, built of allowed parts, in an engine and in nnU-Net's sliding window."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from dataclasses import dataclass
from typing import Any, Final, cast

import torch
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from kits_cascade.errors import ModelError
from kits_cascade.inference.nnunet.engine_networks import Built, build_engine
from kits_cascade.inference.nnunet.engines import Computing
from kits_cascade.inference.nnunet.openvino_engine import OpenVinoNetwork
from kits_cascade.inference.nnunet.sliding_window import SlidingWindow
from kits_cascade.models.checkpoint import load_checkpoint
from kits_cascade.models.network import StageModel
from kits_cascade.training.architecture import build_network
from kits_cascade.training.prior import with_binary_prior
from kits_cascade.training.trainer_options import TrainerOptions

log = logging.getLogger(__name__)
_COMPILE: Final = "nnUNet_compile"  # nnU-Net's variable: on request only, as in its predictor


@dataclass(frozen=True)
class TileOptions:
    """How a network walks over an image."""

    step: float = 0.5
    mirror: bool = True
    skip_beyond_mm: float | None = 10.0  # leave out tiles further than this from what can matter


def load_predictor(
    model: StageModel, plans: PlansManager, dataset: dict[str, Any], computing: Computing, tiles: TileOptions
) -> SlidingWindow:
    """The networks of a model (its folds) in the sliding window, without running any code from their files."""
    checkpoints = [load_checkpoint(path) for path in model.checkpoints]
    built = _built(model, plans, dataset, [checkpoint["network_weights"] for checkpoint in checkpoints], computing)
    axes = checkpoints[0].get("inference_allowed_mirroring_axes") if tiles.mirror else None
    labels = plans.get_label_manager(dataset)
    patch = tuple(int(n) for n in plans.get_configuration(model.configuration).patch_size)
    if any(axis >= len(patch) for axis in axes or ()):
        raise ModelError(f"{model.folder}: to be mirrored along axes {axes}, but a tile has only {len(patch)}")
    window = SlidingWindow(
        built.network,
        built.folds,
        patch,
        labels.num_segmentation_heads,
        labels.has_regions,
        tiles.step,
        tuple(axes or ()),
        torch.device(computing.device),
        fell_back=built.fell_back,
    )
    if isinstance(built.network, OpenVinoNetwork):
        window.ahead, window.release = True, built.network.release
    elif os.environ.get(_COMPILE, "").lower() in ("true", "1", "t"):
        built.network.compile()
    return window


def _built(
    model: StageModel, plans: PlansManager, dataset: dict[str, Any], weights: list[Any], computing: Computing
) -> Built:
    """The network of the plans with the weights, in the engine; in PyTorch where the engine cannot take it."""
    network = _network(model, plans, dataset)
    try:
        network.load_state_dict(weights[0])
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"{model.folder}: the weights do not fit the network of its plans ({reason})") from error
    configuration = plans.get_configuration(model.configuration)
    channels = determine_num_input_channels(plans, configuration, dataset)
    built = build_engine(network, weights, (1, channels, *configuration.patch_size), computing)
    if built.fell_back:
        log.warning(
            "%s: %s cannot run this network (%s); PyTorch does, more slowly",
            model.folder,
            computing.engine,
            built.fell_back,
        )
    return built


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
