"""Smooth noise on large grids, fast: drawn coarsely and interpolated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import interpolate

from kits_cascade.volumes.volume import Array


class Noise:
    """Random fields of one case; the same seed gives the same fields."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def white(self, shape: Sequence[int]) -> torch.Tensor:
        """Standard normal, independent from voxel to voxel."""
        return torch.randn(*shape, generator=self._generator)

    def smooth(self, shape: Sequence[int], voxels: float | Sequence[float]) -> torch.Tensor:
        """About standard normal, alike over ``voxels`` (one number or one per axis)."""
        sizes = [voxels] * 3 if isinstance(voxels, (int, float)) else list(voxels)
        coarse = [max(2, round(n / size) + 2) for n, size in zip(shape, sizes, strict=True)]
        field = torch.randn(1, 1, *coarse, generator=self._generator)
        return interpolate(field, tuple(shape), mode="trilinear", align_corners=True)[0, 0] * 1.5

    def displacement(self, shape: Sequence[int], extent: Sequence[float], scale: float, strength: float) -> Array:
        """A vector field (3, z, y, x) in mm on a lattice of ``shape`` over ``extent`` mm, alike over ``scale`` mm."""
        per_axis = [scale / (e / max(1, n - 1)) for e, n in zip(extent, shape, strict=True)]
        fields = [self.smooth(shape, [max(1.0, p) for p in per_axis]) for _ in range(3)]
        return (torch.stack(fields) * (strength / 1.5)).numpy()


def blur(image: torch.Tensor, sigmas: Sequence[float]) -> torch.Tensor:
    """Gaussian, one axis after the other; axes of small sigma are left alone."""
    for axis, sigma in enumerate(sigmas):
        if sigma < 0.2:
            continue
        reach = max(1, int(np.ceil(2.5 * sigma)))
        weights = [float(np.exp(-((k / sigma) ** 2) / 2)) for k in range(-reach, reach + 1)]
        total = sum(weights)
        size = image.shape[axis]
        out = image * (weights[reach] / total)
        for k in range(1, reach + 1):
            weight = weights[reach + k] / total
            keep = max(0, size - k)
            for first, second in ((slice(k, size), slice(0, keep)), (slice(0, keep), slice(k, size))):
                index: list[slice] = [slice(None)] * 3
                other: list[slice] = [slice(None)] * 3
                index[axis], other[axis] = first, second
                out[tuple(index)] += weight * image[tuple(other)]
            edge: list[slice] = [slice(None)] * 3
            for end, border in ((slice(0, min(k, size)), slice(0, 1)), (slice(keep, size), slice(size - 1, size))):
                edge[axis] = end
                rim = list(edge)
                rim[axis] = border
                out[tuple(edge)] += weight * image[tuple(rim)]
        image = out
    return image
