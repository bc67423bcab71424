"""Networks in an engine: modules that nnU-Net's predictor takes for the network of a plan."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Final

import torch
from torch import nn

from kits_cascade.inference.nnunet import openvino_engine
from kits_cascade.inference.nnunet.engines import (
    BF16,
    CPU,
    ENGINE_BY_NAME,
    FP16,
    OPENVINO,
    TORCH,
    Computing,
    as_nnunet,
    hardware,
)
from kits_cascade.inference.nnunet.openvino_kept import ConversionError, kept_networks

_AXES: Final = "mirror_axes"  # kept beside a network
# oneDNN convolves in bfloat16 fastest with the channels last, and in fp32 with the channels first: docs/benchmarks.md.
_CHANNELS_LAST: Final = {4: torch.channels_last, 5: torch.channels_last_3d}


class TorchNetwork(nn.Module):
    """A network in PyTorch that computes in a precision of its own, and answers in single precision."""

    def __init__(self, network: nn.Module, computing: Computing, axes: int) -> None:
        """``axes``: of the tiles, batch and channels included."""
        super().__init__()
        self._device, self._precision = computing.kind, computing.precision
        channels_last = self._device == CPU and self._precision == BF16
        self._layout = _CHANNELS_LAST[axes] if channels_last else torch.contiguous_format
        self.network = network.to(memory_format=self._layout)  # type: ignore[call-overload]
        self._weights: Any = None

    def load_state_dict(self, state_dict: Any, *_: Any, **__: Any) -> Any:
        """A fold's weights. nnU-Net's predictor asks for them before every image; mostly they are there already."""
        if state_dict is not self._weights:
            self.network.load_state_dict(state_dict)
            self._weights = state_dict

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """As the network, but for rounding."""
        with self._autocast():
            answer: torch.Tensor = self.network(image.contiguous(memory_format=self._layout))
        return answer.float().contiguous()

    def _autocast(self) -> Any:
        dtype = {BF16: torch.bfloat16, FP16: torch.float16}.get(self._precision)
        if self._device == "mps":
            return nullcontext()
        return torch.autocast(self._device, dtype, enabled=dtype is not None)


@dataclass(frozen=True)
class Built:
    """Networks ready for nnU-Net's predictor: a module, and what its ``load_state_dict`` takes for each fold."""

    network: nn.Module
    folds: list[Any]
    fell_back: str = ""  # why it is PyTorch after all
    mirror_axes: tuple[int, ...] = ()  # along which the network may be shown mirrored tiles


def build_engine(
    network: nn.Module,
    weights: list[Any],
    shape: tuple[int, ...],
    computing: Computing,
    *,
    names: Sequence[str] = (),
    mirror_axes: tuple[int, ...] = (),
) -> Built:
    """The networks of a stage (``weights``: one per fold) for tiles of ``shape``, batch and channels included.

    ``names``: by which the engine may keep them, one for each fold. See :func:`kept_in_engine`.
    """
    if computing.engine == TORCH:
        plain = computing == as_nnunet(computing.device)
        made = network if plain else TorchNetwork(network, computing, len(shape))
        return Built(made, weights, mirror_axes=mirror_axes)
    about = {_AXES: list(mirror_axes)}
    try:
        compiled = openvino_engine.convert(
            network, weights, shape, computing.precision, _threads(computing), names=names, about=about
        )
    except ConversionError as error:
        return Built(TorchNetwork(network, computing, len(shape)), weights, str(error), mirror_axes)
    return Built(compiled, list(range(len(weights))), mirror_axes=mirror_axes)


def kept_in_engine(names: Sequence[str], computing: Computing) -> Built | None:
    """The networks that the engine has kept under these names, all of them; None where it has not, or keeps none."""
    if computing.engine != OPENVINO or not names:
        return None
    found = kept_networks(names, computing.precision, _threads(computing))
    if found is None:
        return None
    compiled, about = found
    network = openvino_engine.OpenVinoNetwork(compiled)
    return Built(network, list(range(len(names))), mirror_axes=tuple(about.get(_AXES, ())))


def _threads(computing: Computing) -> int:
    return computing.threads or torch.get_num_threads()


def describe_computing(computing: Computing) -> dict[str, Any]:
    """For run.json: with the engine's version, the processor or GPU, and the threads."""
    own = computing.threads if computing.engine == OPENVINO else None
    return {
        "engine": computing.engine,
        "version": metadata.version(ENGINE_BY_NAME[computing.engine].package),
        "precision": computing.precision,
        "device": computing.device,
        "hardware": hardware(computing.device),
        "threads": own or torch.get_num_threads() if computing.kind == CPU else None,
    }
