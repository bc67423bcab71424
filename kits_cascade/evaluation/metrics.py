"""From two label maps to numbers: per region of the challenge, and per class."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from kits_cascade.evaluation.surface import SurfaceDistances
from kits_cascade.labels import CYST, KIDNEY, LABEL_NAMES, REGIONS
from kits_cascade.volumes.geometry import Box
from kits_cascade.volumes.volume import Array, Spacing

_LABELS: Final = 1 + max(LABEL_NAMES)


@dataclass(frozen=True)
class Target:
    """What is scored: a union of labels, with the tolerance of its surface."""

    name: str
    labels: tuple[int, ...]
    tolerance_mm: float
    title: str


REGION_TARGETS: Final = tuple(Target(r.name, r.labels, r.tolerance_mm, r.title) for r in REGIONS)
_TOLERANCES: Final = {r.name: r.tolerance_mm for r in REGIONS}
# The challenge has no tolerance for single classes: each takes that of the smallest region around it. The class tumor
# is the region tumor, and is not listed again.
CLASS_TARGETS: Final = (
    Target("kidney_only", (KIDNEY,), _TOLERANCES["kidney"], "Kidney without masses"),
    Target("cyst", (CYST,), _TOLERANCES["masses"], "Cyst"),
)
TARGETS: Final = (*REGION_TARGETS, *CLASS_TARGETS)


@dataclass(frozen=True)
class Overlap:
    """One target in one case: voxel counts, and the surfaces where both masks have one."""

    truth: int
    prediction: int
    both: int
    voxel_mm3: float
    tolerance_mm: float
    surfaces: SurfaceDistances | None

    @property
    def empty(self) -> bool:
        """Neither mask has a voxel: right, and no more to say."""
        return self.truth == 0 and self.prediction == 0


def dice(o: Overlap) -> float:
    """1 where both masks are empty, 0 where one is: the challenge's rule."""
    return 1.0 if o.empty else 2 * o.both / (o.truth + o.prediction)


def surface_dice(o: Overlap) -> float:
    """Surface Dice at the challenge's tolerance, with the same rule."""
    if o.surfaces is not None:
        return o.surfaces.dice(o.tolerance_mm)
    return 1.0 if o.empty else 0.0


def iou(o: Overlap) -> float:
    """Intersection over union, with the same rule."""
    return 1.0 if o.empty else o.both / (o.truth + o.prediction - o.both)


def volumetric_similarity(o: Overlap) -> float:
    """1 - |difference of volumes| / (sum of volumes)."""
    return 1.0 if o.empty else 1 - abs(o.truth - o.prediction) / (o.truth + o.prediction)


def truth_ml(o: Overlap) -> float:
    """Volume of the truth in mL."""
    return o.truth * o.voxel_mm3 / 1000


def volume_error_ml(o: Overlap) -> float:
    """Volume of the prediction minus that of the truth in mL."""
    return (o.prediction - o.truth) * o.voxel_mm3 / 1000


def hd95(o: Overlap) -> float:
    """95th percentile of the surface distances in mm; undefined where a mask is empty."""
    return math.nan if o.surfaces is None else o.surfaces.hausdorff(95)


def hd(o: Overlap) -> float:
    """Hausdorff distance in mm; undefined where a mask is empty."""
    return math.nan if o.surfaces is None else o.surfaces.hausdorff()


def assd(o: Overlap) -> float:
    """Average symmetric surface distance in mm; undefined where a mask is empty."""
    return math.nan if o.surfaces is None else o.surfaces.mean()


@dataclass(frozen=True)
class Metric:
    """A column of the score table."""

    name: str
    title: str
    compute: Callable[[Overlap], float]
    unit: str = ""
    better: int = 1  # +1: higher is better, -1: lower, 0: neither
    digits: int = 3


METRICS: Final = (
    Metric("dice", "Dice", dice),
    Metric("surface_dice", "Surface Dice", surface_dice),
    Metric("iou", "IoU", iou),
    Metric("volumetric_similarity", "Volumetric similarity", volumetric_similarity),
    Metric("hd95", "HD95", hd95, "mm", -1, 2),
    Metric("hd", "HD", hd, "mm", -1, 2),
    Metric("assd", "ASSD", assd, "mm", -1, 2),
    Metric("volume_error_ml", "Volume error", volume_error_ml, "mL", 0, 1),
    Metric("truth_ml", "True volume", truth_ml, "mL", 0, 1),
)
Scores = dict[str, dict[str, float]]  # target -> metric -> value


@dataclass(frozen=True)
class LabelPair:
    """Two label maps of one shape, cut to what either of them has in the foreground."""

    truth: Array
    prediction: Array
    spacing: Spacing

    @staticmethod
    def cut(truth: Array, prediction: Array, spacing: Spacing) -> LabelPair:
        """From whole label maps. Copies, so that the whole ones can be let go."""
        boxes = [box for box in (Box.around(truth), Box.around(prediction)) if box is not None]
        box = boxes[0].union(boxes[-1]) if boxes else Box((0, 0, 0), (1, 1, 1))
        return LabelPair(box.crop(truth).copy(order="C"), box.crop(prediction).copy(order="C"), spacing)

    @property
    def voxel_mm3(self) -> float:
        """Volume of a voxel."""
        return math.prod(self.spacing)

    @cached_property
    def counts(self) -> Array:
        """Voxels by true label (rows) and predicted label (columns)."""
        table = np.zeros(_LABELS**2, dtype=np.int64)
        for truth, prediction in zip(self.truth, self.prediction, strict=True):
            table += np.bincount((truth * np.uint8(_LABELS) + prediction).ravel(), minlength=_LABELS**2)
        return table.reshape(_LABELS, _LABELS)

    def masks(self, labels: tuple[int, ...]) -> tuple[Array, Array]:
        """Truth and prediction of a union of labels, cut to the box around both; both must not be empty."""
        truth, prediction = _union(self.truth, labels), _union(self.prediction, labels)
        box = Box.around(truth | prediction)
        return (truth, prediction) if box is None else (box.crop(truth), box.crop(prediction))

    def overlap(self, target: Target, surfaces: bool = True) -> Overlap:
        """What all metrics of one target are computed from."""
        labels = list(target.labels)
        truth, prediction = int(self.counts[labels].sum()), int(self.counts[:, labels].sum())
        both = int(self.counts[np.ix_(labels, labels)].sum())
        distances = None
        if surfaces and truth and prediction:
            distances = SurfaceDistances.between(*self.masks(target.labels), self.spacing)
        return Overlap(truth, prediction, both, self.voxel_mm3, target.tolerance_mm, distances)


def _union(array: Array, labels: tuple[int, ...]) -> Array:
    """Mask of several labels; by comparisons, which are ten times as fast as a lookup."""
    mask: Array = array == labels[0]
    for label in labels[1:]:
        mask |= array == label
    return mask


def score_pair(pair: LabelPair) -> Scores:
    """All metrics of all targets."""
    return {
        target.name: {metric.name: metric.compute(overlap) for metric in METRICS}
        for target in TARGETS
        for overlap in (pair.overlap(target),)
    }


def score_arrays(truth: Array, prediction: Array, spacing: Spacing) -> Scores:
    """All metrics of all targets for two label maps (z, y, x; KiTS labels)."""
    return score_pair(LabelPair.cut(truth, prediction, spacing))
