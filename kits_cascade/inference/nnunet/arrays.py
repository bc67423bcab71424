"""Arrays of numpy, or PyTorch's tensors on a GPU, by functions that both have under one name.

PyTorch takes a second or two to load, and where OpenVINO computes nothing else needs it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from kits_cascade.volumes.volume import Array

AnyArray = Any  # of numpy, or a tensor


def library(array: AnyArray) -> Any:
    """The module whose functions take this array."""
    return np if isinstance(array, np.ndarray) else sys.modules["torch"]


def zeros(shape: Sequence[int], kind: str, beside: AnyArray) -> AnyArray:
    """An array of a floating-point type, where another one lies."""
    if isinstance(beside, np.ndarray):
        return np.zeros(tuple(shape), kind)
    return beside.new_zeros(tuple(shape), dtype=getattr(library(beside), kind))


def moved_to(array: Array, beside: AnyArray) -> AnyArray:
    """An array of numpy where another one lies."""
    return array if isinstance(beside, np.ndarray) else library(beside).from_numpy(array).to(beside.device)


def lerp(first: Array, second: Array, weight: Any, out: Array | None = None) -> Array:
    """Between two arrays, by how far it is on the way to the second."""
    result: Array = np.subtract(second, first, out=out)
    result *= weight
    result += first
    return result
