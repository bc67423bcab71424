"""The statistics of a folder as tables, and in a few numbers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np

from kits_cascade.data.stats import CLASSES, HU_HIGH, HU_LOW, LESIONS, StatsReport, diameter_mm
from kits_cascade.files import write_csv, write_json
from kits_cascade.volumes.volume import Array

HU_STEP: Final = 8  # of the written histogram


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
        _write_table(out / name, rows)
    write_json(out / "summary.json", summary(report))
    return [out / name for name in (*tables, "summary.json")]


def _write_table(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    table = list(rows)
    write_csv(path, [list(table[0]), *(list(row.values()) for row in table)] if table else [])


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
