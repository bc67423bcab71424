"""The kidney mask that a mass network sees in training: what the kidney network finds, or the truth spoilt."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool3d

from kits_cascade.training.devices import half_precision


class Prior:
    """Masks for a batch. At prediction the kidney network gives them, with its own mistakes, often tumours."""

    def __init__(self, network: nn.Module | None, share: float, seed: int, device: torch.device) -> None:
        self._network = network.eval() if network is not None else None
        self._share = share if network is not None else 0.0  # how often the network's mask is taken
        self._random = torch.Generator(device).manual_seed(seed)

    @torch.no_grad()
    def planes(self, image: Tensor, labels: Tensor) -> Tensor:
        """One channel of zeros and ones (batch, 1, z, y, x)."""
        masks = self._spoilt((labels > 0).float()[:, None], labels)
        if self._network is None:
            return masks
        with half_precision(image.device):
            logits = self._network(image.to(memory_format=torch.channels_last_3d))
        found = (logits[:, 1:] > logits[:, :1]).float()
        return torch.where(self._chance(len(image), self._share), found, masks)

    def _chance(self, count: int, share: float) -> Tensor:
        drawn = torch.rand(count, 1, 1, 1, 1, generator=self._random, device=self._random.device)
        return drawn < share

    def _spoilt(self, masks: Tensor, labels: Tensor) -> Tensor:
        count = len(masks)
        grown, shrunk = max_pool3d(masks, 3, 1, 1), 1 - max_pool3d(1 - masks, 3, 1, 1)
        masks = torch.where(self._chance(count, 0.3), grown, masks)
        masks = torch.where(self._chance(count, 0.2), shrunk, masks)
        without = masks * (labels[:, None] <= 1)
        return torch.where(self._chance(count, 0.1), without, masks)
