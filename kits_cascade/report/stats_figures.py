"""Pictures of the statistics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.figure import Figure

from kits_cascade.data.stats import CLASSES, HU_HIGH, HU_LOW, LESIONS, StatsReport, diameter_mm
from kits_cascade.files import atomic_path

# Distinguishable with any kind of colour vision (Okabe and Ito).
COLOURS: Final = {"background": "#7f7f7f", "kidney": "#0072B2", "tumor": "#D55E00", "cyst": "#009E73"}
TITLES: Final = {"background": "Background", "kidney": "Kidney", "tumor": "Tumour", "cyst": "Cyst"}


def write_figures(report: StatsReport, out: Path) -> list[Path]:
    """All pictures as PNG files."""
    drawings: dict[str, Callable[[StatsReport], Figure]] = {
        "slices.png": draw_slices,
        "spacings.png": draw_spacings,
        "class_proportions.png": draw_proportions,
        "class_proportions_per_slice.png": draw_slice_proportions,
        "lesion_sizes.png": draw_lesions,
    }
    if report.histogram.any():
        drawings["hu_histogram.png"] = draw_hu
    for name, draw in drawings.items():
        with atomic_path(out / name) as temporary:
            draw(report).savefig(temporary, dpi=130, format="png")
    return [out / name for name in drawings]


def _figure(title: str, panels: int = 1) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(5.6 * panels if panels > 1 else 7.2, 4.4), layout="constrained")
    figure.suptitle(title)
    axes = [figure.add_subplot(1, panels, index + 1) for index in range(panels)]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", alpha=0.3)
        axis.set_axisbelow(True)
    return figure, axes


def _cases(report: StatsReport) -> str:
    return f"{len(report.cases)} case{'' if len(report.cases) == 1 else 's'}"


def _bars(axis: Any, values: Sequence[float], label: str, bins: Any) -> None:
    axis.hist(values, bins=bins, color=COLOURS["kidney"], edgecolor="white", linewidth=0.5)
    median = float(np.median(values))
    axis.axvline(median, color="black", linestyle="--", linewidth=1, label=f"median {median:.4g}")
    axis.set_xlabel(label)
    axis.set_ylabel("Cases")
    axis.yaxis.get_major_locator().set_params(integer=True)
    axis.legend(frameon=False)


def draw_slices(report: StatsReport) -> Figure:
    """How many slices the scans have."""
    figure, (axis,) = _figure(f"Slices per scan ({_cases(report)})")
    _bars(axis, [case.shape[0] for case in report.cases], "Slices", bins=30)
    return figure


def draw_spacings(report: StatsReport) -> Figure:
    """Slice distance and pixel size."""
    figure, (left, right) = _figure(f"Voxel spacing ({_cases(report)})", panels=2)
    distances = [case.spacing[0] for case in report.cases]
    _bars(left, distances, "Slice distance (mm)", bins=np.arange(0.125, max(distances) + 0.5, 0.25))
    _bars(right, [case.spacing[2] for case in report.cases], "Pixel size (mm)", bins=25)
    return figure


def draw_hu(report: StatsReport) -> Figure:
    """HU of everything, and of each class."""
    figure, (left, right) = _figure(f"HU ({_cases(report)})", panels=2)
    hu, step = np.arange(HU_LOW, HU_HIGH), 16
    coarse = report.histogram.reshape(-1, step, len(CLASSES)).sum(axis=1)
    left.step(hu[::step], coarse.sum(axis=1), where="post", color="black", linewidth=1)
    present = np.flatnonzero(coarse.any(axis=1))
    left.set_xlim(hu[present[0] * step] - step, hu[present[-1] * step] + 2 * step)
    left.set_yscale("log")
    left.set_xlabel("HU (values beyond the ends are counted there)")
    left.set_ylabel("Voxels per 16 HU")
    left.set_title("All voxels", fontsize="medium")
    inside = slice(-200 - HU_LOW, 400 - HU_LOW)
    for value, kind in enumerate(CLASSES):
        counts = report.histogram[:, value]
        if value and counts.any():
            density = np.convolve(counts / counts.sum(), np.ones(5) / 5, mode="same")
            right.plot(hu[inside], 100 * density[inside], color=COLOURS[kind], label=TITLES[kind])
    right.set_xlabel("HU")
    right.set_ylabel("Voxels of the class per HU (%)")
    right.set_title("By class", fontsize="medium")
    right.set_ylim(bottom=0)
    right.legend(frameon=False)
    return figure


def _strips(axis: Any, shares: dict[str, list[float]], counts: dict[str, str]) -> None:
    """A box (quartiles, and 5 to 95 %) and the single values for each class, in per cent, on a log scale."""
    random = np.random.default_rng(0)
    names = [kind for kind in CLASSES[1:] if shares[kind]]
    for position, kind in enumerate(names):
        values = 100 * np.array(shares[kind])
        axis.scatter(
            position + random.uniform(-0.28, 0.28, len(values)),
            values,
            s=6,
            alpha=0.35,
            color=COLOURS[kind],
            linewidths=0,
        )
        axis.boxplot(
            values,
            positions=[position],
            widths=0.45,
            whis=(5, 95),
            showfliers=False,
            medianprops={"color": "black", "linewidth": 1.6},
        )
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_xticks(range(len(names)), [f"{TITLES[kind]}\n{counts[kind]}" for kind in names])


def draw_proportions(report: StatsReport) -> Figure:
    """Part of each scan that a class takes."""
    figure, (axis,) = _figure(f"Class proportions per volume ({_cases(report)})")
    shares = {k: [c.shares[v] for c in report.cases if c.voxels[v]] for v, k in enumerate(CLASSES)}
    _strips(axis, shares, {kind: f"in {len(values)} of {len(report.cases)} cases" for kind, values in shares.items()})
    axis.set_ylabel("Part of the volume (%)\nbox: quartiles, whiskers: 5 and 95 %")
    return figure


def draw_slice_proportions(report: StatsReport) -> Figure:
    """Part of each slice that a class takes, in those slices that show it."""
    slices = np.concatenate([case.slices for case in report.cases])
    figure, (axis,) = _figure(f"Class proportions per slice ({len(slices)} slices of {_cases(report)})")
    parts = slices / slices.sum(axis=1, keepdims=True)
    shares = {kind: parts[parts[:, value] > 0, value].tolist() for value, kind in enumerate(CLASSES)}
    counts = {kind: f"in {100 * len(values) / len(slices):.1f} % of slices" for kind, values in shares.items()}
    _strips(axis, _thinned(shares), counts)
    axis.set_ylabel("Part of the slice, where present (%)\nbox: quartiles, whiskers: 5 and 95 %")
    return figure


def _thinned(shares: dict[str, list[float]], most: int = 3000) -> dict[str, list[float]]:
    """A drawable number of points: an even choice of the ordered values leaves the quartiles where they are."""
    thinned = {}
    for kind, values in shares.items():
        ordered = sorted(values)
        thinned[kind] = [ordered[i] for i in np.linspace(0, len(ordered) - 1, min(most, len(ordered))).astype(int)]
    return thinned


def draw_lesions(report: StatsReport) -> Figure:
    """How large lesions are, and how many a case has."""
    figure, (left, right) = _figure(f"Lesions ({_cases(report)})", panels=2)
    sizes = {
        kind: [diameter_mm(n * case.voxel_ml) for case in report.cases for k, n in case.lesions if k == kind]
        for kind in LESIONS.values()
    }
    every = [size for values in sizes.values() for size in values]
    if every:
        edges = np.geomspace(max(0.5, min(every) * 0.98), max(every) * 1.02, 30)
        for kind, values in sizes.items():
            left.hist(
                values, bins=edges, histtype="step", linewidth=1.8, color=COLOURS[kind], label=_count(kind, values)
            )
        left.set_xscale("log")
        ticks = [tick for tick in (1, 2, 5, 10, 20, 50, 100, 200) if edges[0] <= tick <= edges[-1]]
        left.set_xticks(ticks, [str(tick) for tick in ticks])
        left.minorticks_off()
        left.legend(frameon=False)
    left.set_xlabel("Diameter of a ball of the same volume (mm)")
    left.set_ylabel("Lesions (connected components)")
    numbers = {k: [sum(f == k for f, _ in c.lesions) for c in report.cases] for k in LESIONS.values()}
    most = min(12, max(max(values) for values in numbers.values()))
    for offset, (kind, per_case) in zip((-0.2, 0.2), numbers.items(), strict=True):
        counts = np.bincount(np.minimum(per_case, most), minlength=most + 1)
        right.bar(np.arange(most + 1) + offset, counts, width=0.4, color=COLOURS[kind], label=TITLES[kind])
    labels = [str(n) for n in range(most + 1)]
    if any(max(values) > most for values in numbers.values()):
        labels[-1] += "+"
    right.set_xticks(range(most + 1), labels)
    right.set_xlabel("Lesions in a case")
    right.set_ylabel("Cases")
    right.yaxis.get_major_locator().set_params(integer=True)
    right.legend(frameon=False)
    return figure


def _count(kind: str, values: list[float]) -> str:
    return (
        f"{TITLES[kind]} (n = {len(values)}, median {np.median(values):.0f} mm)" if values else f"{TITLES[kind]} (none)"
    )
