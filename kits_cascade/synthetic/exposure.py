"""Tissues to HU as a scanner sees them: texture, slice thickness, kernel, noise, artefacts, padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch.nn.functional import avg_pool3d, interpolate

from kits_cascade.synthetic.noise import Noise, blur
from kits_cascade.synthetic.tissues import Palette
from kits_cascade.volumes.volume import Array, Spacing

PADDING: Final = (-1024, -1024, -1000, -2000, -3024)


@dataclass(frozen=True)
class ScannerSettings:
    """What was drawn for a scanner."""

    slice_mm: float
    blur_mm: float
    noise: float  # HU at the case's voxel size
    grain: float  # voxels over which noise is alike
    shading: float  # HU of slow drift over the picture (cupping, beam hardening)
    streaks: float
    padding: int
    field_mm: float | None  # diameter of a round field of view
    offset: float


def draw_scanner(rng: np.random.Generator, spread: float = 1.0) -> ScannerSettings:
    """Wide on purpose; ``spread`` above 1 gives worse pictures."""
    return ScannerSettings(
        float(rng.choice([1.0, 2.0, 3.0, 4.0, 5.0], p=[0.25, 0.15, 0.2, 0.1, 0.3])),
        float(rng.uniform(0.5, 1.9)),
        float(np.exp(rng.uniform(np.log(4), np.log(30 * spread)))),
        float(rng.uniform(0.3, 1.0)),
        float(abs(rng.normal(0, 6 * spread))),
        float(rng.uniform(4, 25) * spread) if rng.random() < 0.15 else 0.0,
        int(rng.choice(PADDING)),
        float(rng.uniform(300, 430)) if rng.random() < 0.25 else None,
        float(rng.normal(0, 3)),
    )


def expose(
    tissue: Array, palette: Palette, settings: ScannerSettings, spacing: Spacing, rng: np.random.Generator
) -> Array:
    """A CT in HU (int16)."""
    noise = Noise(int(rng.integers(2**62)))
    shape = tissue.shape
    image = torch.from_numpy(palette.mean[tissue])
    within = torch.from_numpy(palette.within[tissue])
    rough = noise.smooth(shape, [max(1.0, 5 / s) for s in spacing])
    grain = noise.smooth(shape, [max(1.0, 2.2 / s) for s in spacing])
    image += within * (0.75 * rough + 0.55 * grain)
    wide = noise.smooth(shape, [max(1.0, 28 / s) for s in spacing])
    image += torch.where((image > -200) & (image < 300), wide * 4, torch.zeros(()))
    if settings.shading:
        image += noise.smooth(shape, [max(1.0, 150 / s) for s in spacing]) * settings.shading
    image = blur(image, [0.0, settings.blur_mm / spacing[1] / 1.6, settings.blur_mm / spacing[2] / 1.6])
    thick = max(1, round(settings.slice_mm / spacing[0]))
    image = _slices(image, thick)
    image += _photons(noise, image.shape, settings)
    if settings.streaks:
        image += _streaks(noise, image, settings.streaks)
    if thick > 1:
        image = interpolate(image[None, None], tuple(shape), mode="trilinear", align_corners=False)[0, 0]
    image += settings.offset
    values = image.numpy()
    low = max(-1024, settings.padding)
    np.clip(values, low, 3071, out=values)
    values[:, unmeasured(shape, settings, spacing)] = settings.padding
    hu: Array = np.rint(values).astype(np.int16)
    return hu


def _slices(image: torch.Tensor, thick: int) -> torch.Tensor:
    if thick == 1:
        return image
    return avg_pool3d(image[None, None], (thick, 1, 1), ceil_mode=True)[0, 0]


def _photons(noise: Noise, shape: torch.Size, settings: ScannerSettings) -> torch.Tensor:
    field = blur(noise.white(shape), [0.0, settings.grain, settings.grain])
    scale = settings.noise / float(field[:: max(1, len(field) // 8)].std())
    return field * scale


def _streaks(noise: Noise, image: torch.Tensor, strength: float) -> torch.Tensor:
    """Dark and bright bands along rows where the body is wide and hard, as between shoulders, arms and hips."""
    hard = (image > 200).float().mean(dim=2, keepdim=True)
    bands = noise.smooth(image.shape, (1.5, 2.5, 60.0))
    return bands * strength * (0.4 + 4 * hard)


def unmeasured(shape: Sequence[int], settings: ScannerSettings, spacing: Spacing) -> Array:
    """Pixels of a slice that lie outside of a round field of view: there is no measurement."""
    y, x = ((np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape[-2:], spacing[1:], strict=True))
    beyond: Array = np.hypot(y[:, None], x[None, :]) > (settings.field_mm or np.inf) / 2
    return beyond
