"""A plan and its labels as prediction needs them, as nnU-Net's managers have them, without what these import.

nnU-Net's managers load its image readers, scikit-image and an HTTP client: half a second before the first tile. What is
plain is read here; whatever is not (plans of old versions, other label managers) is left to nnU-Net's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import numpy as np

_LABEL_MANAGER: Final = "LabelManager"
_KNOWN: Final = ("spacing", "patch_size", "normalization_schemes", "use_mask_for_norm", "architecture")


@dataclass(frozen=True)
class Labels:
    """What the heads of a network stand for."""

    has_regions: bool
    regions_class_order: tuple[int, ...] | None
    num_segmentation_heads: int

    def apply_inference_nonlin(self, logits: Any) -> Any:
        """Probabilities of logits (channels first)."""
        from scipy.special import expit, softmax

        values = np.asarray(logits, np.float32)
        return expit(values) if self.has_regions else softmax(values, axis=0)


class Configuration:
    """One of a plan's configurations."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.configuration = content
        self.spacing: list[float] = content["spacing"]
        self.patch_size: list[int] = content["patch_size"]
        self.normalization_schemes: list[str] = content["normalization_schemes"]
        self.use_mask_for_norm: list[bool] = content["use_mask_for_norm"]

    @cached_property
    def _own(self) -> Any:
        """nnU-Net's manager, for functions that plans name."""
        from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

        return ConfigurationManager(self.configuration)

    @property
    def resampling_fn_data(self) -> Any:
        """Of images."""
        return self._own.resampling_fn_data

    @property
    def resampling_fn_probabilities(self) -> Any:
        """Of logits."""
        return self._own.resampling_fn_probabilities


@dataclass(frozen=True)
class Plans:
    """A plans file."""

    plans: dict[str, Any]
    configurations: dict[str, Configuration] = field(default_factory=dict)  # those with all that is needed

    @property
    def transpose_forward(self) -> list[int]:
        """From the volume's axes to the plan's."""
        return list(self.plans["transpose_forward"])

    @property
    def transpose_backward(self) -> list[int]:
        """From the plan's axes to the volume's."""
        return list(self.plans["transpose_backward"])

    @property
    def foreground_intensity_properties_per_channel(self) -> dict[str, Any]:
        """Statistics that normalisations take."""
        old = self.plans.get("foreground_intensity_properties_by_modality", {})
        return dict(self.plans.get("foreground_intensity_properties_per_channel", old))

    def get_configuration(self, name: str) -> Configuration:
        """By its name."""
        return self.configurations[name]

    def get_label_manager(self, dataset: Mapping[str, Any]) -> Any:
        """Of a dataset.json; nnU-Net's own where the labels are not plain, which also says what is wrong with them."""
        plain = _labels(dataset["labels"], dataset.get("regions_class_order"))
        return plain or _managers(self.plans).get_label_manager(dataset)


def read_plans(plans: dict[str, Any], configuration: str) -> Any:
    """The plans, for one of their configurations: nnU-Net's own manager where they are not plain."""
    content = _with_parents(plans["configurations"], configuration)
    plain = plans.get("label_manager", _LABEL_MANAGER) == _LABEL_MANAGER and content.get("previous_stage") is None
    if not plain or any(name not in content for name in _KNOWN):
        return _managers(plans)
    return Plans(plans, {configuration: Configuration(content)})


def input_channels(plans: Any, configuration: Any, dataset: Mapping[str, Any]) -> int:
    """Of the network."""
    if isinstance(plans, Plans):
        return len(dataset["modality"] if "modality" in dataset else dataset["channel_names"])
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels

    return int(determine_num_input_channels(plans, configuration, dataset))


def _managers(plans: dict[str, Any]) -> Any:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    return PlansManager(plans)


def _with_parents(configurations: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A configuration with what it inherits; empty where it is not to be resolved."""
    seen: list[str] = []
    while name in configurations and name not in seen:
        seen.append(name)
        parent = configurations[name].get("inherits_from")
        if parent is None:
            merged: dict[str, Any] = {}
            for one in reversed(seen):
                merged |= deepcopy(configurations[one])
            return merged
        name = parent
    return {}


def _labels(named: Mapping[str, Any], order: Any) -> Labels | None:
    """Plain labels, or regions; None for what nnU-Net must judge."""
    if named.get("background") != 0 or "ignore" in named:
        return None
    given = [part for name, part in named.items() if name != "background"]
    parts = [list(part) if isinstance(part, (list, tuple)) else [part] for part in given]
    if not parts or not all(any(part) for part in parts):
        return None
    if all(len(part) == 1 for part in parts):
        return Labels(False, None, len({0, *(int(part[0]) for part in parts)}))
    fits = isinstance(order, (list, tuple)) and len(order) == len(parts)
    return Labels(True, tuple(int(n) for n in order), len(parts)) if fits else None
