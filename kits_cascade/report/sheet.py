"""A picture sheet of cases: one row each, three planes through the kidneys, with the labels' outlines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from kits_cascade.files import atomic_path, read_json
from kits_cascade.report.figures import LABEL_COLORS
from kits_cascade.report.slices import outlines, planes
from kits_cascade.volumes.nifti import read_labels, read_volume

_MOST: Final = 8


def draw_sheet(folders: Sequence[Path], out_png: Path, most: int = _MOST) -> Path:
    """Write the sheet of the first cases (folders in KiTS layout)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = list(folders)[:most]
    figure = Figure(figsize=(9, 3.1 * max(1, len(shown))), facecolor="black")
    FigureCanvasAgg(figure)
    for row, folder in enumerate(shown):
        labels = read_labels(folder / "segmentation.nii.gz")
        cut = planes(read_volume(folder / "imaging.nii.gz"), labels, None)
        for column, plane in enumerate(cut):
            axes = figure.add_subplot(len(shown), 3, 3 * row + column + 1)
            height, width = plane.size_mm
            axes.imshow(np.asarray(plane.image), cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0))
            for label, color in LABEL_COLORS.items():
                for line in outlines(plane.truth == label, plane) if plane.truth is not None else ():
                    axes.plot(line[:, 0], line[:, 1], color=color, linewidth=0.9)
            axes.set_axis_off()
            if column == 0:
                axes.set_title(_about(folder), fontsize=7, color="white", loc="left", pad=2)
    figure.subplots_adjust(left=0.01, right=0.99, top=0.985, bottom=0.005, wspace=0.02, hspace=0.08)
    with atomic_path(out_png) as temporary:
        figure.savefig(temporary, dpi=90, format="png", facecolor="black", metadata={"Software": None})
    return out_png


def _about(folder: Path) -> str:
    path = folder / "painted.json"
    content: dict[str, Any] = read_json(path) if path.is_file() else {}
    told = [str(content[key]) for key in ("phase", "view") if key in content]
    return "  ".join([folder.name, *told, ", ".join(content.get("events", []))])
