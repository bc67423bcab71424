"""Which device computes: by name, or the best there is; and what it is fast in. The one place that chooses."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

from kits_cascade.errors import EnvironmentNotReadyError


def choose_device(name: str) -> torch.device:
    """The device by name; ``auto`` takes what there is."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise EnvironmentNotReadyError(f"there is no device {name!r}; use auto, cuda, cuda:N, cpu or mps") from error
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if not available.get(device.type, False):
        raise EnvironmentNotReadyError(f"this PyTorch has no {device.type} device here; use --device cpu")
    return device


def half_precision(device: torch.device) -> torch.autocast:
    """bfloat16 where the device is fast in it: on GPUs, and on processors that multiply in it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda" or fast_bfloat16(device))


def fast_bfloat16(device: torch.device) -> bool:
    """Whether the processor multiplies in bfloat16: a training step then takes two thirds of its time."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return device.type == "cpu" and any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))


def for_processor(forward: Callable[[torch.Tensor], Any], bfloat16: bool, last: bool = False) -> Callable[..., Any]:
    """A network's forward pass as a processor likes it: bfloat16, channels last; the loss sees single precision."""

    @wraps(forward)
    def run(image: torch.Tensor) -> Any:
        if last:
            image = image.to(memory_format=torch.channels_last_3d)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            out = forward(image)
        return [part.float() for part in out] if isinstance(out, (list, tuple)) else out.float()

    return run
