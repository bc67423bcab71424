"""Painted CT: real anatomy and real kidneys with made-up tissue, phase and scanner.

The same sources, seed and index give the same bytes. :mod:`kits_cascade.synthetic.painted_body` says where what lies,
:mod:`kits_cascade.synthetic.exposure` what a scanner makes of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from kits_cascade.errors import DatasetError, UsageError
from kits_cascade.synthetic.body_plan import VIEWS, BodyPlan, draw_plan
from kits_cascade.synthetic.exposure import draw_scanner, expose, unmeasured
from kits_cascade.synthetic.painted_body import paint_body
from kits_cascade.synthetic.subjects import (
    Anatomy,
    KidneySource,
    find_anatomies,
    find_masks,
    read_anatomy,
    read_kidneys,
)
from kits_cascade.synthetic.tissues import CODE, PHASES, draw_palette
from kits_cascade.volumes.volume import Array, Spacing

_SIDES: Final = ("left", "right")
_MISSING: Final = 0.05  # chance that a kidney was taken out


@dataclass(frozen=True)
class PaintOptions:
    """How cases are painted."""

    spacing: Spacing = (2.0, 2.0, 2.0)
    hard: bool = False  # worse scanners and odder tissues
    phases: tuple[str, ...] = ()  # all where empty
    scanner: bool = True
    own_kidneys: bool = False  # the anatomies' own instead of those of the masks
    view: str | None = None


@dataclass(frozen=True)
class PaintedCase:
    """One case: CT, KiTS labels and tissues (z, y, x in RAS), and what was drawn."""

    image: Array
    labels: Array
    spacing: Spacing
    tissue: Array  # rows of TISSUES
    about: dict[str, Any] = field(default_factory=dict)


@lru_cache(maxsize=8)
def _anatomy(path: Path) -> Anatomy:
    return read_anatomy(path)


@dataclass(frozen=True)
class Sources:
    """Anatomies and masks to draw from."""

    anatomies: tuple[Path, ...]
    masks: tuple[Path, ...]

    @staticmethod
    def find(anatomy: Path, masks: Path, names: Sequence[str] = ()) -> Sources:
        """All of two folders; of anatomies only ``names``, where they are given."""
        found = {path.name.split(".")[0]: path for path in find_anatomies(anatomy)}
        missing = sorted(set(names) - set(found))
        if missing:
            raise DatasetError(f"{anatomy}: no anatomy {', '.join(missing)}; there are {', '.join(found)}")
        chosen = [path for name, path in found.items() if not names or name in names]
        return Sources(tuple(chosen), tuple(find_masks(masks)))


def make_options(
    spacing: float,
    *,
    hard: bool = False,
    phases: Sequence[str] = (),
    view: str | None = None,
    own_kidneys: bool = False,
) -> PaintOptions:
    """Options from what a user says, checked."""
    for given, known, what in ((phases, PHASES, "phase"), ([view] if view else [], VIEWS, "view")):
        wrong = [value for value in given if value not in known]
        if wrong:
            raise UsageError(f"unknown {what} {', '.join(wrong)}; there are {', '.join(known)}")
    cube = (spacing, spacing, spacing)
    return PaintOptions(cube, hard=hard, phases=tuple(phases), view=view, own_kidneys=own_kidneys)


def paint_case(sources: Sources, seed: int, index: int, options: PaintOptions | None = None) -> PaintedCase:
    """Case ``index`` of the series ``seed``."""
    options = options or PaintOptions()
    rng = np.random.default_rng([seed, index])
    anatomy = _anatomy(sources.anatomies[int(rng.integers(len(sources.anatomies)))])
    kidneys = _draw_kidneys(rng, sources.masks)
    plan = draw_plan(rng, anatomy, kidneys, options.own_kidneys, options.view)
    shape, centre = _field_of_view(rng, plan, options.spacing)
    body = paint_body(plan, shape, options.spacing, centre, rng)
    spread = 1.6 if options.hard else 1.0
    phase = str(rng.choice(options.phases)) if options.phases else None
    palette = draw_palette(rng, phase, odd=0.12 if options.hard else 0.06, spread=1.3 if options.hard else 1.0)
    settings = draw_scanner(rng, spread) if options.scanner else draw_scanner(np.random.default_rng(0), 0.3)
    beyond = unmeasured(shape, settings, options.spacing)
    body.labels[:, beyond] = 0
    image = expose(body.tissue, palette, settings, options.spacing, rng)
    body.tissue[:, beyond] = CODE["air"]
    about = {
        "anatomy": anatomy.name,
        "kidneys": {side: source.name if source else None for side, source in kidneys.items()},
        "view": plan.view,
        "mirrored": plan.mirrored,
        "phase": palette.phase,
        "events": sorted(plan.events),
        "slice_mm": settings.slice_mm,
        "noise": round(settings.noise, 1),
    }
    return PaintedCase(image, body.labels, options.spacing, body.tissue, about)


def _draw_kidneys(rng: np.random.Generator, masks: Sequence[Path]) -> dict[str, KidneySource | None]:
    """Both kidneys of one patient, or one of each of two; now and then one is missing."""
    result: dict[str, KidneySource | None] = {}
    pool = _kidneys_of(rng, masks)
    for side in _SIDES:
        if rng.random() < 0.5:
            pool = _kidneys_of(rng, masks)
        own = [k for k in pool if k.side == side]
        # A kidney may change sides, mirrored.
        result[side] = own[0] if own and rng.random() < 0.75 else pool[int(rng.integers(len(pool)))]
    if rng.random() < _MISSING:
        result[str(rng.choice(_SIDES))] = None
    return result


def _kidneys_of(rng: np.random.Generator, masks: Sequence[Path]) -> list[KidneySource]:
    for _ in range(20):
        found = read_kidneys(masks[int(rng.integers(len(masks)))])
        if found:
            return found
    raise DatasetError("20 masks drawn, and none has two separate kidneys: give more masks")


def _field_of_view(
    rng: np.random.Generator, plan: BodyPlan, spacing: Spacing
) -> tuple[tuple[int, int, int], list[float]]:
    """Shape of the grid, and the place of its middle in the anatomy (mm)."""
    anatomy = plan.anatomy
    top = anatomy.extent[0]
    heights = [c[0] for c in anatomy.kidneys.values()] or [top / 2]
    kidney = float(np.mean(heights)), 55.0
    low, high = _section(rng, plan.view, kidney, top)
    height = max(60.0, (high - low) * plan.scale[0])
    width = float(np.clip((anatomy.extent[2] * plan.scale[2]) * 0.92 + 2 * (plan.wall + plan.fat), 300, 500))
    width *= rng.uniform(0.9, 1.12)
    if rng.random() < 0.08:
        width *= 0.72  # parts of the body lie outside
    count = int(width / spacing[1])
    shape = max(8, int(height / spacing[0])), count, count
    middle = [(low + high) / 2, anatomy.extent[1] / 2 + rng.normal(0, 12), anatomy.extent[2] / 2 + rng.normal(0, 12)]
    return shape, middle


def _section(rng: np.random.Generator, view: str, kidney: tuple[float, float], top: float) -> tuple[float, float]:
    """From where to where a scan goes along the body, in mm of the anatomy."""
    middle, half = kidney
    low, high = middle - half, middle + half
    if view == "whole":
        return 0.0, min(top, high + rng.uniform(100, 400))
    if view == "thorax":
        return high + rng.uniform(-15, 40), max(min(top, high + 320), high + 100)
    if view == "pelvis":
        return max(0.0, low - 320), low - rng.uniform(-10, 30)
    start, stop = max(0.0, low - rng.uniform(15, 220)), min(top, high + rng.uniform(15, 160))
    if view == "cut":
        border = rng.uniform(middle - half * 0.7, middle + half * 0.7)
        return (border, max(stop, border + 90)) if rng.random() < 0.5 else (min(start, border - 90), border)
    return start, stop
