"""Crops of pooled cases, changed on the device: turned and scaled, other HU for each tissue, another scanner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d, grid_sample, interpolate

from kits_cascade.synthetic.body_plan import rotation
from kits_cascade.synthetic.tissues import TISSUES
from kits_cascade.training.stream.pool import TISSUE_BITS, PooledCase
from kits_cascade.volumes.volume import Array

_FIXED: Final = frozenset({"air", "gas", "lung", "airway", "metal", "table", "subcutaneous fat", "visceral fat"})
_KIDNEY: Final = frozenset({"cortex", "medulla", "urine", "tumor", "necrosis", "cyst", "haemorrhagic cyst"})
_TISSUE_MASK: Final = (1 << TISSUE_BITS) - 1


@dataclass(frozen=True)
class CropPlan:
    """How crops of one stage are drawn."""

    patch: tuple[int, int, int]
    step: float  # voxels of a case between two of the patch
    focus: tuple[tuple[str, float], ...]  # what crops are centred on, and how often; "": anywhere
    region: float  # how often the case is cut to the region of its kidneys first
    margin: tuple[float, float] = (6.0, 22.0)  # voxels around the kidneys there
    window: tuple[float, float] = (-160.0, 320.0)
    mean: float = 80.0
    std: float = 90.0


class Cropper:
    """Draws batches; the same seed and pool give the same ones."""

    def __init__(self, plan: CropPlan, seed: int, device: torch.device) -> None:
        self.plan = plan
        self._rng = np.random.default_rng(seed)
        self._noise = torch.Generator(device).manual_seed(seed)
        self._device = device
        sizes = [torch.arange(n, device=device, dtype=torch.float32) - (n - 1) / 2 for n in plan.patch]
        self._grid = torch.stack(torch.meshgrid(*sizes, indexing="ij"), -1) * plan.step
        names = [tissue.name for tissue in TISSUES]
        self._free = torch.tensor([0.0, *(float(name not in _FIXED) for name in names)], device=device)
        self._odd = torch.tensor([0.0, *(float(name not in _FIXED | _KIDNEY) for name in names)], device=device)

    def batch(self, cases: Sequence[PooledCase], size: int) -> tuple[Tensor, Tensor]:
        """Images (normalised; batch, 1, z, y, x), and KiTS labels (batch, z, y, x)."""
        drawn = [self._crop(cases) for _ in range(size)]
        hu, code = torch.stack([one[0] for one in drawn]), torch.stack([one[1] for one in drawn])
        image = self._expose(hu, code)
        return image[:, None], (code >> TISSUE_BITS).long()

    # --- space

    def _crop(self, cases: Sequence[PooledCase]) -> tuple[Tensor, Tensor]:
        case, focus = self._draw_case(cases)
        low, high = self._bounds(case)
        matrix = self._matrix()
        centre = self._centre(case, focus, low, high)
        return self._sample(case, low, high, centre, matrix)

    def _draw_case(self, cases: Sequence[PooledCase]) -> tuple[PooledCase, str]:
        names, shares = zip(*self.plan.focus, strict=True)
        focus = str(self._rng.choice(names, p=shares))
        for _ in range(30):
            case = cases[int(self._rng.integers(len(cases)))]
            if not focus or focus in case.spots:
                return case, focus
        return case, ""

    def _bounds(self, case: PooledCase) -> tuple[Array, Array]:
        """Lowest voxel and the one after the highest that a crop may show."""
        shape = np.array(case.hu.shape)
        if case.box is None or self._rng.random() >= self.plan.region:
            return np.zeros(3, np.int64), shape
        low, high = self._rng.uniform(*self.plan.margin, (2, 3))
        return np.maximum(0, case.box[0] - low).astype(np.int64), np.minimum(shape, case.box[1] + high).astype(np.int64)

    def _matrix(self) -> Array:
        rng = self._rng
        angles = rng.normal(0, (8, 5, 5)) if rng.random() < 0.6 else np.zeros(3)
        scale = np.exp(rng.normal(0, 0.1)) * np.exp(rng.normal(0, 0.06, 3))
        matrix: Array = rotation(tuple(angles)) @ np.diag(np.clip(scale, 0.7, 1.4))
        if rng.random() < 0.5:
            matrix[:, 2] *= -1  # left and right may change places; up and down may not
        return matrix

    def _centre(self, case: PooledCase, focus: str, low: Array, high: Array) -> Array:
        rng = self._rng
        half = np.array(self.plan.patch) * self.plan.step / 2
        if focus:
            spots = case.spots[focus]
            centre = spots[int(rng.integers(len(spots)))] + rng.uniform(-0.7, 0.7, 3) * half
        else:
            centre = rng.uniform(low, high)
        room = (high - low) / 2 - half
        middle = (low + high - 1) / 2
        # Tiles of a prediction lie inside the scan; where it is smaller than a tile, they lie around its middle.
        inside: Array = np.where(room > 0, np.clip(centre, middle - room, middle + room), middle)
        return inside + rng.normal(0, 2, 3)

    def _sample(self, case: PooledCase, low: Array, high: Array, centre: Array, matrix: Array) -> tuple[Tensor, Tensor]:
        reach = np.abs(matrix) @ (np.array(self.plan.patch) * self.plan.step / 2) + 2
        first = np.clip(np.floor(centre - reach), low, high - 2).astype(int)
        last = np.clip(np.ceil(centre + reach), first + 2, high).astype(int)
        part = tuple(slice(int(a), int(b)) for a, b in zip(first, last, strict=True))
        hu, code = case.hu[part].float(), case.code[part].float()
        places = self._grid @ torch.tensor(matrix.T.copy(), dtype=torch.float32, device=self._device)
        shift = torch.tensor(centre - first, dtype=torch.float32, device=self._device)
        size = torch.tensor(hu.shape, dtype=torch.float32, device=self._device)
        places = ((places + shift) / (size - 1) * 2 - 1).flip(-1)[None]
        if self.plan.step > 1 and self._rng.random() < 0.5:  # thick voxels, or single ones of a finer scan
            hu = avg_pool3d(hu[None, None], 3, 1, 1, count_include_pad=False)[0, 0]
        values = grid_sample(hu[None, None], places, padding_mode="border", align_corners=True)[0, 0]
        found = grid_sample(code[None, None], places, mode="nearest", align_corners=True)[0, 0]
        return values, found.to(torch.uint8)

    # --- HU

    def _uniform(self, low: float, high: float, count: int) -> Tensor:
        drawn = torch.rand(count, 1, 1, 1, generator=self._noise, device=self._device)
        return low + (high - low) * drawn

    def _chance(self, share: float, count: int) -> Tensor:
        return (self._uniform(0, 1, count) < share).float()

    def _expose(self, hu: Tensor, code: Tensor) -> Tensor:
        count = len(hu)
        hu = hu + self._other_tissue(code)
        hu = self._blurred(hu)
        hu = (hu - 40) * self._uniform(0.85, 1.18, count) + 40 + self._uniform(-14, 14, count)
        hu = hu + self._grain(hu)
        low, high = self.plan.window
        bent = ((hu.clamp(low, high) - low) / (high - low)) ** torch.exp(self._uniform(-0.3, 0.3, count))
        share = self._chance(0.3, count)
        hu = share * (bent * (high - low) + low) + (1 - share) * hu
        image = (hu.clamp(low, high) - self.plan.mean) / self.plan.std
        return torch.where(code > 0, image, torch.zeros((), device=self._device))

    def _other_tissue(self, code: Tensor) -> Tensor:
        """HU to add to each voxel: tissues of this crop are a little, or quite, unlike those that were painted."""
        count, tissues = len(code), len(self._free)
        small = torch.randn(count, tissues, generator=self._noise, device=self._device) * 12 * self._free
        wild = torch.rand(count, tissues, generator=self._noise, device=self._device) < 0.05
        large = torch.randn(count, tissues, generator=self._noise, device=self._device) * 45 * self._odd
        table = (small + wild * large) * self._chance(0.7, count).view(count, 1)
        index = (code & _TISSUE_MASK).long().view(count, -1)
        added = torch.gather(table, 1, index).view(code.shape)
        return avg_pool3d(added[:, None], 3, 1, 1)[:, 0]

    def _blurred(self, hu: Tensor) -> Tensor:
        """Some crops as thicker slices, some as a softer kernel shows them."""
        count = len(hu)
        depth, height, width = hu.shape[1:]
        thick = int(self._rng.integers(2, 4))
        coarse = avg_pool3d(hu[:, None], (thick, 1, 1), ceil_mode=True)
        slices = interpolate(coarse, (depth, height, width), mode="trilinear", align_corners=False)[:, 0]
        share = self._chance(0.25, count)
        hu = share * slices + (1 - share) * hu
        soft = avg_pool3d(hu[:, None], (1, 3, 3), 1, (0, 1, 1))[:, 0]
        share = self._chance(0.35, count) * self._uniform(-0.7, 1, count)  # below 0: a sharper kernel
        return share * soft + (1 - share) * hu

    def _grain(self, hu: Tensor) -> Tensor:
        count = len(hu)
        white = torch.randn(hu.shape, generator=self._noise, device=self._device)
        soft = avg_pool3d(white[:, None], (1, 3, 3), 1, (0, 1, 1))[:, 0] * 3
        share = self._uniform(0, 1, count)
        strength = torch.exp(self._uniform(float(np.log(1.5)), float(np.log(32)), count)) * self._chance(0.7, count)
        return strength * (share * soft + (1 - share) * white) / torch.sqrt(share**2 + (1 - share) ** 2)
