"""CT-like cases without patients: a body with two kidneys, tumours and cysts, or a CT painted around given masks.

Shapes are ellipsoids in RAS millimetres (x to the patient's right, y to the front, z up), painted slice by slice, so
that the largest real geometry needs little more memory than its result. The same seed gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from scipy import ndimage

from kits_cascade.components import components
from kits_cascade.errors import DatasetError
from kits_cascade.labels import CYST, KIDNEY, TUMOR
from kits_cascade.volume import Array, Spacing, Volume, read_labels, volume_from_stored, write_volume

Progress = Callable[[int, int, str], None]

# Tissues and their attenuation in a contrast-enhanced scan: mean HU, and how far it varies from case to case.
AIR, FAT, MUSCLE, BONE, MARROW, LIVER, SPLEEN, VESSEL, BOWEL, GAS, BILE, CORTEX, MEDULLA, SOLID, NECROSIS, WATER = (
    range(16)
)
_HU: Final[dict[int, tuple[float, float]]] = {
    AIR: (-1000, 0),
    FAT: (-100, 6),
    MUSCLE: (58, 5),
    BONE: (520, 60),
    MARROW: (190, 25),
    LIVER: (105, 8),
    SPLEEN: (120, 8),
    VESSEL: (195, 25),
    BOWEL: (45, 12),
    GAS: (-780, 60),
    BILE: (8, 4),
    CORTEX: (185, 15),
    MEDULLA: (140, 15),
    SOLID: (82, 12),
    NECROSIS: (35, 6),
    WATER: (6, 4),
}

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


@dataclass(frozen=True)
class PhantomCase:
    """A finished case."""

    name: str
    image: Volume
    labels: Volume
    variant: str


def kits_volume(canonical: Array, spacing: Spacing) -> Volume:
    """A volume stored as KiTS stores: axes z, y, x, each running against RAS."""
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = -spacing[0], -spacing[1], -spacing[2], 1.0
    return volume_from_stored(np.ascontiguousarray(canonical[::-1, ::-1, ::-1]), affine)


# --- anatomy


def _organs(rng: np.random.Generator, width: float, depth: float) -> list[tuple[Ellipsoid, int]]:
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


def _anatomy(rng: np.random.Generator, variant: str) -> Anatomy:
    width, depth = float(rng.uniform(150, 172)), float(rng.uniform(104, 124))
    organs = _organs(rng, width, depth)
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


# --- painting


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


def _paint_slice(anatomy: Anatomy, x: Array, y: Array, z: float) -> tuple[Array, Array]:
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


class _Scanner:
    """Tissues to HU: texture, blur of slice thickness and detector, noise. Works on a stream of slices."""

    def __init__(self, rng: np.random.Generator, shape: tuple[int, int], spacing: Spacing) -> None:
        self._rng = rng
        self._table = np.array(
            [rng.normal(*_HU[t]) if _HU[t][1] else _HU[t][0] for t in range(len(_HU))], dtype=np.float32
        )
        self._sigma = 0.5 if spacing[1] > 1.2 else 0.8
        noise = float(rng.uniform(9, 17))
        # A few large tiles, shifted at random for every slice: as good as fresh noise, at a fraction of its cost.
        self._noise = [self._tile(shape, noise, 0.6) for _ in range(4)]
        self._texture = [self._tile(shape, 5.0, 4.0 / spacing[1]) for _ in range(2)]

    def _tile(self, shape: tuple[int, int], strength: float, sigma: float) -> Array:
        tile = ndimage.gaussian_filter(self._rng.standard_normal(shape, dtype=np.float32), sigma, mode="wrap")
        return np.asarray(tile * (strength / tile.std()), dtype=np.float32)

    def _shifted(self, tiles: list[Array]) -> Array:
        tile = tiles[int(self._rng.integers(len(tiles)))]
        return np.roll(tile, tuple(self._rng.integers(0, n) for n in tile.shape), (0, 1))

    def scan(self, slices: Iterator[Array]) -> Iterator[Array]:
        """One slice of int16 HU for each slice of tissues."""
        before: Array | None = None
        current: Array | None = None
        for tissue in slices:
            following = self._table[tissue]
            if current is not None:
                yield self._expose(before, current, following)
            before, current = current, following
        if current is not None:
            yield self._expose(before, current, None)

    def _expose(self, before: Array | None, current: Array, following: Array | None) -> Array:
        neighbours = (current if before is None else before) + (current if following is None else following)
        blurred = ndimage.gaussian_filter(0.74 * current + 0.13 * neighbours, self._sigma)
        blurred += self._shifted(self._noise)
        blurred += np.where(current > -500, self._shifted(self._texture), np.float32(0))
        return np.asarray(np.rint(blurred.clip(-1024, 3071)), dtype=np.int16)


def _axis(count: int, spacing: float) -> Array:
    return ((np.arange(count) - (count - 1) / 2) * spacing).astype(np.float32)


def make_case(seed: int, index: int, in_plane_mm: float | None = None, slice_mm: float | None = None) -> PhantomCase:
    """Case ``index`` of the series ``seed``. Spacings are drawn where they are not given."""
    rng = np.random.default_rng([seed, index])
    variant = VARIANTS[index % len(VARIANTS)]
    drawn = float(rng.uniform(1.7, 2.3)), float(rng.choice([2.5, 3.0, 4.0, 5.0]))
    pixel, thickness = in_plane_mm or round(drawn[0], 3), slice_mm or drawn[1]
    anatomy = _anatomy(rng, variant)
    side = int(np.ceil(370 / pixel / 8) * 8)
    x, y, z = (
        _axis(side, pixel)[None, :],
        _axis(side, pixel)[:, None],
        _axis(int(rng.uniform(215, 260) / thickness), thickness),
    )
    labels = np.empty((len(z), side, side), dtype=np.uint8)

    def tissues() -> Iterator[Array]:
        for k, height in enumerate(z):
            tissue, labels[k] = _paint_slice(anatomy, x, y, float(height))
            yield tissue

    spacing = (thickness, pixel, pixel)
    image = np.stack(list(_Scanner(rng, (side, side), spacing).scan(tissues())))
    return PhantomCase(f"case_{index:05d}", kits_volume(image, spacing), kits_volume(labels, spacing), variant)


# --- a CT around given masks


def _around(labels: Volume, rng: np.random.Generator) -> Anatomy:
    """A body that encloses the kidneys of a real mask, in the coordinates of :func:`_mask_axes`."""
    low, high = np.full(2, np.inf), np.full(2, -np.inf)
    _, ys, xs = _mask_axes(labels)
    for part in labels.array[:: max(1, len(labels.array) // 64)]:
        hit = np.nonzero(part)
        if len(hit[0]):
            low = np.minimum(low, [xs[hit[1]].min(), ys[hit[0]].min()])
            high = np.maximum(high, [xs[hit[1]].max(), ys[hit[0]].max()])
    width, depth = float(rng.uniform(150, 172)), float(rng.uniform(104, 124))
    if np.isfinite(low).all():
        width = max(width, (high[0] - low[0]) / 2 + 45)
        depth = max(depth, (high[1] - low[1]) / 2 + 45)
    return Anatomy(tuple(_organs(rng, width, depth)))


def _mask_axes(labels: Volume) -> tuple[Array, Array, Array]:
    """Coordinates in mm, zero between the kidneys in x, z and a little in front of them in y."""
    axes = [_axis(n, s) for n, s in zip(labels.shape, labels.spacing, strict=True)]
    boxes = ndimage.find_objects(np.asarray(labels.array[:: max(1, len(labels.array) // 64)] > 0).astype(np.uint8))
    if boxes and boxes[0] is not None:
        _, rows, columns = boxes[0]
        axes[1] = axes[1] - axes[1][[rows.start, rows.stop - 1]].mean() - 30
        axes[2] = axes[2] - axes[2][[columns.start, columns.stop - 1]].mean()
    return axes[0], axes[1], axes[2]


_LABEL_TISSUE: Final = {KIDNEY: CORTEX, TUMOR: SOLID, CYST: WATER}


def paint_ct(labels: Volume, seed: int = 0) -> Volume:
    """A CT (int16) around a KiTS label map, at its size, spacing, place and orientation."""
    rng = np.random.default_rng([seed, *labels.shape])
    anatomy = _around(labels, rng)
    zs, ys, xs = _mask_axes(labels)
    x, y = xs[None, :], ys[:, None]

    def tissues() -> Iterator[Array]:
        organs: Array | None = None
        drawn_at = -np.inf
        for k, z in enumerate(zs):
            if organs is None or z - drawn_at >= 2.0:  # organs change slowly: thin slices share them
                organs, _ = _paint_slice(anatomy, x, y, float(z))
                drawn_at = z
            yield _with_labels(organs, labels.array[k])

    image = np.empty(labels.array.shape, dtype=np.int16)
    scanner = _Scanner(rng, labels.shape[1:], labels.spacing)
    for k, plane in enumerate(scanner.scan(tissues())):
        image[k] = plane
    return labels.with_array(image)


def _with_labels(organs: Array, plane: Array) -> Array:
    if not plane.any():
        return organs
    tissue = organs.copy()
    for label, kind in _LABEL_TISSUE.items():
        tissue[plane == label] = kind
    inner = ndimage.binary_erosion(plane == KIDNEY, iterations=9)
    tissue[inner] = MEDULLA
    return tissue


# --- folders


def write_cases(
    out: Path,
    count: int,
    seed: int = 0,
    *,
    first: int = 0,
    in_plane_mm: float | None = None,
    slice_mm: float | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Write cases in KiTS layout; a case that is there already is kept. The folders of the cases."""
    folders = []
    for number, index in enumerate(range(first, first + count)):
        folder = out / f"case_{index:05d}"
        if not all((folder / name).is_file() for name in ("imaging.nii.gz", "segmentation.nii.gz")):
            case = make_case(seed, index, in_plane_mm, slice_mm)
            write_volume(folder / "imaging.nii.gz", case.image)
            write_volume(folder / "segmentation.nii.gz", case.labels)
        folders.append(folder)
        if progress is not None:
            progress(number + 1, count, folder.name)
    return folders


def write_from_masks(
    out: Path, masks: Path, seed: int = 0, limit: int | None = None, progress: Progress | None = None
) -> list[Path]:
    """Paint a CT around each ``case_*/segmentation.nii.gz`` of a folder, at its true size."""
    found = sorted(masks.glob("*/segmentation.nii.gz"))[:limit]
    if not found:
        raise DatasetError(f"{masks}: no */segmentation.nii.gz in there; --from-masks takes a folder in KiTS layout")
    folders = []
    for number, path in enumerate(found):
        folder = out / path.parent.name
        if not (folder / "imaging.nii.gz").is_file():
            labels = read_labels(path)
            write_volume(folder / "segmentation.nii.gz", labels)
            write_volume(folder / "imaging.nii.gz", paint_ct(labels, seed))
        folders.append(folder)
        if progress is not None:
            progress(number + 1, len(found), folder.name)
    return folders


def describe(case: PhantomCase) -> dict[str, Any]:
    """What a case holds: for logs and tests."""
    array = case.labels.array
    return {
        "variant": case.variant,
        "kidneys": components(array > 0).count,
        "tumors": components(array == TUMOR).count,
        "cysts": components(array == CYST).count,
    }
