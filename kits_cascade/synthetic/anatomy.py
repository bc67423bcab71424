"""The anatomy of the phantoms: ellipsoids in RAS millimetres, and how one slice of them is painted.

x runs to the patient's right, y to the front, z up. Painting goes slice by slice, so that the largest real geometry
needs little more memory than its result.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from kits_cascade.labels import CYST, KIDNEY, TUMOR
from kits_cascade.volumes.volume import Array

# Tissues. What attenuation they have is the scanner's business: see phantom.py.
AIR, FAT, MUSCLE, BONE, MARROW, LIVER, SPLEEN, VESSEL, BOWEL, GAS, BILE, CORTEX, MEDULLA, SOLID, NECROSIS, WATER = (
    range(16)
)

VARIANTS: Final = ("plain", "single kidney", "no cyst", "horseshoe", "small tumor", "plain")
_TUMOR_MM: Final = (13.0, 26.0)
_SMALL_TUMOR_MM: Final = (9.0, 11.0)
_CYST_MM: Final = (8.0, 17.0)


@dataclass(frozen=True)
class Ellipsoid:
    """A possibly tilted ellipsoid; all in mm, x, y, z."""

    centre: Array
    radii: Array
    axes: Array = field(default_factory=lambda: np.eye(3))

    def level(self, x: Array, y: Array, z: float) -> Array:
        """Below 1 inside. ``x`` and ``y`` span one slice."""
        dx, dy, dz = x - self.centre[0], y - self.centre[1], z - self.centre[2]
        total = np.zeros(np.broadcast_shapes(x.shape, y.shape), dtype=np.float32)
        for axis, radius in zip(self.axes, self.radii, strict=True):
            total += ((dx * axis[0] + dy * axis[1] + dz * axis[2]) / radius) ** 2
        return total

    def window(self, x: Array, y: Array, z: float) -> tuple[slice, slice] | None:
        """Rows and columns of the slice at ``z`` that can meet it (with room for waves), None when none can."""
        extent = 1.3 * np.sqrt(((self.axes * self.radii[:, None]) ** 2).sum(axis=0))
        if abs(z - self.centre[2]) > extent[2]:
            return None
        columns = np.searchsorted(x[0], [self.centre[0] - extent[0], self.centre[0] + extent[0]])
        rows = np.searchsorted(y[:, 0], [self.centre[1] - extent[1], self.centre[1] + extent[1]])
        return slice(*map(int, rows)), slice(*map(int, columns))


@dataclass(frozen=True)
class Kidney:
    """A kidney: its outer shape, the fatty sinus that opens to the middle, and a wave that makes it lumpy."""

    outer: Ellipsoid
    sinus: Ellipsoid
    phase: Array


@dataclass(frozen=True)
class Lesion:
    """A tumour or a cyst."""

    shape: Ellipsoid
    label: int


@dataclass(frozen=True)
class Anatomy:
    """All that is drawn: organs in painting order, kidneys, lesions."""

    organs: tuple[tuple[Ellipsoid, int], ...]
    kidneys: tuple[Kidney, ...] = ()
    lesions: tuple[Lesion, ...] = ()


def make_organs(rng: np.random.Generator, width: float, depth: float) -> list[tuple[Ellipsoid, int]]:
    """The body around the kidneys; ``width`` and ``depth`` are its half axes."""

    def jitter(*centre: float) -> Array:
        return np.array(centre) + rng.normal(0, 3, 3)

    tall = 1e4  # organs that run through the whole scan
    fat = float(rng.uniform(12, 24))
    organs = [
        (Ellipsoid(np.zeros(3), np.array([width, depth, tall])), FAT),
        (Ellipsoid(np.zeros(3), np.array([width - fat, depth - fat, tall])), MUSCLE),
        (Ellipsoid(np.array([0, 6.0, 0]), np.array([width - fat - 12, depth - fat - 14, tall])), FAT),
        (Ellipsoid(jitter(0, -0.62 * depth, 0), np.array([30.0, 24.0, tall])), MUSCLE),
        (Ellipsoid(np.array([34.0, -0.46 * depth, 0]), np.array([17.0, 19.0, tall])), MUSCLE),
        (Ellipsoid(np.array([-34.0, -0.46 * depth, 0]), np.array([17.0, 19.0, tall])), MUSCLE),
        (Ellipsoid(np.array([0, -0.50 * depth, 0]), np.array([23.0, 19.0, tall])), BONE),
        (Ellipsoid(np.array([0, -0.50 * depth, 0]), np.array([20.0, 16.0, tall])), MARROW),
        (Ellipsoid(jitter(0.46 * width, 0.25 * depth, 95), np.array([0.42 * width, 0.52 * depth, 85.0])), LIVER),
        (Ellipsoid(jitter(0.25 * width, 0.50 * depth, 20), np.array([13.0, 16.0, 24.0])), BILE),
        (Ellipsoid(jitter(-0.62 * width, 0.0, 95), np.array([26.0, 42.0, 48.0])), SPLEEN),
        (Ellipsoid(np.array([-8.0, -0.24 * depth, 0]), np.array([10.0, 10.0, tall])), VESSEL),
        (Ellipsoid(np.array([16.0, -0.22 * depth, 0]), np.array([12.0, 9.0, tall])), VESSEL),
    ]
    for _ in range(14):
        centre = np.array([rng.uniform(-0.55, 0.55) * width, rng.uniform(0.12, 0.62) * depth, rng.uniform(-130, 60)])
        radii = rng.uniform(11, 22, 3)
        organs.append((Ellipsoid(centre, radii), BOWEL))
        if rng.random() < 0.5:
            organs.append((Ellipsoid(centre + np.array([0, 0.35 * radii[1], 0]), radii * 0.55), GAS))
    return organs


def _tilt(angle_xz: float, angle_xy: float) -> Array:
    """Rows are the axes of an ellipsoid, tilted in the coronal and turned in the axial plane."""
    c, s = np.cos(angle_xz), np.sin(angle_xz)
    coronal = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    c, s = np.cos(angle_xy), np.sin(angle_xy)
    return np.asarray(coronal @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]]))


def _kidney(rng: np.random.Generator, side: int, depth: float, horseshoe: bool) -> Kidney:
    """``side`` is +1 for the patient's right. In a horseshoe the lower poles lean to the middle."""
    lean = 0.45 if horseshoe else float(rng.uniform(0.05, 0.25))
    centre = np.array(
        [side * rng.uniform(60, 68), rng.uniform(-0.34, -0.24) * depth, rng.uniform(-8, 8) - 8 * (side > 0)]
    )
    if horseshoe:
        centre[0] = side * 48
        centre[1] += 20
    radii = np.array([rng.uniform(24, 29), rng.uniform(25, 30), rng.uniform(48, 58)])
    outer = Ellipsoid(centre, radii, _tilt(-side * lean, side * float(rng.uniform(-0.3, 0.3))))
    sinus = Ellipsoid(centre + np.array([-side * 0.75 * radii[0], 4.0, 0.0]), radii * [0.62, 0.42, 0.42], outer.axes)
    return Kidney(outer, sinus, rng.uniform(0, 2 * np.pi, 6))


