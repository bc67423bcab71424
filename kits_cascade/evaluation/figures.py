"""Pictures as files, for a paper or a README: cases in three planes, and distributions of scores."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from kits_cascade.evaluation.slices import Plane, outlines, planes
from kits_cascade.files import atomic_path
from kits_cascade.labels import CYST, KIDNEY, LABEL_NAMES, TUMOR
from kits_cascade.volume import Volume

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours: told apart with any colour vision.
LABEL_COLORS: Final = {KIDNEY: "#56B4E9", TUMOR: "#D55E00", CYST: "#F0E442"}
TRUTH_COLOR: Final = "#56B4E9"
PREDICTION_COLOR: Final = "#E69F00"
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
