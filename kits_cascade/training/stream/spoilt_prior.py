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
        self._random = torch.Generator().manual_seed(seed)  # on the processor: what is drawn decides what is computed

    @torch.no_grad()
    def planes(self, image: Tensor, labels: Tensor) -> Tensor:
        """One channel of zeros and ones (batch, 1, z, y, x)."""
        masks = (labels > 0).float()[:, None]
        found = self._drawn(len(masks), self._share)
        self._spoil(masks, labels, sorted(set(range(len(masks))) - set(found)))
        if found and self._network is not None:
            with half_precision(image.device):
                logits = self._network(image[found].to(memory_format=torch.channels_last_3d))
            masks[found] = (logits[:, 1:] > logits[:, :1]).float()
        return masks

    def _drawn(self, count: int, share: float) -> list[int]:
        chosen = torch.rand(count, generator=self._random) < share
        return chosen.nonzero().flatten().tolist()

    def _spoil(self, masks: Tensor, labels: Tensor, rows: list[int]) -> None:
        """Some grown, some shrunk, some without their lesions; pooling is dear on processors, so only where drawn."""
        count = len(masks)
        grown, shrunk, without = (self._drawn(count, share) for share in (0.3, 0.2, 0.1))
        for row in rows:
            mask = masks[row]
            if row in grown:
                mask = max_pool3d(mask, 3, 1, 1)
            if row in shrunk:
                mask = 1 - max_pool3d(1 - mask, 3, 1, 1)
            masks[row] = mask * (labels[row] <= 1) if row in without else mask
