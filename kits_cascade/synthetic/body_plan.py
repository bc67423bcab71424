"""What is drawn for a painted body before anything is painted, and the grid that it is painted on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from kits_cascade.synthetic.noise import Noise
from kits_cascade.synthetic.subjects import Anatomy, KidneySource
from kits_cascade.volumes.volume import Array, Spacing

VIEWS: Final = ("abdomen", "whole", "cut", "thorax", "pelvis")
VIEW_SHARES: Final = (0.56, 0.14, 0.2, 0.05, 0.05)

EVENTS: Final[Mapping[str, float]] = {  # chance of each in a case
    "lean": 0.3,
    "ascites": 0.13,
    "effusion": 0.08,
    "mass": 0.22,
    "arms": 0.15,
    "table": 0.75,
    "oral contrast": 0.2,
    "hydronephrosis": 0.15,
    "stones": 0.07,
    "stent": 0.03,
    "pyelum": 0.5,
    "metal": 0.04,
    "horseshoe": 0.02,
    "transplant": 0.02,
}


@dataclass(frozen=True)
class BodyPlan:
    """What was drawn for a case; what is in it follows from this and the noise."""

    anatomy: Anatomy
    kidneys: Mapping[str, KidneySource | None]  # by side; None: the kidney is missing
    view: str
    mirrored: bool
    scale: Sequence[float]
    angles: Sequence[float]
    elastic: Sequence[float]  # mm, over 90 and over 35 mm
    wall: float  # thickness of the muscles around the abdomen, mm
    fat: float  # of the subcutaneous fat, mm
    events: frozenset[str] = field(default_factory=frozenset)
    own_kidneys: bool = False


def draw_plan(
    rng: np.random.Generator,
    anatomy: Anatomy,
    kidneys: Mapping[str, KidneySource | None],
    own_kidneys: bool = False,
    view: str | None = None,
) -> BodyPlan:
    """Size, posture, build and what is unusual."""
    size = rng.uniform(0.85, 1.2)
    drawn = str(rng.choice(VIEWS, p=VIEW_SHARES))
    return BodyPlan(
        anatomy,
        kidneys,
        view or drawn,
        bool(rng.random() < 0.3),
        tuple(float(size * rng.uniform(0.9, 1.12)) for _ in range(3)),
        tuple(float(rng.normal(0, s)) for s in (7, 5, 5)),
        (float(rng.uniform(4, 13)), float(rng.uniform(1, 4))),
        float(rng.uniform(2, 14)),
        float(np.exp(rng.uniform(np.log(2.5), np.log(45)))),
        frozenset(name for name, chance in EVENTS.items() if rng.random() < chance),
        own_kidneys,
    )


@dataclass(frozen=True)
class Canvas:
    """The grid of a case while it is painted: what lies where, and where in the anatomy that is."""

    plan: BodyPlan
    spacing: Spacing
    rng: np.random.Generator
    noise: Noise
    places: Array  # mm in the anatomy, (3, z, y, x)
    tissue: Array
    labels: Array
    outside: Array  # distance to the body's hull in mm, negative inside

    def voxels(self, millimetres: float) -> list[float]:
        """A length in voxels, at least one."""
        return [max(1.0, millimetres / step) for step in self.spacing]

    def smooth(self, millimetres: float, shape: Sequence[int] | None = None) -> Array:
        """Noise that is alike over a length."""
        field_: Array = self.noise.smooth(shape or self.tissue.shape, self.voxels(millimetres)).numpy()
        return field_


def nearest(source: Array, places: Array) -> Array:
    """Values of a volume at ``places`` (voxels, (3, z, y, x)), each the nearest one's; 0 outside of it."""
    index = np.rint(places).astype(np.int32)
    inside = np.ones(index.shape[1:], dtype=bool)
    for axis, size in enumerate(source.shape):
        inside &= (index[axis] >= 0) & (index[axis] < size)
        np.clip(index[axis], 0, size - 1, out=index[axis])
    found: Array = source.ravel()[(index[0] * source.shape[1] + index[1]) * source.shape[2] + index[2]]
    found[~inside] = 0
    return found


def rotation(degrees: Sequence[float]) -> Any:
    """About z, y and x."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        first, second = [k for k in range(3) if k != axis]
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return matrix
