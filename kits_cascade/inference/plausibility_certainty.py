"""Are the networks sure, and of one mind?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np

from kits_cascade.inference.pipeline import CascadeResult
from kits_cascade.inference.plausibility_finding import Hit
from kits_cascade.inference.plausibility_shapes import ResultFacts
from kits_cascade.volumes.volume import Array

COARSE_FINE: Final = "coarse_fine_dice"
# The coarse mask has voxels of several mm: two masks of one kidney agree to 0.85 and more.
_AGREEMENT: Final = 0.6


def coarse_fine_dice(coarse: Array, labels: Array) -> float:
    """Dice of the coarse mask and of the final labels, on the coarse grid of the same field of view."""
    picked = [
        np.minimum(((np.arange(n) + 0.5) * size / n).astype(int), size - 1)
        for n, size in zip(coarse.shape, labels.shape, strict=True)
    ]
    fine = labels[np.ix_(*picked)] > 0
    both = int(np.count_nonzero(fine)) + int(np.count_nonzero(coarse))
    return 1.0 if both == 0 else 2.0 * int(np.count_nonzero(fine & (coarse != 0))) / both


def measure(result: CascadeResult) -> dict[str, float]:
    """What a cascade's result says about its own certainty."""
    return {} if result.coarse is None else {COARSE_FINE: coarse_fine_dice(result.coarse, result.labels)}


def find_disagreement(facts: ResultFacts) -> Iterable[Hit]:
    """Coarse and fine networks that see kidneys in different places."""
    dice = facts.certainty.get(COARSE_FINE)
    if dice is not None and dice < _AGREEMENT:
        yield Hit({"dice": dice, "limit": _AGREEMENT}, _centre(facts))


def _centre(facts: ResultFacts) -> tuple[int, int, int] | None:
    return facts.kidneys[0].centre if facts.kidneys else None
