"""A model's network and weights, read and built only where somebody needs them: an engine may have kept them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, cast

from kits_cascade.errors import ModelError
from kits_cascade.files import digest, read_json
from kits_cascade.inference.nnunet.code_marks import own_mark
from kits_cascade.inference.nnunet.engines import OPENVINO, Computing
from kits_cascade.inference.nnunet.openvino_kept import begin_with_kept
from kits_cascade.inference.nnunet.plan_reader import input_channels, read_plans
from kits_cascade.models.checkpoint import load_checkpoint, names_known_parts, require_modules
from kits_cascade.models.network import StageModel, file_checksum
from kits_cascade.training.trainer_names import OUR_TRAINERS
from kits_cascade.training.trainer_options import TrainerOptions
from kits_cascade.version import __version__

if TYPE_CHECKING:
    from torch import nn

_NNUNET: Final = "nnUNetTrainer"


@dataclass(frozen=True)
class NetworkSource:
    """The networks of a model, one for each of its folds."""

    model: StageModel
    plans: Any
    dataset: dict[str, Any]

    @staticmethod
    def of(model: StageModel) -> NetworkSource:
        """By the model's own files."""
        plans = read_plans(read_json(model.folder / "plans.json"), model.configuration)
        return NetworkSource(model, plans, read_json(model.folder / "dataset.json"))

    @property
    def _configuration(self) -> Any:
        return self.plans.get_configuration(self.model.configuration)

    @property
    def _channels(self) -> tuple[int, int]:
        """In and out."""
        heads = self.plans.get_label_manager(self.dataset).num_segmentation_heads
        return input_channels(self.plans, self._configuration, self.dataset), int(heads)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a tile, batch and channels included."""
        return (1, self._channels[0], *(int(n) for n in self._configuration.patch_size))

    @property
    def _is_of_the_plans(self) -> bool:
        """Whether the network is the one that the plans name.

        Our trainers complete their entry in the plans, and train that network; so does nnU-Net's own trainer. Known by
        that, or by name, they need not be searched among all of nnU-Net's trainers, which takes seconds.
        """
        return self._is_ours or self.model.trainer == _NNUNET

    @property
    def _is_ours(self) -> bool:
        return self._prior_channels is not None or self.model.trainer in OUR_TRAINERS

    @cached_property
    def _prior_channels(self) -> tuple[int, ...] | None:
        return TrainerOptions.from_plans(self.plans.plans).prior_channels

    @cached_property
    def names(self) -> list[str]:
        """One for each fold, which tells all that decides its network but foreign code; none of foreign trainers'.

        These may make any network, and are found by importing all of nnU-Net's.
        """
        if not self._is_of_the_plans:
            return []
        same = [
            self._configuration.configuration["architecture"],
            self._prior_channels if self._is_ours else None,
            self._channels,
            self.shape,
            __version__,
            own_mark(),
        ]
        return [digest([file_checksum(path), *same]) for path in self.model.checkpoints]

    @property
    def is_foreign(self) -> bool:
        """Whether code has a part in it that is neither ours nor of a package that all networks are made of."""
        return not (self._is_of_the_plans and names_known_parts(self._configuration.configuration["architecture"]))

    @cached_property
    def _checkpoints(self) -> list[dict[str, Any]]:
        return [load_checkpoint(path) for path in self.model.checkpoints]

    @property
    def weights(self) -> list[dict[str, Any]]:
        """Of each fold."""
        return [checkpoint["network_weights"] for checkpoint in self._checkpoints]

    @property
    def mirror_axes(self) -> tuple[int, ...]:
        """Along which the network may be shown mirrored tiles."""
        return tuple(int(axis) for axis in self._checkpoints[0].get("inference_allowed_mirroring_axes") or ())

    @cached_property
    def network(self) -> nn.Module:
        """Built, with the first fold's weights."""
        network = self._plain_network()
        try:
            network.load_state_dict(self.weights[0])
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise ModelError(
                f"{self.model.folder}: the weights do not fit the network of its plans ({reason})"
            ) from error
        return network

    def _plain_network(self) -> nn.Module:
        from kits_cascade.training.architecture import build_network
        from kits_cascade.training.prior import with_binary_prior

        inputs, outputs = self._channels
        architecture = self._configuration.configuration["architecture"]
        if not self._is_of_the_plans:
            network = _trainer_class(self.model.trainer).build_network_architecture(
                self.plans, self._configuration, inputs, outputs, enable_deep_supervision=False
            )
            return cast("nn.Module", network)
        require_modules(architecture, self.model.folder / "plans.json")
        made = build_network(architecture, inputs, outputs, deep_supervision=False, init=False)
        return with_binary_prior(made, self.plans.plans) if self._is_ours else made


def begin_with_networks(models: Sequence[StageModel], computing: Computing) -> None:
    """Begin to read those that the engine has kept, without PyTorch."""
    for model in models:
        names = NetworkSource.of(model).names if computing.engine == OPENVINO else []
        begin_with_kept(names, computing.of_stage(model.key))


def _trainer_class(name: str) -> Any:
    """A trainer that may build a network of its own, found by nnU-Net's search."""
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return recursive_find_trainer_class_by_name(name)
    except RuntimeError as error:
        raise ModelError(f"the model was trained with {name}, which nnU-Net does not find here ({error})") from error
