"""Which device computes: by name, or the best there is. The one place that chooses."""

from __future__ import annotations

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
