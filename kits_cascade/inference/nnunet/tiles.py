"""Networks from trained models, in a predictor of nnU-Net that leaves out the tiles that cannot matter."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from kits_cascade.errors import ModelError
from kits_cascade.inference.nnunet.engine_networks import Built, build_engine
from kits_cascade.inference.nnunet.engines import Computing
from kits_cascade.inference.nnunet.openvino_engine import OpenVinoNetwork
from kits_cascade.models.checkpoint import load_checkpoint
from kits_cascade.models.network import StageModel
from kits_cascade.training.architecture import build_network
from kits_cascade.training.prior import with_binary_prior
from kits_cascade.training.trainer_options import TrainerOptions
from kits_cascade.volumes.geometry import Box

log = logging.getLogger(__name__)


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
    fell_back: str = ""  # why the engine is not the one that was asked for

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

    def _internal_predict_sliding_window_return_logits(
        self, data: torch.Tensor, slicers: list[tuple[Any, ...]], do_on_device: bool = True
    ) -> torch.Tensor:
        if not isinstance(self.network, OpenVinoNetwork):
            return cast(
                "torch.Tensor", super()._internal_predict_sliding_window_return_logits(data, slicers, do_on_device)
            )
        return self._while_the_next_tile_is_predicted(data, slicers)

    @torch.inference_mode()
    def _while_the_next_tile_is_predicted(self, data: torch.Tensor, slicers: list[tuple[Any, ...]]) -> torch.Tensor:
        """nnU-Net's sum over tiles, in its order and precision. It takes one core, and a tenth of a fast engine's time.

        PyTorch's engine gains nothing by it: in a thread of its own it has threads of its own, too many for the cores.
        """
        shape = data.shape[1:]
        logits = torch.zeros((self.label_manager.num_segmentation_heads, *shape), dtype=torch.half)
        weights = torch.zeros(shape, dtype=torch.half)
        patch = tuple(self.configuration_manager.patch_size)
        gaussian = compute_gaussian(patch, sigma_scale=1.0 / 8, value_scaling_factor=10, device=self.device)
        for place, prediction in self._predictions(data, slicers):
            logits[place] += prediction.mul_(gaussian)
            weights[place[1:]] += gaussian
        torch.div(logits, weights, out=logits)
        if torch.isinf(logits).any():
            raise ModelError("the network's answer is beyond what half precision holds; it cannot be averaged")
        return logits

    def _predictions(
        self, data: torch.Tensor, slicers: list[tuple[Any, ...]]
    ) -> Iterator[tuple[tuple[Any, ...], torch.Tensor]]:
        """The tiles' places and answers; the next one is at work while one is looked at."""
        with ThreadPoolExecutor(max_workers=1) as pool:
            waiting = None
            for place in slicers:
                tile = torch.clone(data[place][None], memory_format=torch.contiguous_format)
                after = place, pool.submit(self._internal_maybe_mirror_and_predict, tile)
                if waiting is not None:
                    yield waiting[0], waiting[1].result()[0]
                waiting = after
            if waiting is not None:
                yield waiting[0], waiting[1].result()[0]


def _tile_box(slicer: tuple[slice, ...]) -> Box:
    first, second, third = slicer
    return Box((first.start, second.start, third.start), (first.stop, second.stop, third.stop))


def load_predictor(
    model: StageModel, plans: PlansManager, dataset: dict[str, Any], computing: Computing, tiles: TileOptions
) -> Predictor:
    """The networks of a model (its folds) in nnU-Net's predictor, without running any code from their files."""
    checkpoints = [load_checkpoint(path) for path in model.checkpoints]
    with contextlib.redirect_stdout(io.StringIO()):  # its remark on devices is for others
        predictor = Predictor(
            tile_step_size=tiles.step,
            use_mirroring=tiles.mirror,
            perform_everything_on_device=computing.kind == "cuda",
            device=torch.device(computing.device),
            allow_tqdm=False,
        )
    weights = [checkpoint["network_weights"] for checkpoint in checkpoints]
    built = _built(model, plans, dataset, weights, computing)
    predictor.fell_back = built.fell_back
    predictor.manual_initialization(
        built.network,
        plans,
        plans.get_configuration(model.configuration),
        built.folds,
        dataset,
        model.trainer,
        checkpoints[0].get("inference_allowed_mirroring_axes"),
    )
    return predictor


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