def _lesion(rng: np.random.Generator, kidney: Kidney, label: int, radius: tuple[float, float], depth: float) -> Lesion:
    """A lesion at a place of the kidney away from the spine; ``depth`` 1 puts its centre on the surface."""
    side = np.sign(kidney.outer.centre[0])
    direction = np.array([side * rng.uniform(0.2, 1.0), rng.uniform(-0.6, 1.0), rng.uniform(-1.0, 1.0)])
    direction /= np.linalg.norm(direction)
    centre = kidney.outer.centre + depth * (kidney.outer.axes.T @ (direction * kidney.outer.radii))
    size = float(rng.uniform(*radius))
    stretch = rng.uniform(0.85, 1.15, 3) if label == TUMOR else np.ones(3)
    return Lesion(Ellipsoid(centre, size * stretch), label)


def _apart(lesion: Lesion, others: list[Lesion]) -> bool:
    """Whether it keeps its distance: two lesions that merge are one."""
    return all(
        np.linalg.norm(lesion.shape.centre - o.shape.centre) > lesion.shape.radii.max() + o.shape.radii.max() + 4
        for o in others
    )


def _lesions(rng: np.random.Generator, kidneys: tuple[Kidney, ...], variant: str) -> tuple[Lesion, ...]:
    size = _SMALL_TUMOR_MM if variant == "small tumor" else _TUMOR_MM
    hosts = rng.permutation(len(kidneys))
    found = [_lesion(rng, kidneys[hosts[0]], TUMOR, size, float(rng.uniform(0.75, 1.05)))]
    if variant == "plain" and rng.random() < 0.25:
        found.append(_lesion(rng, kidneys[hosts[-1]], TUMOR, _TUMOR_MM, 0.9))
    if variant == "no cyst":
        return tuple(f for i, f in enumerate(found) if _apart(f, found[:i]))
    for _ in range(int(rng.integers(1, 4))):
        found.append(
            _lesion(rng, kidneys[int(rng.integers(len(kidneys)))], CYST, _CYST_MM, float(rng.uniform(0.8, 1.0)))
        )
    return tuple(f for i, f in enumerate(found) if _apart(f, found[:i]))


