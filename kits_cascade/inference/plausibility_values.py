"""Is this a CT in Hounsfield units? What the distribution of the values says."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Final

import numpy as np

from kits_cascade.inference.plausibility_facts import PADDING_HU, ImageFacts
from kits_cascade.inference.plausibility_finding import Hit
from kits_cascade.volumes.volume import Array

# A CT has the two peaks of fat and soft tissue close together, and far below them air, with little in between.
# Fat is -150 ... -50 HU, soft tissue 0 ... 150, with contrast medium up to 300 (Hounsfield's scale itself). The shares
# were set with room to spare on real CT: the body's tissue lies in the band to 0.9 and more, also with metal and noise.
_TISSUE_HU: Final = (-250.0, 300.0)
_IN_BAND: Final = 0.6
_BETWEEN_HU: Final = (-600.0, -250.0)  # denser than lung, thinner than fat
_BETWEEN: Final = 0.35  # of the tissue's voxels
_BELOW_WATER: Final = 0.03  # fat and air; even a thin person cut tightly has more
_BELOW_ZERO: Final = 0.1
_AIR_HU: Final = -500.0
_OFFSETS: Final = (1024.0, 1000.0)  # what stored values have added, by custom of the makers
_LARGEST_HU: Final = 5000.0  # metal has more, but never in a hundredth of a scan
_LOWEST_HU: Final = -4000.0
_LEAST_RANGE: Final = 60.0  # fat and water alone are 100 apart
_NOISE_LIKENESS: Final = 0.25  # correlation of voxels 4 mm apart; real CT has 0.8 and more
_PADDED: Final = 0.005
_SOFT_HU: Final = (-40.0, 140.0)  # the soft tissue's peak, plain to late
_FAT_ENDS_HU: Final = -50.0
FAT_HU: Final = (-150.0, -40.0)
# Fat is 0.13 ... 0.6 of the inside of a body, 4 mm below the skin: of two real CTs and of 30 painted ones, lean to fat.
LEAN: Final = 0.1
_MUCH_DENSE: Final = 0.25  # enhanced kidneys, vessels and bone are less of a body
_SEARCH_HU: Final = (-90.0, 290.0)  # where else it is looked for


def _share(values: Array, limits: tuple[float, float]) -> float:
    return float(((values >= limits[0]) & (values < limits[1])).mean())


def is_like_ct(values: Array) -> bool:
    """Whether values have the shape of a CT of a body in HU."""
    values = values[values > PADDING_HU]
    if not len(values):
        return False
    tissue = float((values > _TISSUE_HU[0]).mean())
    in_band, between = _share(values, _TISSUE_HU), _share(values, _BETWEEN_HU)
    below = float((values < -30).mean())
    return in_band >= _IN_BAND * tissue and between <= _BETWEEN * tissue and below >= _BELOW_WATER and tissue > 0


@lru_cache(maxsize=1)
def kind_of_values(facts: ImageFacts) -> str:
    """``hu``, or in one word what the values are instead."""
    return next((kind for kind, is_it in _KINDS if is_it(facts)), "odd")


def _is_nothing(facts: ImageFacts) -> bool:
    return facts.air_only or float(np.ptp(facts.values)) == 0


def _is_noise(facts: ImageFacts) -> bool:
    return _neighbours_alike(facts) < _NOISE_LIKENESS


def _is_8_bit(facts: ImageFacts) -> bool:
    return bool(facts.values.min() >= 0 and facts.values.max() <= np.iinfo(np.uint8).max)


def _lacks_offset(facts: ImageFacts) -> bool:
    few_below = float((facts.values < -_OFFSETS[0] / 10).mean()) < _BELOW_WATER
    return few_below and any(is_like_ct(facts.values - offset) for offset in _OFFSETS)


def _has_bright_air(facts: ImageFacts) -> bool:
    return _corners(facts) > -_AIR_HU and is_like_ct(-facts.values)


def _corners(facts: ImageFacts) -> float:
    """Median of the four columns in the corners: air, or nothing measured, but in tight crops."""
    return float(np.median(facts.sketch[:, :: facts.sketch.shape[1] - 1 or 1, :: facts.sketch.shape[2] - 1 or 1]))


def _is_inverted(facts: ImageFacts) -> bool:
    # Soft tissue lies below 0 then, and the air in the corners is bright. Without the offset nothing is below 0 but
    # noise, and the air is dark; all else of the two looks alike.
    return float((facts.values < -35).mean()) > _BELOW_ZERO and is_like_ct(-facts.values)


def _is_scaled(facts: ImageFacts) -> bool:
    first, last = (float(v) for v in np.percentile(facts.values, (1, 99)))
    return last > _LARGEST_HU or first < _LOWEST_HU or float(np.ptp(facts.values)) < _LEAST_RANGE


def _neighbours_alike(facts: ImageFacts) -> float:
    """Correlation of neighbours in a row, of the measured values."""
    low, high = np.percentile(facts.values, (0.5, 99.5))
    sketch = facts.sketch.clip(float(low), float(high))
    first, second = sketch[:, :, :-1].ravel(), sketch[:, :, 1:].ravel()
    if not len(first) or first.std() == 0 or second.std() == 0:
        return 1.0
    return float(np.corrcoef(first, second)[0, 1])


# The first that fits; what fits none is odd.
_KINDS: Final[tuple[tuple[str, Callable[[ImageFacts], bool]], ...]] = (
    ("nothing", _is_nothing),
    ("noise", _is_noise),
    ("scaled", _is_scaled),
    ("8 bit", _is_8_bit),
    ("inverted", _has_bright_air),  # with little air around it the rest is spread much as in a CT
    ("hu", lambda facts: is_like_ct(facts.values)),
    ("inverted", _is_inverted),
    ("offset", _lacks_offset),
    ("not ct", lambda facts: bool(facts.values.min() >= 0)),
)


def soft_tissue_peak(facts: ImageFacts) -> float | None:
    """Where most of the soft tissue is, in HU; None where there is too little to say."""
    counts, edges = np.histogram(facts.smooth[facts.body], bins=38, range=_SEARCH_HU)
    if counts.sum() < 500:
        return None
    counts = np.convolve(counts, (0.25, 0.5, 0.25), mode="same")
    # Not the flank of fat, which may be higher than all of the soft tissue.
    summits = np.flatnonzero((counts[1:-1] > counts[:-2]) & (counts[1:-1] >= counts[2:])) + 1
    peaks = [int(k) for k in summits if counts[k] >= 0.03 * counts.sum() and edges[k] >= _FAT_ENDS_HU]
    if not peaks:
        return None
    middles, best = edges + (edges[1] - edges[0]) / 2, max(peaks, key=lambda k: counts[k])
    if middles[best] < _SOFT_HU[0]:  # what fat and its surroundings share may be more than there is of anything else
        usual = [k for k in peaks if middles[k] >= _SOFT_HU[0] and counts[k] > counts[best] / 2]
        best = max(usual, key=lambda k: counts[k], default=best)
    return float(middles[best])


def find_kind(kind: str) -> Callable[[ImageFacts], Iterable[Hit]]:
    """The function of the check for one kind of values."""

    def find(facts: ImageFacts) -> Iterable[Hit]:
        if kind_of_values(facts) == kind:
            yield Hit({"low": float(facts.values.min()), "high": float(facts.values.max())})

    return find


def find_drift(facts: ImageFacts) -> Iterable[Hit]:
    """Tissue that is not where it should be, as of cone beams and bad calibration."""
    if kind_of_values(facts) != "hu":
        return
    peak = soft_tissue_peak(facts)
    if peak is not None and not _SOFT_HU[0] <= peak <= _SOFT_HU[1]:
        yield Hit({"peak": peak, "low": _SOFT_HU[0], "high": _SOFT_HU[1]})
    elif (dense := _dense_without_fat(facts)) is not None:
        yield Hit({"peak": dense, "low": _SOFT_HU[0], "high": _SOFT_HU[1]})


def _dense_without_fat(facts: ImageFacts) -> float | None:
    """Where the denser tissue lies, if there is much of it and nothing where fat should be: both have moved up."""
    inner = facts.inner
    if not len(inner) or _share(inner, FAT_HU) > LEAN:
        return None
    dense = inner[inner > _SOFT_HU[1]]
    return float(np.median(dense)) if len(dense) > _MUCH_DENSE * len(inner) else None


def find_padding(facts: ImageFacts) -> Iterable[Hit]:
    """Voxels that were never measured."""
    share = float((facts.sketch < PADDING_HU).mean())
    if kind_of_values(facts) == "hu" and share > _PADDED:
        yield Hit({"value": float(facts.sketch.min()), "share": share})


def find_clipping(facts: ImageFacts) -> Iterable[Hit]:
    """A window cut out of the HU: nothing below its lower end, and much exactly there."""
    lowest = float(facts.values.min())
    if kind_of_values(facts) == "hu" and lowest > -500 and float((facts.values == lowest).mean()) > 0.05:
        yield Hit({"low": lowest, "high": float(facts.values.max())})
