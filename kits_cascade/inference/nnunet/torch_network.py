"""Networks in PyTorch, on a processor or a GPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from kits_cascade.inference.nnunet.arrays import AnyArray
from kits_cascade.inference.nnunet.engines import BF16, CPU, FP16, Computing, as_nnunet
from kits_cascade.inference.nnunet.kernels import rounded_kernels
from kits_cascade.volumes.volume import Array

# oneDNN convolves in bfloat16 fastest with the channels last, and in fp32 with the channels first: docs/benchmarks.md.
_CHANNELS_LAST: Final = {4: torch.channels_last, 5: torch.channels_last_3d}
_COMPILE: Final = "nnUNet_compile"  # nnU-Net's variable: on request only, as in its predictor
_BESIDE: Final = torch.device("cpu")
_CONVOLUTIONS: Final = (nn.Conv2d, nn.Conv3d)


class TorchNetwork:
    """A module that is shown tiles; in another precision than nnU-Net's it answers in single precision."""

    sums = "float16"  # as nnU-Net adds up
    ahead = False

    def __init__(self, module: nn.Module, computing: Computing, axes: int) -> None:
        """``axes``: of the tiles, batch and channels included."""
        self.device = torch.device(computing.device)
        self._precision = None if computing == as_nnunet(computing.device) else computing.precision
        channels_last = self.device.type == CPU and self._precision == BF16
        self._layout = _CHANNELS_LAST[axes] if channels_last else torch.contiguous_format
        self.module = module.to(memory_format=self._layout)  # type: ignore[call-overload]
        if self._precision == BF16:
            for part in (*_parts(module, "encoder")[:1], *filter(_is_pointwise, _parts(module, "decoder"))):
                _in_single_precision(part)
        if os.environ.get(_COMPILE, "").lower() in ("true", "1", "t"):
            self.module.compile()
        self._weights: Any = None

    def choose(self, fold: Any) -> None:
        """Take a fold's weights. They are asked for before every image; mostly they are there already."""
        self.module.to(self.device).eval()
        if fold is not self._weights:
            self.module.load_state_dict(fold)
            self._weights = fold

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Without gradients, and as nnU-Net on a GPU."""
        with torch.inference_mode(), torch.autocast("cuda") if self.device.type == "cuda" else nullcontext():
            yield

    def near(self, data: Array, work: Callable[[AnyArray], AnyArray]) -> Array:
        """Sums are kept on the GPU, and in the computer's own memory where a GPU's does not suffice."""
        if self.device == _BESIDE or self.device.type == "mps":  # Apple's GPUs keep no sums, as in nnU-Net
            return np.asarray(work(data))
        try:
            return np.asarray(work(torch.from_numpy(data).to(self.device)).cpu())
        except torch.cuda.OutOfMemoryError:
            pass
        # Not before here has the try let go of its memory: until then its frames are part of the error.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return np.asarray(work(data))

    def __call__(self, tile: AnyArray) -> AnyArray:
        """The answer, where the tile lies."""
        if isinstance(tile, np.ndarray):
            return self._answer(torch.from_numpy(np.array(tile)).to(self.device)).cpu().numpy()
        return self._answer(tile)

    def _answer(self, tile: torch.Tensor) -> torch.Tensor:
        tile = torch.clone(tile, memory_format=self._layout)
        if self._precision is None:
            answer: torch.Tensor = self.module(tile)
            return answer
        with self._autocast():
            answer = self.module(tile)
        return answer.float().contiguous()

    def _autocast(self) -> Any:
        dtype = {BF16: torch.bfloat16, FP16: torch.float16}.get(self._precision or "")
        if self.device.type == "mps":
            return nullcontext()
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)

    def release(self) -> None:
        """PyTorch keeps its memory."""


def with_rounded_kernels(network: nn.Module, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A U-Net's weights; kernels behind the encoder have values of bfloat16, as little off together as can be."""
    made, encoder = dict(weights), {id(part) for part in _parts(network, "encoder")}
    done: dict[int, torch.Tensor] = {}  # nnU-Net's networks hold most of theirs under several names
    for name, part in network.named_modules(remove_duplicate=False) if encoder else ():
        key = f"{name}.weight"
        if not isinstance(part, _CONVOLUTIONS) or _is_pointwise(part) or id(part) in encoder or key not in weights:
            continue
        if id(part) not in done:
            done[id(part)] = _rounded(weights[key])
        made[key] = done[id(part)]
    return made


def _rounded(kernels: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(rounded_kernels(kernels.float().cpu().numpy())).to(kernels.dtype)


def _parts(network: nn.Module, name: str) -> list[nn.Module]:
    """All modules in a network's encoder or decoder; none where it has no such thing."""
    whole = getattr(network, name, None)
    return list(whole.modules()) if isinstance(whole, nn.Module) else []


def _is_pointwise(part: nn.Module) -> bool:
    """Whether it is a convolution of a single tap: a decoder's last one makes the answer, and nothing evens it out."""
    return isinstance(part, _CONVOLUTIONS) and set(part.kernel_size) == {1}


def _in_single_precision(encoder: nn.Module) -> None:
    """Whatever is around it: the part of a U-Net in which rounding moves masses, docs/benchmarks.md."""
    encoder.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    forward = encoder.forward

    def exactly(image: torch.Tensor, *more: Any, **named: Any) -> Any:
        with torch.autocast(image.device.type, enabled=False):
            return forward(image.float().contiguous(), *more, **named)

    encoder.forward = exactly  # type: ignore[method-assign]
