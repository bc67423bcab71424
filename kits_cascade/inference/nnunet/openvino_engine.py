"""Networks in OpenVINO: converted in memory from the network that was built of allowed parts, and kept in a cache.

This, ``openvino_kept`` and ``openvino_parts`` are the only places that know OpenVINO.
"""

from __future__ import annotations

import hashlib
import inspect
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from kits_cascade.files import digest, sha256, write_json
from kits_cascade.inference.nnunet.code_marks import own_mark
from kits_cascade.inference.nnunet.engines import BF16
from kits_cascade.inference.nnunet.openvino_kept import (
    ABOUT,
    CODE,
    MODEL,
    SUMS,
    WEIGHTS,
    ConversionError,
    OpenVinoNetwork,
    compiled,
    entry_of,
    first_line,
    load_openvino,
    read_entry,
)
from kits_cascade.inference.nnunet.openvino_parts import rounded_behind_encoder
from kits_cascade.version import __version__

_EDGES: Final = (16, 32, 64, None)  # of the example that a network is traced with; None: a whole tile
_TOLERANCE: Final = 1e-3


def convert(
    network: nn.Module,
    weights: Sequence[dict[str, Any]],
    shape: tuple[int, ...],
    precision: str,
    threads: int,
    *,
    names: Sequence[str] = (),
    about: dict[str, Any] | None = None,
    code: Mapping[str, str] | None = None,
) -> OpenVinoNetwork:
    """The network with each fold's weights, compiled for tiles of ``shape``; raises a ConversionError.

    They are kept under ``names``, one for each fold, with what there is to say ``about`` them; without names, under a
    mark of the network and its weights. ``code``: the foreign code that makes them; None where it cannot be told, and
    then they are not kept.
    """
    folds = []
    for number, state in enumerate(weights):
        network.load_state_dict(state)
        name = names[number] if names else _key(network.eval(), state, shape)
        model = _cached(network.eval(), shape, entry_of(name, precision), precision, {ABOUT: about or {}, CODE: code})
        folds.append(compiled(model, precision, threads))
    return OpenVinoNetwork(folds)


# The cache: a folder per network and shape, that another process may write at the same moment.


def _cached(network: nn.Module, shape: tuple[int, ...], entry: Path, precision: str, said: dict[str, Any]) -> Any:
    there = read_entry(entry)
    if there is not None:
        return there
    model = convert_network(network, shape)
    if precision == BF16:
        model = rounded_behind_encoder(model)
    if said[CODE] is None:
        return model
    with suppress(OSError, ValueError):  # a cache that cannot be written only costs the conversion again
        _keep(model, entry, said)
    return read_entry(entry) or model  # the one on the disk shares no memory with PyTorch's weights


def _key(network: nn.Module, state: dict[str, Any], shape: tuple[int, ...]) -> str:
    """All that decides a converted network: weights, layers, the code that runs them, versions, shape."""
    hooks = [repr(vars(hook)) for hook in network._forward_pre_hooks.values()]
    return digest([_checksum(state), str(network), _source(type(network)), hooks, __version__, own_mark(), shape])


def _source(kind: type) -> str:
    try:
        return kind.__qualname__ + inspect.getsource(kind)
    except (OSError, TypeError):
        return kind.__qualname__


def _checksum(state: dict[str, Any]) -> str:
    mark = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().contiguous()
        mark.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        mark.update(tensor.flatten().view(torch.uint8).numpy())
    return mark.hexdigest()


def _keep(model: Any, entry: Path, said: dict[str, Any] | None = None) -> None:
    """Beside its place first, and moved there whole. Where another process was faster, its own is as good."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=entry.parent, ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary) / "entry"
        folder.mkdir()
        load_openvino().save_model(model, folder / MODEL, compress_to_fp16=False)
        sums = {name: sha256(folder / name) for name in (MODEL, WEIGHTS)}
        write_json(folder / SUMS, {**sums, **(said or {})})
        if read_entry(entry) is None:
            shutil.rmtree(entry, ignore_errors=True)
            folder.replace(entry)


# The conversion.


def convert_network(network: nn.Module, shape: tuple[int, ...]) -> Any:
    """The network as OpenVINO's model for inputs of ``shape``, checked against PyTorch's answer."""
    reason = "no example fits"
    for edge in _EDGES:
        tile = shape[2:] if edge is None else tuple(min(edge, n) for n in shape[2:])
        try:
            return _checked(network, (*shape[:2], *tile), shape)
        except Exception as error:  # whatever a tracer or a front end may raise
            reason = first_line(error)
    raise ConversionError(reason)


@torch.inference_mode(False)
@torch.no_grad()
def _checked(network: nn.Module, small: tuple[int, ...], shape: tuple[int, ...]) -> Any:
    """Traced with a small example, which is faster; a network that bakes in its size, or the example, is caught."""
    example, other = torch.randn((2, *small), generator=torch.Generator().manual_seed(0))
    model = _traced(network, example)
    expected = network(other)
    model.reshape(list(small))
    answer = torch.from_numpy(compiled(model, "fp32", torch.get_num_threads())(other.numpy())[0])
    _compare(answer, expected)
    model.reshape(list(shape))
    given = tuple(model.output(0).get_shape())
    if given != (1, expected.shape[1], *shape[2:]):
        raise ConversionError(f"it answers a tile of {shape} with {given}")
    return model


def _traced(network: nn.Module, example: torch.Tensor) -> Any:
    load_openvino()
    with warnings.catch_warnings():
        # Of tracing, that sizes become constants (which is checked below); of the imports, what PyTorch thinks of them.
        warnings.simplefilter("ignore")
        from openvino.frontend import FrontEndManager
        from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

        decoder = TorchScriptPythonDecoder(network, example_input=example)
        front = FrontEndManager().load_by_framework("pytorch")
        return front.convert(front.load(decoder))


def _compare(answer: torch.Tensor, expected: torch.Tensor) -> None:
    if answer.shape != expected.shape:
        raise ConversionError(f"it answers with {tuple(answer.shape)}, PyTorch with {tuple(expected.shape)}")
    scale = float(expected.abs().max().clamp(min=1.0))
    difference = float((answer - expected).abs().max()) / scale
    if not difference <= _TOLERANCE:
        raise ConversionError(f"its answer differs from PyTorch's by {difference:.1e} of the largest")
