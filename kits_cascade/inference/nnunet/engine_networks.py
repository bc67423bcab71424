"""Networks in an engine, ready for the sliding window. PyTorch is loaded only where an engine has not kept them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final

from kits_cascade.inference.nnunet.code_marks import foreign_code
from kits_cascade.inference.nnunet.engines import (
    BF16,
    CPU,
    ENGINE_BY_NAME,
    OPENVINO,
    Computing,
    hardware,
)
from kits_cascade.inference.nnunet.openvino_kept import ConversionError, OpenVinoNetwork, kept_networks
from kits_cascade.inference.nnunet.sliding_window import Network
from kits_cascade.processor import threads_here

if TYPE_CHECKING:
    from torch import nn

_AXES: Final = "mirror_axes"  # kept beside a network


@dataclass(frozen=True)
class Built:
    """Networks ready for the sliding window: and what each fold is chosen by."""

    network: Network
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
    foreign: bool = True,
) -> Built:
    """The networks of a stage (``weights``: one per fold) for tiles of ``shape``, batch and channels included.

    ``names``: by which the engine may keep them, one for each fold. See :func:`kept_in_engine`. ``foreign``: whether
    code makes them that is not known by its version; then they are kept as long as all of it stays as it is.
    """
    from kits_cascade.inference.nnunet.torch_network import TorchNetwork, with_rounded_kernels

    fell_back = ""
    if computing.engine == OPENVINO:
        from kits_cascade.inference.nnunet.openvino_engine import convert

        about, code = {_AXES: list(mirror_axes)}, foreign_code() if foreign else {}
        try:
            compiled = convert(
                network, weights, shape, computing.precision, _threads(computing), names=names, about=about, code=code
            )
            return Built(compiled, list(range(len(weights))), mirror_axes=mirror_axes)
        except ConversionError as error:
            fell_back = str(error)
    if computing.precision == BF16:
        weights = [with_rounded_kernels(network, state) for state in weights]
    return Built(TorchNetwork(network, computing, len(shape)), weights, fell_back, mirror_axes)


def kept_in_engine(names: Sequence[str], computing: Computing) -> Built | None:
    """The networks that the engine has kept under these names, all of them; None where it has not, or keeps none."""
    if computing.engine != OPENVINO or not names:
        return None
    found = kept_networks(names, computing.precision, _threads(computing))
    if found is None:
        return None
    compiled, about = found
    return Built(OpenVinoNetwork(compiled), list(range(len(names))), mirror_axes=tuple(about.get(_AXES, ())))


def _threads(computing: Computing) -> int:
    return computing.threads or threads_here()


def describe_computing(computing: Computing) -> dict[str, Any]:
    """For run.json: with the engine's version, the processor or GPU, and the threads."""
    own = computing.threads if computing.engine == OPENVINO else None
    return {
        "engine": computing.engine,
        "version": metadata.version(ENGINE_BY_NAME[computing.engine].package),
        "precision": computing.precision,
        "device": computing.device,
        "hardware": hardware(computing.device),
        "threads": own or threads_here() if computing.kind == CPU else None,
    }
