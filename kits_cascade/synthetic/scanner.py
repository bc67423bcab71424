"""Tissues to HU as a scanner shows them: attenuation, texture, blur and noise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from scipy import ndimage

from kits_cascade.synthetic import anatomy as body
from kits_cascade.volumes.volume import Array, Spacing

# Attenuation of the tissues in a contrast-enhanced scan: mean HU, and how far it varies from case to case.
_HU: Final[dict[int, tuple[float, float]]] = {
    body.AIR: (-1000, 0),
    body.FAT: (-100, 6),
    body.MUSCLE: (55, 3),
    body.BONE: (520, 60),
    body.MARROW: (190, 25),
    body.LIVER: (105, 5),
    body.SPLEEN: (120, 5),
    body.VESSEL: (195, 25),
    body.BOWEL: (45, 12),
    body.GAS: (-780, 60),
    body.BILE: (8, 4),
    body.CORTEX: (185, 10),
    body.MEDULLA: (145, 8),
    body.SOLID: (84, 6),
    body.NECROSIS: (35, 6),
    body.WATER: (6, 4),
}


class Scanner:
    """Tissues to HU: texture, blur of slice thickness and detector, noise. Works on a stream of slices."""

    def __init__(self, rng: np.random.Generator, shape: tuple[int, int], spacing: Spacing) -> None:
        self._rng = rng
        self._table = np.array(
            [rng.normal(*_HU[t]) if _HU[t][1] else _HU[t][0] for t in range(len(_HU))], dtype=np.float32
        )
        self._sigma = 0.5 if spacing[1] > 1.2 else 0.8
        noise = float(rng.uniform(9, 17))
        # A few large tiles, shifted at random for every slice: as good as fresh noise, at a fraction of its cost.
        self._noise = [self._tile(shape, noise, 0.6) for _ in range(4)]
        self._texture = [self._tile(shape, 5.0, 4.0 / spacing[1]) for _ in range(2)]

    def _tile(self, shape: tuple[int, int], strength: float, sigma: float) -> Array:
        tile = ndimage.gaussian_filter(self._rng.standard_normal(shape, dtype=np.float32), sigma, mode="wrap")
        return np.asarray(tile * (strength / tile.std()), dtype=np.float32)

    def _shifted(self, tiles: list[Array]) -> Array:
        tile = tiles[int(self._rng.integers(len(tiles)))]
        return np.roll(tile, tuple(self._rng.integers(0, n) for n in tile.shape), (0, 1))

    def scan(self, slices: Iterator[Array]) -> Iterator[Array]:
        """One slice of int16 HU for each slice of tissues."""
        before: Array | None = None
        current: Array | None = None
        for tissue in slices:
            following = self._table[tissue]
            if current is not None:
                yield self._expose(before, current, following)
            before, current = current, following
        if current is not None:
            yield self._expose(before, current, None)

    def _expose(self, before: Array | None, current: Array, following: Array | None) -> Array:
        neighbours = (current if before is None else before) + (current if following is None else following)
        blurred = ndimage.gaussian_filter(0.74 * current + 0.13 * neighbours, self._sigma)
        blurred += self._shifted(self._noise)
        blurred += np.where(current > -500, self._shifted(self._texture), np.float32(0))
        return np.asarray(np.rint(blurred.clip(-1024, 3071)), dtype=np.int16)
