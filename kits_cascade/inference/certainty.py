"""How sure the networks are of what they have decided, voxel by voxel, and what that is worth.

The certainty of a voxel is the probability of the decision: of the chosen label, or, where regions are decided one by
one, of the least sure of these decisions. One half is a guess, one is no doubt at all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from kits_cascade.volumes.geometry import Box, picked_from
from kits_cascade.volumes.volume import Array

_STEPS: Final = 255
UNSURE: Final = 0.75  # nearer to a guess than to no doubt: a lesion below it is shown as such
LIKELY: Final = 0.5  # of lesions whose confidence is below, more are wrong than right
FOLDS, MIRRORS = "folds", "mirrors"


@dataclass(frozen=True)
class Certainty:
    """One network's certainty in a part of a region, on a grid of its own with the same field of view as the part."""

    stage: str  # kidney or masses
    values: Array
    part: Box  # in the voxels of the region


@dataclass(frozen=True)
class Agreement:
    """How alike the answers of several folds, or of one network to mirrored copies of its tiles, are to their mean."""

    stage: str  # kidney or masses
    among: str  # folds or mirrors
    both: int  # voxels that an answer and the mean have in common, summed over the answers
    total: int  # voxels of either


def agreement_dice(found: Iterable[Agreement], stage: str, among: str) -> float | None:
    """Mean Dice of the answers with their mean, over all regions; None where there was only one answer, or nothing."""
    chosen = [one for one in found if (one.stage, one.among) == (stage, among)]
    total = sum(one.total for one in chosen)
    return 2.0 * sum(one.both for one in chosen) / total if total else None


class HasCertainty(Protocol):
    """A cascade's result: regions, what was shown of each, and how sure the networks were there."""

    boxes: list[Box]
    crops: list[Box]
    certainty: list[list[Certainty]]

    @property
    def bounds(self) -> Box | None:
        """The box around all regions."""


def certainty_map(result: HasCertainty, stage: str) -> Array | None:
    """A stage's certainty in the bounds of all regions, 0 (not known) to 255; None where no network has told."""
    bounds = result.bounds
    if bounds is None:
        return None
    whole = np.zeros(bounds.shape, dtype=np.uint8)
    for box, crop, networks in zip(result.boxes, result.crops, result.certainty, strict=False):
        told = [_in_box(network, box, crop) for network in networks if network.stage == stage]
        if told:
            box.seen_from(bounds).paste(whole, np.minimum.reduce(told))
    return whole if whole.any() else None


def _in_box(network: Certainty, box: Box, crop: Box) -> Array:
    """A network's certainty at the voxels of a box; sure of the background where it was not asked."""
    picked = []
    for axis in range(3):
        places = np.arange(box.start[axis], box.stop[axis]) - crop.start[axis] - network.part.start[axis]
        scale = network.values.shape[axis] / max(1, network.part.shape[axis])
        picked.append(np.clip(((places + 0.5) * scale).astype(int), 0, network.values.shape[axis] - 1))
    levels: Array = np.maximum(np.rint(network.values * _STEPS), 1).astype(np.uint8)
    return picked_from(levels, picked)


def mean_certainty(levels: Array) -> float | None:
    """Mean of what is known of a map's voxels; None where nothing is."""
    known = levels[levels > 0]
    return float(known.mean(dtype=np.float64)) / _STEPS if len(known) else None


def entropy(levels: Array) -> float | None:
    """Mean entropy in bits: 0 where all is sure, 1 for guesses."""
    known = levels[levels > 0]
    if not len(known):
        return None
    counts = np.bincount(known, minlength=_STEPS + 1)
    p = np.clip(np.arange(_STEPS + 1) / _STEPS, 1e-6, 1 - 1e-6)
    return float(counts @ -(p * np.log2(p) + (1 - p) * np.log2(1 - p)) / len(known))


def fit_calibration(raw: Iterable[float], right: Iterable[bool]) -> tuple[float, float]:
    """Slope and offset of the logistic curve from a mean certainty to how often such lesions are right.

    A small penalty keeps the curve finite where all are right; the slope is never negative, so that order stays.
    """
    from scipy.optimize import minimize

    x, y = _logit(np.fromiter(raw, float)), np.fromiter(right, float)

    def loss(parameters: Array) -> float:
        z = parameters[0] * x + parameters[1]
        return float(np.logaddexp(0, z).sum() - (y * z).sum() + 0.05 * (parameters**2).sum())

    slope, offset = minimize(loss, [1.0, 0.0], bounds=[(0.0, None), (None, None)]).x
    return float(slope), float(offset)


def calibrated(raw: float, curve: tuple[float, float]) -> float:
    """How often a lesion of this mean certainty is right, by a fitted curve."""
    return float(1 / (1 + np.exp(-(curve[0] * _logit(np.array(raw)) + curve[1]))))


def _logit(p: Array) -> Array:
    clipped = np.clip(p, 1e-3, 1 - 1e-3)
    return np.asarray(np.log(clipped / (1 - clipped)))
