"""The channel that holds a kidney mask: which one it is, and that networks see it as 0 and 1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from torch import nn

from kits_cascade.stages import KIDNEY_CHANNEL
from kits_cascade.training.augment import BinaryPrior
from kits_cascade.training.trainer_options import TrainerOptions

CHANNEL_NAMES: Final = frozenset({KIDNEY_CHANNEL.casefold(), "kidney_mask"})


def prior_channels(dataset_json: Mapping[str, Any]) -> tuple[int, ...]:
    """The channels that hold a kidney mask, by their names."""
    names = dataset_json.get("channel_names", dataset_json.get("modality", {}))
    return tuple(int(index) for index, name in names.items() if str(name).strip().casefold() in CHANNEL_NAMES)


def with_binary_prior(network: nn.Module, plans: Mapping[str, Any]) -> nn.Module:
    """Let a network see its mask channels as 0 and 1; no parameters, so checkpoints stay as they are."""
    channels = TrainerOptions.from_plans(plans).prior_channels
    if channels:
        network.register_forward_pre_hook(BinaryPrior(channels))
    return network
