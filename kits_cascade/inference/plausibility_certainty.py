"""Are the networks sure, and of one mind?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
from scipy import ndimage

from kits_cascade.inference.certainty import (
    FOLDS,
    MIRRORS,
    agreement_dice,
    certainty_map,
    entropy,
    mean_certainty,
)
from kits_cascade.inference.pipeline import CascadeResult
from kits_cascade.inference.plausibility_finding import Hit
from kits_cascade.inference.plausibility_shapes import ResultFacts
from kits_cascade.volumes.volume import Array

COARSE_FINE: Final = "coarse_fine_dice"
KIDNEY: Final = "kidney_certainty"
AROUND: Final = "entropy_around"
_EVERY: Final = 3  # voxels, for a mean
# One half is a guess. Networks that know what they see are sure to 0.95 and more inside of a kidney.
_CERTAIN: Final = 0.75
# The coarse mask has voxels of several mm: two masks of one kidney agree to 0.85 and more.
_AGREEMENT: Final = 0.6
# Answers to one image and its mirrored copies, or of folds, that know what a kidney is, share nine tenths of it.
_ALIKE: Final = {"kidney": 0.75, "masses": 0.4}
_AMONG: Final = {FOLDS: "the folds", MIRRORS: "the answers to mirrored tiles"}


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
    found: dict[str, float | None] = {}
    if result.coarse is not None:
        found[COARSE_FINE] = coarse_fine_dice(result.coarse, result.labels)
    for stage in _ALIKE:
        found |= {f"{stage}_{among}": agreement_dice(result.agreements, stage, among) for among in _AMONG}
    levels, bounds = certainty_map(result, "kidney"), result.bounds
    if levels is not None and bounds is not None:
        kidney = bounds.crop(result.labels)[::_EVERY, ::_EVERY, ::_EVERY] > 0
        levels = levels[::_EVERY, ::_EVERY, ::_EVERY]
        around = ndimage.binary_dilation(kidney, iterations=2) & ~kidney
        found[KIDNEY] = mean_certainty(levels[kidney])
        found[AROUND] = entropy(levels[around])
    return {name: round(value, 4) for name, value in found.items() if value is not None}


def find_disagreement(facts: ResultFacts) -> Iterable[Hit]:
    """Coarse and fine networks that see kidneys in different places."""
    dice = facts.certainty.get(COARSE_FINE)
    if dice is not None and dice < _AGREEMENT:
        yield Hit({"dice": dice, "limit": _AGREEMENT}, _centre(facts))


def find_unsure(facts: ResultFacts) -> Iterable[Hit]:
    """A kidney network that nearly guesses."""
    sure = facts.certainty.get(KIDNEY)
    if sure is not None and sure < _CERTAIN:
        yield Hit({"sure": sure, "limit": _CERTAIN, "entropy": facts.certainty.get(AROUND, 0.0)}, _centre(facts))


def find_different_kidneys(facts: ResultFacts) -> Iterable[Hit]:
    """Folds, or mirrored tiles, of which each has kidneys of its own."""
    yield from _different(facts, "kidney")


def find_different_masses(facts: ResultFacts) -> Iterable[Hit]:
    """And masses of its own: seldom wrong of small ones, so no reason for doubt."""
    yield from _different(facts, "masses")


def _different(facts: ResultFacts, stage: str) -> Iterable[Hit]:
    for among, name in _AMONG.items():
        dice = facts.certainty.get(f"{stage}_{among}")
        if dice is not None and dice < _ALIKE[stage]:
            yield Hit({"among": name, "dice": dice}, _centre(facts))


def _centre(facts: ResultFacts) -> tuple[int, int, int] | None:
    return facts.kidneys[0].centre if facts.kidneys else None
