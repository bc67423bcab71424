"""Networks that OpenVINO has been given before, in a cache: read, checked and compiled without PyTorch.

That is a second or two sooner, with hundreds of megabytes less. Nothing is read but what this machine has converted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from kits_cascade.background import Background
from kits_cascade.files import read_json, sha256
from kits_cascade.imports import without
from kits_cascade.inference.nnunet.code_marks import is_unchanged
from kits_cascade.inference.nnunet.engines import BF16, FP32, OPENVINO, Computing
from kits_cascade.inference.nnunet.openvino_parts import TwoParts, cut
from kits_cascade.processor import threads_here
from kits_cascade.volumes.volume import Array

_PRECISION: Final = {FP32: "f32", BF16: "bf16"}
MODEL, WEIGHTS, SUMS = "network.xml", "network.bin", "sums.json"
ABOUT, CODE = "about", "code"  # in the sums

Kept = tuple[list[Any], dict[str, Any]]  # compiled, one for each fold, and what is said about the first
_Wanted = tuple[tuple[str, ...], str, int]
_begun: dict[_Wanted, Background[Kept | None]] = {}


class ConversionError(Exception):
    """OpenVINO cannot take a network, or does not answer as PyTorch does."""


class OpenVinoNetwork:
    """Compiled networks, one per fold, that are shown tiles; they answer in single precision."""

    # Exacter than nnU-Net adds up, since numpy is slow in half precision.
    sums = "float32"
    ahead = True

    def __init__(self, folds: Sequence[Any]) -> None:
        self._folds, self._fold = list(folds), 0

    def choose(self, fold: int) -> None:
        """Take a fold, by its number."""
        self._fold = fold

    def computing(self) -> AbstractContextManager[Any]:
        """Nothing need hold."""
        return nullcontext()

    def near(self, data: Array, work: Callable[[Array], Array]) -> Array:
        """All is in the computer's own memory."""
        return work(data)

    def __call__(self, tile: Array) -> Array:
        """The answer, which is the caller's to change."""
        answer: Array = self._folds[self._fold](np.ascontiguousarray(tile))[0]
        return answer

    def release(self) -> None:
        """Give back the memory that tiles are computed in, until the next tile: other networks need as much."""
        for fold in self._folds:
            fold.release_memory()


@lru_cache(maxsize=1)
def load_openvino() -> Any:
    """The package, without its converter's command line: that takes as long again, and reports each use to its maker.

    What it would report about is medical images on a user's machine; the conversion below needs nothing of it.
    """
    with without("openvino.tools.ovc"):
        import openvino
    return openvino


@lru_cache(maxsize=1)
def core() -> Any:
    """OpenVINO's own, one for the process."""
    return load_openvino().Core()


def kept_networks(names: Sequence[str], precision: str, threads: int) -> Kept | None:
    """The networks of these names, compiled; None where one is not kept whole."""
    wanted = (tuple(names), precision, threads)
    begun = _begun.pop(wanted, None)
    return _kept(*wanted) if begun is None else begun.result()


def begin_with_kept(names: Sequence[str], computing: Computing) -> None:
    """Begin to read networks in a thread, for :func:`kept_networks` to have them sooner."""
    if computing.engine == OPENVINO and names:
        wanted = (tuple(names), computing.precision, computing.threads or threads_here())
        _begun[wanted] = Background(lambda: _kept(*wanted))


def _kept(names: tuple[str, ...], precision: str, threads: int) -> Kept | None:
    found = []
    for name in names:
        model = read_entry(entry_of(name, precision))
        if model is None:
            return None
        found.append(model)
    try:
        made = [compiled(model, precision, threads) for model in found]
        return made, dict(read_json(entry_of(names[0], precision) / SUMS).get(ABOUT, {}))
    except (ConversionError, OSError, ValueError):
        return None


def compiled(model: Any, precision: str, threads: int) -> Any:
    """A model made ready to compute; in bf16 its encoder stays in single precision. Raises a ConversionError."""
    try:
        parts = cut(model, rounded=True) if precision == BF16 else None
        if parts is None:
            return _compiled(model, precision, threads)
        encoder, rest = parts
        return TwoParts(_compiled(encoder, FP32, threads), _compiled(rest, precision, threads))
    except RuntimeError as error:
        raise ConversionError(first_line(error)) from error


def _compiled(model: Any, precision: str, threads: int) -> Any:
    settings = {
        "INFERENCE_PRECISION_HINT": _PRECISION[precision],
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    return core().compile_model(model, "CPU", settings)


def cache_folder() -> Path:
    """Where converted networks lie; it may be deleted at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kits-cascade" / "openvino"


def entry_of(name: str, precision: str) -> Path:
    """Where a network is kept: for bfloat16 it has other weights."""
    return cache_folder() / (f"{name}-{BF16}" if precision == BF16 else name)


def read_entry(entry: Path) -> Any:
    """The kept network; None where there is none, a broken one, or one of code that has changed."""
    try:
        sums = read_json(entry / SUMS)
        whole = all(sha256(entry / name) == sums[name] for name in (MODEL, WEIGHTS))
        if whole and is_unchanged(sums.get(CODE) or {}):
            return core().read_model(entry / MODEL)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):
        pass
    return None


def first_line(error: Exception) -> str:
    """What an error of OpenVINO comes down to."""
    unknown = re.search(r"No conversion rule found for operations: [^\n]+", str(error))
    if unknown is not None:
        return unknown.group(0)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:200]
