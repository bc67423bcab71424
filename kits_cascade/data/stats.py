"""What people look at first: slices, spacings, HU, class proportions per volume and per slice, lesion sizes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from kits_cascade import labels as kits
from kits_cascade.data.source_case import along_memory, check_label_values, read_case
from kits_cascade.errors import CaseError, DatasetError
from kits_cascade.parallel import Progress, run_cases
from kits_cascade.volumes.components import components
from kits_cascade.volumes.geometry import Box
from kits_cascade.volumes.kits import KitsCase, contrast_phase, find_kits_cases
from kits_cascade.volumes.nifti import read_labels
from kits_cascade.volumes.volume import Array, Volume

CLASSES: Final = ("background", *kits.LABEL_NAMES.values())
LESIONS: Final = {kits.TUMOR: "tumor", kits.CYST: "cyst"}
HU_LOW, HU_HIGH = -2048, 4096  # values outside are counted at the ends
_BINS: Final = HU_HIGH - HU_LOW


@dataclass(frozen=True)
class CaseStats:
    """Counts of one case; all else follows from them."""

    name: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    slices: Array  # voxels of each class in each slice, from caudal to cranial
    histogram: Array | None  # voxels of each class at each HU; None without an image
    hu_range: tuple[float, float] | None
    lesions: tuple[tuple[str, int], ...]  # kind and voxels

    @property
    def phase(self) -> str:
        """Contrast phase, or nothing where it is not known."""
        return contrast_phase(self.name) or ""

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in millilitres."""
        return float(np.prod(self.spacing)) / 1000

    @property
    def voxels(self) -> Array:
        """Voxels of each class."""
        total: Array = self.slices.sum(axis=0)
        return total

    @property
    def shares(self) -> Array:
        """Part of the volume that each class takes."""
        return np.asarray(self.voxels / self.voxels.sum())


@dataclass
class StatsReport:
    """The numbers of all cases, and the cases that gave none."""

    cases: list[CaseStats] = field(default_factory=list)
    bad: dict[str, str] = field(default_factory=dict)
    without_image: int = 0

    @property
    def exit_code(self) -> int:
        """1 when a case could not be read."""
        return 1 if self.bad else 0

    @property
    def histogram(self) -> Array:
        """Voxels of each class at each HU, over all cases."""
        return sum(
            (case.histogram for case in self.cases if case.histogram is not None),
            np.zeros((_BINS, len(CLASSES)), np.int64),
        )


def collect_stats(source: Path, *, jobs: int | None = 1, progress: Progress | None = None) -> StatsReport:
    """Read all cases of a KiTS folder or of a dataset in nnU-Net's raw format.

    Cases of which only the segmentation is there count too, without HU.
    """
    found = [case for case in find_kits_cases(source) if case.segmentation is not None]
    if not found:
        raise DatasetError(f"{source}: no segmentations here; statistics need them")
    report = StatsReport(without_image=sum(case.image is None for case in found))
    for outcome in run_cases(case_stats, [(case.name, case) for case in found], jobs=jobs, progress=progress):
        if outcome.result is not None:
            report.cases.append(outcome.result)
        else:
            report.bad[outcome.name] = str(outcome.failure)
    report.cases.sort(key=lambda case: case.name)
    report.bad = dict(sorted(report.bad.items()))
    if not report.cases:
        raise DatasetError(
            "no case could be read:" + "".join(f"\n  {n}: {r}" for n, r in list(report.bad.items())[:10])
        )
    return report


def case_stats(case: KitsCase) -> CaseStats:
    """Numbers of one case. Runs in a worker process."""
    image, label = _read(case)
    slices, histogram = _count(image, label)
    box = Box.around(label.array)
    inside = label.array if box is None else np.ascontiguousarray(box.crop(label.array))
    return CaseStats(
        name=case.name,
        shape=label.shape,
        spacing=label.spacing,
        slices=slices,
        histogram=histogram,
        hu_range=(float(image.array.min()), float(image.array.max())) if image else None,
        lesions=tuple((kind, size) for value, kind in LESIONS.items() for size in _lesions(inside, value)),
    )


def _read(case: KitsCase) -> tuple[Volume | None, Volume]:
    if case.image is not None:
        return read_case(case)
    if case.segmentation is None:
        raise CaseError(case.name, str(case.missing))
    label = read_labels(case.segmentation)
    check_label_values(label)
    return None, label


def _count(image: Volume | None, label: Volume) -> tuple[Array, Array | None]:
    """Classes per slice, and HU per class.

    Classes are counted inside the box around them, which is a small part of the volume; the rest is background.
    """
    kinds, pixels = len(CLASSES), label.shape[1] * label.shape[2]
    slices = np.zeros((label.shape[0], kinds), np.int64)
    slices[:, 0] = pixels
    histogram = None if image is None else np.zeros((_BINS, kinds), np.int64)
    if image is not None and histogram is not None:
        for part in along_memory(image.array):
            histogram[:, 0] += np.bincount(_hu_bins(part), minlength=_BINS)
    box = Box.around(label.array) or Box((0, 0, 0), (0, 0, 0))
    for index in range(box.start[0], box.stop[0]):
        plane = label.array[(index, *box.slices[1:])]
        counts = np.bincount(plane.ravel(), minlength=kinds)
        slices[index] = counts
        slices[index, 0] += pixels - plane.size
        if image is not None and histogram is not None and counts[1:].any():
            inside = plane > 0
            bins = _hu_bins(image.array[(index, *box.slices[1:])][inside])
            found = np.bincount(bins * kinds + plane[inside], minlength=histogram.size).reshape(histogram.shape)
            found[:, 0] = -found.sum(axis=1)  # all voxels were counted as background above
            histogram += found
    return slices, histogram


def _hu_bins(values: Array) -> Array:
    """Position of each value in the histogram."""
    whole = values if values.dtype.kind in "iu" else np.rint(values)
    bins: Array = whole.clip(HU_LOW, HU_HIGH - 1).astype(np.int64).ravel(order="K") - HU_LOW
    return bins


def _lesions(label: Array, value: int) -> list[int]:
    """Voxels of each connected lesion, the largest first."""
    mask = label == value
    box = Box.around(mask)
    return [] if box is None else sorted(components(box.crop(mask)).voxels.tolist(), reverse=True)


def diameter_mm(volume_ml: float) -> float:
    """Diameter of a ball of this volume."""
    return float((6000 * volume_ml / np.pi) ** (1 / 3))
