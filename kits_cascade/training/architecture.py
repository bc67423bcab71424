"""The network that a plan names, built.

nnU-Net builds its own networks and those of this package, and calls their arguments ``input_channels``, ``num_classes``
and ``deep_supervision``; MONAI's take ``in_channels`` and ``out_channels``. nnU-Net's alone have several outputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from kits_cascade.errors import KitsCascadeError, UsageError
from kits_cascade.models.checkpoint import locate_class

_MONAI, _OURS = "monai.networks.nets.", "kits_cascade.training.networks."


def has_deep_supervision(architecture: Mapping[str, Any]) -> bool:
    """Whether the network gives its answer at several resolutions, as nnU-Net's do."""
    return not str(architecture["network_class_name"]).startswith((_MONAI, _OURS))


def build_network(
    architecture: Mapping[str, Any], inputs: int, outputs: int, *, deep_supervision: bool, init: bool = True
) -> torch.nn.Module:
    """The network of a configuration's ``architecture``; ``init`` draws nnU-Net's starting weights."""
    name, arguments = architecture["network_class_name"], architecture["arch_kwargs"]
    to_import = architecture["_kw_requires_import"]
    if name.startswith(_MONAI):
        given = {key: locate_class(value) if key in to_import and value else value for key, value in arguments.items()}
        return cast("torch.nn.Module", locate_class(name)(in_channels=inputs, out_channels=outputs, **given))
    network = get_network_from_plans(
        name, arguments, to_import, inputs, outputs, allow_init=init, deep_supervision=deep_supervision
    )
    return cast("torch.nn.Module", network)


def check_network(configuration: Mapping[str, Any], place: str) -> None:
    """Build the network on torch's meta device (no memory, no time), and see that the patch fits its strides."""
    architecture, patch = configuration["architecture"], configuration["patch_size"]
    inputs = len(configuration["normalization_schemes"])
    try:
        with torch.device("meta"):
            build_network(architecture, inputs, 2, deep_supervision=False, init=False)
    except KitsCascadeError:
        raise
    except Exception as error:  # whatever a network class thinks of its arguments
        raise UsageError(f"{place}: the architecture cannot be built: {type(error).__name__}: {error}") from error
    strides = architecture["arch_kwargs"].get("strides", [])
    steps = [
        math.prod(stride[axis] if isinstance(stride, list) else stride for stride in strides)
        for axis in range(len(patch))
    ]
    if any(size % step for size, step in zip(patch, steps, strict=True)):
        raise UsageError(f"{place}: patch size {patch} must be a multiple of {steps}, the product of the strides")
