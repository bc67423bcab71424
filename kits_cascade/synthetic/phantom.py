"""CT-like cases without patients: a body with two kidneys, tumours and cysts, or a CT painted around given masks.

The same seed gives the same bytes. What is in the body, and where, is in :mod:`kits_cascade.synthetic.anatomy`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from scipy import ndimage

from kits_cascade.errors import DatasetError
from kits_cascade.labels import CYST, KIDNEY, TUMOR
from kits_cascade.parallel import Progress
from kits_cascade.synthetic import anatomy as body
from kits_cascade.synthetic.scanner import Scanner
from kits_cascade.volumes.components import components
from kits_cascade.volumes.nifti import read_labels, write_volume
from kits_cascade.volumes.volume import Array, Spacing, Volume, volume_from_stored

VARIANTS: Final = body.VARIANTS


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
    image = np.stack(list(Scanner(rng, (side, side), spacing).scan(tissues())))
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
    scanner = Scanner(rng, labels.shape[1:], labels.spacing)
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
