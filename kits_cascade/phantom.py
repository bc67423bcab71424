"""CT-like cases without patients: a body with two kidneys, tumours and cysts, or a CT painted around given masks.

The same seed gives the same bytes. What is in the body, and where, is in :mod:`kits_cascade.phantom_anatomy`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from scipy import ndimage

from kits_cascade import phantom_anatomy as body
from kits_cascade.components import components
from kits_cascade.errors import DatasetError
from kits_cascade.labels import CYST, KIDNEY, TUMOR
from kits_cascade.nifti import read_labels, write_volume
from kits_cascade.volume import Array, Spacing, Volume, volume_from_stored

VARIANTS: Final = body.VARIANTS
Progress = Callable[[int, int, str], None]

# Attenuation of the tissues in a contrast-enhanced scan: mean HU, and how far it varies from case to case.
_HU: Final[dict[int, tuple[float, float]]] = {
    body.AIR: (-1000, 0),
    body.FAT: (-100, 6),
    body.MUSCLE: (55, 3),
    body.BONE: (520, 60),
    body.MARROW: (190, 25),
    body.LIVER: (105, 5),
    body.SPLEEN: (120, 5),
    body.VESSEL: (195, 25),
    body.BOWEL: (45, 12),
    body.GAS: (-780, 60),
    body.BILE: (8, 4),
    body.CORTEX: (185, 10),
    body.MEDULLA: (145, 8),
    body.SOLID: (84, 6),
    body.NECROSIS: (35, 6),
    body.WATER: (6, 4),
}


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
    anatomy = body.make_anatomy(rng, variant)
    side = int(np.ceil(370 / pixel / 8) * 8)
    x, y, z = (
        _axis(side, pixel)[None, :],
        _axis(side, pixel)[:, None],
        _axis(int(rng.uniform(215, 260) / thickness), thickness),
    )
    labels = np.empty((len(z), side, side), dtype=np.uint8)

    def tissues() -> Iterator[Array]:
        for k, height in enumerate(z):
            tissue, labels[k] = body.paint_slice(anatomy, x, y, float(height))
            yield tissue

    spacing = (thickness, pixel, pixel)
    image = np.stack(list(_Scanner(rng, (side, side), spacing).scan(tissues())))
    return PhantomCase(f"case_{index:05d}", kits_volume(image, spacing), kits_volume(labels, spacing), variant)


# --- a CT around given masks


def _around(labels: Volume, rng: np.random.Generator) -> body.Anatomy:
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
    return body.Anatomy(tuple(body.make_organs(rng, width, depth)))


def _mask_axes(labels: Volume) -> tuple[Array, Array, Array]:
    """Coordinates in mm, zero between the kidneys in x, z and a little in front of them in y."""
    axes = [_axis(n, s) for n, s in zip(labels.shape, labels.spacing, strict=True)]
    boxes = ndimage.find_objects(np.asarray(labels.array[:: max(1, len(labels.array) // 64)] > 0).astype(np.uint8))
    if boxes and boxes[0] is not None:
        _, rows, columns = boxes[0]
        axes[1] = axes[1] - axes[1][[rows.start, rows.stop - 1]].mean() - 30
        axes[2] = axes[2] - axes[2][[columns.start, columns.stop - 1]].mean()
    return axes[0], axes[1], axes[2]


_LABEL_TISSUE: Final = {KIDNEY: body.CORTEX, TUMOR: body.SOLID, CYST: body.WATER}


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
                organs, _ = body.paint_slice(anatomy, x, y, float(z))
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
    tissue[inner] = body.MEDULLA
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