def make_anatomy(rng: np.random.Generator, variant: str) -> Anatomy:
    """A body with kidneys and lesions."""
    width, depth = float(rng.uniform(150, 172)), float(rng.uniform(104, 124))
    organs = make_organs(rng, width, depth)
    sides: tuple[int, ...] = (1, -1)
    if variant == "single kidney":
        sides = (int(rng.choice(sides)),)
    horseshoe = variant == "horseshoe"
    kidneys = tuple(_kidney(rng, side, depth, horseshoe) for side in sides)
    lesions = _lesions(rng, kidneys, variant)
    if horseshoe:
        low = float(np.mean([k.outer.centre[2] for k in kidneys])) - 32
        front = float(np.mean([k.outer.centre[1] for k in kidneys])) + 4
        isthmus = Ellipsoid(np.array([0.0, front, low]), np.array([42.0, 11.0, 15.0]))
        kidneys += (Kidney(isthmus, replace(isthmus, radii=isthmus.radii * 1e-3), np.zeros(6)),)
    return Anatomy(tuple(organs), kidneys, lesions)


def _paint_organs(tissue: Array, anatomy: Anatomy, x: Array, y: Array, z: float) -> None:
    for shape, kind in anatomy.organs:
        window = shape.window(x, y, z)
        if window is not None:
            rows, columns = window
            tissue[window][shape.level(x[:, columns], y[rows], z) < 1] = kind


def _paint_kidney(tissue: Array, labels: Array, kidney: Kidney, x: Array, y: Array, z: float) -> None:
    p = kidney.phase
    wave = 0.07 * np.sin(x / 9 + p[0]) * np.sin(y / 9 + p[1]) + 0.05 * np.sin(z / 8 + p[2])
    level = kidney.outer.level(x, y, z) + wave.astype(np.float32)
    inside = level < 1
    angle = np.arctan2(y - kidney.outer.centre[1], x - kidney.outer.centre[0])
    pyramids = (level < 0.62) & (np.sin(7 * angle + p[3]) + np.sin(z / 5 + p[4]) > -0.3)
    tissue[inside] = CORTEX
    tissue[inside & pyramids] = MEDULLA
    labels[inside] = KIDNEY
    sinus = inside & (kidney.sinus.level(x, y, z) < 1)
    tissue[sinus] = FAT
    labels[sinus] = 0


def _paint_lesion(tissue: Array, labels: Array, lesion: Lesion, x: Array, y: Array, z: float) -> None:
    level = lesion.shape.level(x, y, z)
    inside = level < 1
    labels[inside] = lesion.label
    if lesion.label == CYST:
        tissue[inside] = WATER
        return
    tissue[inside] = SOLID
    core = level + 0.25 * np.sin(x / 4) * np.sin(y / 5 + z / 4)
    tissue[inside & (core < 0.25)] = NECROSIS


def paint_slice(anatomy: Anatomy, x: Array, y: Array, z: float) -> tuple[Array, Array]:
    """Tissues and KiTS labels of one slice."""
    tissue = np.full(np.broadcast_shapes(x.shape, y.shape), AIR, dtype=np.uint8)
    labels = np.zeros(tissue.shape, dtype=np.uint8)
    _paint_organs(tissue, anatomy, x, y, z)
    for kidney in anatomy.kidneys:
        window = kidney.outer.window(x, y, z)
        if window is not None:
            rows, columns = window
            _paint_kidney(tissue[window], labels[window], kidney, x[:, columns], y[rows], z)
    # Cysts first: a tumour covers what it meets.
    for lesion in sorted(anatomy.lesions, key=lambda one: one.label, reverse=True):
        window = lesion.shape.window(x, y, z)
        if window is not None:
            rows, columns = window
            _paint_lesion(tissue[window], labels[window], lesion, x[:, columns], y[rows], z)
    return tissue, labels
