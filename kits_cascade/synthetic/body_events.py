"""What is unusual around the kidneys: ascites, effusion, masses of other organs, arms, the table, metal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from kits_cascade.synthetic.body_plan import Canvas
from kits_cascade.synthetic.tissues import CODE
from kits_cascade.volumes.volume import Array


def paint_events(canvas: Canvas) -> None:
    """Those of the plan, in a fixed order."""
    for name, paint in _PAINTERS.items():
        if name in canvas.plan.events:
            paint(canvas)


def _ascites(canvas: Canvas) -> None:
    """Free fluid between the organs in front of the kidneys."""
    tissue = canvas.tissue
    centres = list(canvas.plan.anatomy.kidneys.values())
    row = float(np.mean([c[1] for c in centres])) if centres else canvas.plan.anatomy.extent[1] / 2
    loose = np.isin(tissue, [CODE["visceral fat"], CODE["loose tissue"]]) & (canvas.outside < 4)
    field = canvas.smooth(30)
    tissue[loose & (canvas.places[1] > row + 12) & (field > canvas.rng.uniform(-2.5, 0.5))] = CODE["fluid"]


def _effusion(canvas: Canvas) -> None:
    level = canvas.plan.anatomy.extent[1] * canvas.rng.uniform(0.25, 0.5)
    canvas.tissue[(canvas.tissue == CODE["lung"]) & (canvas.places[1] < level)] = CODE["fluid"]


_SPARED: Final = ("marrow", "cortical bone", "artery", "vein", "disc", "lung", "air")


def _masses(canvas: Canvas) -> None:
    """Large tumours and cysts of other organs."""
    deep = np.flatnonzero(canvas.outside < -15)
    if not len(deep):
        return
    spared = [CODE[name] for name in _SPARED]
    for _ in range(int(canvas.rng.integers(1, 3))):
        kind = "foreign mass" if canvas.rng.random() < 0.75 else "fluid"
        radius = float(np.exp(canvas.rng.uniform(np.log(15), np.log(80))))
        _ball(canvas, deep, radius, CODE[kind], spared)


def _metal(canvas: Canvas) -> None:
    bone = np.flatnonzero(canvas.tissue == CODE["marrow"])
    if len(bone):
        _ball(canvas, bone, canvas.rng.uniform(3, 9), CODE["metal"])


def _ball(canvas: Canvas, choices: Array, radius: float, code: int, spared: Sequence[int] = ()) -> None:
    """An uneven ellipsoid around one of the voxels ``choices``."""
    rng, tissue = canvas.rng, canvas.tissue
    place = np.unravel_index(int(rng.choice(choices)), tissue.shape)
    radii = [radius * rng.uniform(0.7, 1.3) / step for step in canvas.spacing]
    window = tuple(slice(max(0, int(p - 1.4 * r)), int(p + 1.4 * r) + 1) for p, r in zip(place, radii, strict=True))
    view = tissue[window]
    axes = [np.arange(s.start, s.start + n) for s, n in zip(window, view.shape, strict=True)]
    grids = np.meshgrid(*axes, indexing="ij", sparse=True)
    distance = sum(((g - p) / r) ** 2 for g, p, r in zip(grids, place, radii, strict=True))
    bumps = canvas.noise.smooth(view.shape, [max(2.0, r * 0.7) for r in radii]).numpy()
    view[(distance + 0.2 * bumps < 1) & ~np.isin(view, list(spared))] = code


def _pixels(canvas: Canvas) -> tuple[Array, Array]:
    """Millimetres along rows and columns of a slice, as a column and a row."""
    rows, columns = (np.arange(n) * s for n, s in zip(canvas.tissue.shape[1:], canvas.spacing[1:], strict=True))
    return rows[:, None], columns[None, :]


def _arms(canvas: Canvas) -> None:
    """One arm or both beside the body."""
    tissue, rng, spacing = canvas.tissue, canvas.rng, canvas.spacing
    body = (tissue != CODE["air"]).any(axis=0)
    columns = np.flatnonzero(body.any(axis=0))
    if not len(columns):
        return
    radius = rng.uniform(35, 55)
    y0 = float(np.argwhere(body)[:, 0].mean()) * spacing[1] + rng.normal(0, 20)
    y, x = _pixels(canvas)
    for x0 in (columns[0] * spacing[2] - radius - 3, columns[-1] * spacing[2] + radius + 3):
        if rng.random() < 0.3:
            continue
        distance = np.hypot(y - y0, x - x0) / radius
        free = (tissue == CODE["air"]) & (distance < 1)[None]
        muscle = rng.uniform(0.6, 0.85)
        for limit, name in ((1.0, "subcutaneous fat"), (muscle, "muscle"), (0.27, "cortical bone"), (0.17, "marrow")):
            tissue[free & (distance < limit)[None]] = CODE[name]


def _table(canvas: Canvas) -> None:
    """The curved top of the table below the back: solid, or two thin skins."""
    tissue, rng = canvas.tissue, canvas.rng
    rows = np.flatnonzero((tissue != CODE["air"]).any(axis=(0, 2)))
    if not len(rows):
        return
    y, x = _pixels(canvas)
    middle = tissue.shape[2] * canvas.spacing[2] / 2
    lowest = rows[0] * canvas.spacing[1] - rng.uniform(-4, 15)
    depth = lowest + rng.uniform(0.1, 1) * ((x - middle) / 200) ** 2 * 90 - y
    thick = rng.uniform(4, 40)
    shell = (depth > 0) & (depth < thick) & (np.abs(x - middle) < rng.uniform(160, 270))
    if thick > 12:
        shell &= (depth < 4) | (depth > thick - 4)
    tissue[(tissue == CODE["air"]) & shell[None]] = CODE["table"]


_PAINTERS: Final = {
    "ascites": _ascites,
    "effusion": _effusion,
    "mass": _masses,
    "arms": _arms,
    "table": _table,
    "metal": _metal,
}
