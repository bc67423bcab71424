"""What people look at first: slices, spacings, HU, class proportions per volume and per slice, lesion sizes."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from kits_cascade import labels as kits
from kits_cascade.components import components
from kits_cascade.data.cases import along_memory, check_label_values, read_case
from kits_cascade.data.layouts import KitsCase, contrast_phase, find_cases
from kits_cascade.errors import CaseError, DatasetError
from kits_cascade.files import write_json, write_text
from kits_cascade.geometry import Box
from kits_cascade.nifti import read_labels
from kits_cascade.parallel import Progress, run_cases
from kits_cascade.volume import Array, Volume

CLASSES: Final = ("background", *kits.LABEL_NAMES.values())
LESIONS: Final = {kits.TUMOR: "tumor", kits.CYST: "cyst"}
HU_LOW, HU_HIGH = -2048, 4096  # values outside are counted at the ends
HU_STEP: Final = 8  # of the written histogram
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
    found = [case for case in find_cases(source) if case.segmentation is not None]
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


def hu_summary(histogram: Array) -> dict[str, float]:
    """Mean, standard deviation and percentiles of a histogram over whole HU."""
    total = histogram.sum()
    if not total:
        return {}
    hu = np.arange(HU_LOW, HU_HIGH)
    mean = float((histogram * hu).sum() / total)
    deviation = float(np.sqrt((histogram * (hu - mean) ** 2).sum() / total))
    reached = np.cumsum(histogram) / total
    percentiles = {f"p{p:g}": float(hu[np.searchsorted(reached, p / 100)]) for p in (0.5, 50, 99.5)}
    return {"mean": round(mean, 3), "std": round(deviation, 3), **percentiles}


def write_tables(report: StatsReport, out: Path) -> list[Path]:
    """The numbers as CSV files, and a summary as JSON."""
    tables = {
        "cases.csv": _case_rows(report),
        "slices.csv": _slice_rows(report),
        "lesions.csv": _lesion_rows(report),
    }
    if report.histogram.any():
        tables["hu_histogram.csv"] = _histogram_rows(report)
    for name, rows in tables.items():
        _write_csv(out / name, rows)
    write_json(out / "summary.json", summary(report))
    return [out / name for name in (*tables, "summary.json")]


def _write_csv(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    text = io.StringIO()
    writer: csv.DictWriter[str] | None = None
    for row in rows:
        if writer is None:
            writer = csv.DictWriter(text, row.keys(), lineterminator="\n")
            writer.writeheader()
        writer.writerow(row)
    write_text(path, text.getvalue())


def _case_rows(report: StatsReport) -> Iterable[dict[str, Any]]:
    for case in report.cases:
        row: dict[str, Any] = {"case": case.name, "phase": case.phase}
        row |= dict(zip(("slices", "rows", "columns"), case.shape, strict=True))
        row |= {f"spacing_{axis}_mm": round(size, 6) for axis, size in zip("zyx", case.spacing, strict=True)}
        row |= dict(zip(("hu_min", "hu_max"), case.hu_range or ("", ""), strict=True))
        foreground = hu_summary(case.histogram[:, 1:].sum(axis=1)) if case.histogram is not None else {}
        row |= {f"foreground_hu_{key}": foreground.get(key, "") for key in ("mean", "std", "p0.5", "p50", "p99.5")}
        row |= {f"{kind}_voxels": int(count) for kind, count in zip(CLASSES, case.voxels, strict=True)}
        row |= {f"{kind}_share": f"{share:.6g}" for kind, share in zip(CLASSES, case.shares, strict=True)}
        row |= {f"{k}_ml": f"{c * case.voxel_ml:.6g}" for k, c in zip(CLASSES[1:], case.voxels[1:], strict=True)}
        row |= {f"{kind}s": sum(found == kind for found, _ in case.lesions) for kind in LESIONS.values()}
        yield row


def _slice_rows(report: StatsReport) -> Iterable[dict[str, Any]]:
    for case in report.cases:
        for index, counts in enumerate(case.slices):
            row: dict[str, Any] = {"case": case.name, "slice": index}
            row |= {f"{kind}_pixels": int(count) for kind, count in zip(CLASSES, counts, strict=True)}
            row |= {f"{k}_share": f"{c / counts.sum():.6g}" for k, c in zip(CLASSES, counts, strict=True)}
            yield row


def _lesion_rows(report: StatsReport) -> Iterable[dict[str, Any]]:
    for case in report.cases:
        for number, (kind, voxels) in enumerate(case.lesions, start=1):
            volume = voxels * case.voxel_ml
            yield {
                "case": case.name,
                "lesion": number,
                "kind": kind,
                "voxels": voxels,
                "volume_ml": f"{volume:.6g}",
                "diameter_mm": f"{diameter_mm(volume):.4g}",
            }


def _histogram_rows(report: StatsReport) -> Iterable[dict[str, Any]]:
    wide = report.histogram.reshape(-1, HU_STEP, len(CLASSES)).sum(axis=1)
    for index, counts in enumerate(wide):
        begin = HU_LOW + index * HU_STEP
        yield {"hu_from": begin, "hu_below": begin + HU_STEP, **dict(zip(CLASSES, counts.tolist(), strict=True))}


def _spread(values: Iterable[float]) -> dict[str, float]:
    array = np.array(list(values), dtype=np.float64)
    if not array.size:
        return {}
    parts = {"min": array.min(), "median": np.median(array), "mean": array.mean(), "max": array.max()}
    return {key: float(f"{value:.6g}") for key, value in parts.items()}


def summary(report: StatsReport) -> dict[str, Any]:
    """The whole folder in a few numbers."""
    cases = report.cases
    kinds = dict(enumerate(CLASSES))
    lesions = [(kind, voxels * case.voxel_ml) for case in cases for kind, voxels in case.lesions]
    return {
        "cases": len(cases),
        "phases": {phase: sum(c.phase == phase for c in cases) for phase in sorted({c.phase for c in cases} - {""})},
        "cases_without_image": report.without_image,
        "left_out": report.bad,
        "slices": _spread(case.shape[0] for case in cases),
        "spacing_mm": {axis: _spread(case.spacing[i] for case in cases) for i, axis in enumerate("zyx")},
        "foreground_hu": hu_summary(report.histogram[:, 1:].sum(axis=1)),
        "cases_with": {kind: sum(bool(case.voxels[value]) for case in cases) for value, kind in kinds.items() if value},
        "volume_share": {kind: _spread(case.shares[value] for case in cases) for value, kind in kinds.items()},
        "slices_with": {kind: int(sum((c.slices[:, v] > 0).sum() for c in cases)) for v, kind in kinds.items() if v},
        "lesions": {
            kind: {
                "count": sum(k == kind for k, _ in lesions),
                "volume_ml": _spread(v for k, v in lesions if k == kind),
            }
            for kind in LESIONS.values()
        },
    }
