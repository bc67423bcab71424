"""Pictures as files, for a paper or a README: cases in three planes, and distributions of scores."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from kits_cascade.evaluation.lesions import summarise_lesions
from kits_cascade.files import atomic_path
from kits_cascade.labels import CYST, KIDNEY, LABEL_NAMES, REGIONS, TUMOR
from kits_cascade.report.slices import Plane, outlines, planes, sagittal_planes
from kits_cascade.volumes.volume import Volume

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from kits_cascade.evaluation.score import ScoreTable

# Okabe and Ito's colours: told apart with any colour vision.
LABEL_COLORS: Final = {KIDNEY: "#56B4E9", TUMOR: "#D55E00", CYST: "#F0E442"}
_INK: Final = "#1b1f24"
_GREY: Final = "#6a737d"
_DPI: Final = 200


def case_panel(
    image: Volume | None, truth: Volume | None, prediction: Volume | None, out_png: Path, title: str = ""
) -> None:
    """Prediction beside truth in three planes through the largest lesion, as a PNG."""
    cut = planes(image, truth, prediction)
    rows = [row for row in (("Truth", truth, "truth"), ("Prediction", prediction, "prediction")) if row[1] is not None]
    widths = [plane.size_mm[1] for plane in cut]
    heights = [plane.size_mm[0] for plane in cut]
    scale = 9.0 / sum(widths)
    height = max(h * scale for h in heights)
    figure = _figure(9.3, len(rows) * (height + 0.08) + 0.78)
    grid = figure.add_gridspec(
        len(rows), 3, width_ratios=widths, left=0.035, right=0.995, top=1 - 0.52 / figure.get_figheight(),
        bottom=0.30 / figure.get_figheight(), wspace=0.03, hspace=0.03,
    )  # fmt: skip
    for index, (name, _, side) in enumerate(rows):
        for column, plane in enumerate(cut):
            axes = figure.add_subplot(grid[index, column])
            _show(axes, plane, side)
            if index == 0:
                axes.set_title(plane.name.capitalize(), fontsize=9, color=_GREY, pad=4)
            if column == 0:
                axes.set_ylabel(name, fontsize=10, color=_INK, labelpad=4)
    figure.text(0.035, 1 - 0.10 / figure.get_figheight(), title, fontsize=12, weight="bold", color=_INK, va="top")
    _legend(figure)
    _save(figure, out_png)


def sagittal_strip(image: Volume, truth: Volume, prediction: Volume, out_png: Path, count: int = 6) -> None:
    """Sagittal slices through all that is segmented, from right to left: truth above, prediction below."""
    cut = sagittal_planes(image, truth, prediction, count)
    height, width = cut[0].size_mm
    scale = 9.3 / (len(cut) * width)
    figure = _figure(9.3, 2 * height * scale)
    grid = figure.add_gridspec(2, len(cut), left=0, right=1, top=1, bottom=0, wspace=0.02, hspace=0.02)
    for row, side in enumerate(("truth", "prediction")):
        for column, plane in enumerate(cut):
            _show(figure.add_subplot(grid[row, column]), plane, side)
    _save(figure, out_png)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _show(axes: Axes, plane: Plane, side: str) -> None:
    from matplotlib.colors import to_rgb

    labels = plane.truth if side == "truth" else plane.prediction
    height, width = plane.size_mm
    axes.set_facecolor("black")
    if plane.image is not None:
        axes.imshow(plane.image, cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0), interpolation="bicubic")
    for label, color in LABEL_COLORS.items():
        mask = None if labels is None else labels == label
        if mask is None or not mask.any():
            continue
        tint = np.zeros((*mask.shape, 4))
        tint[mask] = (*to_rgb(color), 0.25)
        axes.imshow(tint, extent=(0, width, height, 0), interpolation="nearest")
        for line in outlines(mask, plane):
            axes.plot(line[:, 0], line[:, 1], color=color, linewidth=1.1)
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_aspect("equal", anchor="N")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    _scale_bar(axes, width, height)


def _scale_bar(axes: Axes, width: float, height: float) -> None:
    x, y = width - 8, height - 6
    axes.plot((x - 50, x), (y, y), color="white", linewidth=1.6, solid_capstyle="butt")
    axes.text(x - 25, y - 3, "5 cm", color="white", fontsize=6.5, ha="center", va="bottom")


def _legend(figure: Figure) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(facecolor=color, label=LABEL_NAMES[label]) for label, color in LABEL_COLORS.items()]
    figure.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0.03, 0.0), ncol=3, frameon=False, fontsize=8,
        handlelength=1.0, handleheight=0.9, columnspacing=1.4, labelcolor=_INK,
    )  # fmt: skip


def _save(figure: Any, path: Path) -> None:
    with atomic_path(path) as temporary:
        # No software version inside: the same scores give the same bytes.
        figure.savefig(temporary, dpi=_DPI, format="png", metadata={"Software": None})


def distributions(scores: ScoreTable, out_png: Path) -> None:
    """Dice and surface Dice per region, as boxes with a dot per case."""
    figure = _figure(7.2, 3.2)
    rng = np.random.default_rng(0)
    for index, (metric, title) in enumerate((("dice", "Dice"), ("surface_dice", "Surface Dice"))):
        axes = figure.add_subplot(1, 2, index + 1)
        columns = [[case.scores[region.name][metric] for case in scores.cases] for region in REGIONS]
        axes.boxplot(
            columns, widths=0.5, showfliers=False, patch_artist=True,
            boxprops={"facecolor": "#e8f1f8", "edgecolor": _INK, "linewidth": 0.8},
            medianprops={"color": "#0072B2", "linewidth": 1.6}, whiskerprops={"color": _INK, "linewidth": 0.8},
            capprops={"color": _INK, "linewidth": 0.8},
        )  # fmt: skip
        for place, column in enumerate(columns, start=1):
            spread = place + rng.uniform(-0.16, 0.16, len(column))
            axes.plot(spread, column, "o", color="#0072B2", markersize=2.6, alpha=0.55, markeredgewidth=0)
        axes.set_xticks(range(1, len(REGIONS) + 1), [region.title for region in REGIONS], fontsize=8)
        axes.set_ylim(-0.03, 1.03)
        _plain(axes, title)
    figure.subplots_adjust(left=0.06, right=0.99, top=0.9, bottom=0.1, wspace=0.18)
    _save(figure, out_png)


def detection(scores: ScoreTable, out_png: Path) -> None:
    """Share of lesions found by size, with Wilson intervals."""
    figure = _figure(7.2, 3.0)
    summary = summarise_lesions([case.lesions for case in scores.cases])
    for index, (kind, content) in enumerate(summary.items()):
        axes = figure.add_subplot(1, 2, index + 1)
        bands = {name: row for name, row in content["bands"].items() if row["truth"]}
        for place, row in enumerate(bands.values()):
            rate = row["sensitivity"]
            axes.plot((place, place), (rate["low"], rate["high"]), color=_GREY, linewidth=1.2)
            axes.plot(place, rate["value"], "o", color="#0072B2", markersize=5)
            axes.text(place, -0.17, f"n = {row['truth']}", fontsize=7, color=_GREY, ha="center", clip_on=False)
        axes.set_xticks(range(len(bands)), list(bands), fontsize=7)
        axes.set_xlim(-0.6, max(len(bands), 1) - 0.4)
        axes.set_ylim(-0.03, 1.03)
        _plain(axes, f"{kind.capitalize()}s found, by diameter")
    figure.subplots_adjust(left=0.06, right=0.99, top=0.9, bottom=0.17, wspace=0.16)
    _save(figure, out_png)


def _plain(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10, loc="left", color=_INK, weight="bold")
    axes.tick_params(labelsize=8, colors=_INK, length=0)
    axes.grid(axis="y", color="#d8dee4", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
