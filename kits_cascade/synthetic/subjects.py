"""Real anatomy to paint: whole-body label maps, and the kidneys of KiTS masks.

An anatomy is one label map with a table of names, or a folder of masks as TotalSegmentator writes them. Both kinds of
source are read once and kept in a small cache, for reading and resampling take longer than painting.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from scipy import ndimage

from kits_cascade.errors import DatasetError
from kits_cascade.files import atomic_path, read_json
from kits_cascade.synthetic.tissues import CODE, tissue_of
from kits_cascade.volumes.nifti import read_labels
from kits_cascade.volumes.volume import Array

GRID_MM: Final = 1.5  # finer than any network here sees
COARSE: Final = 2  # distances to the body's hull are held at every second voxel
CLOSING_MM: Final = 25.0  # of the hull around all labelled structures
_CACHE_VERSION: Final = 1
KIDNEY_CODE: Final = 255  # an anatomy's own kidney
PREPARED: Final = ".npz"  # of a source that was read already: see prepare_sources


@dataclass(frozen=True)
class Anatomy:
    """A body: tissue by voxel, distance to its hull (negative inside), where its kidneys are (mm, z y x)."""

    name: str
    tissue: Array
    outside: Array
    kidneys: Mapping[str, tuple[float, float, float]]

    @property
    def extent(self) -> tuple[float, ...]:
        """Edges in mm."""
        return tuple(n * GRID_MM for n in self.tissue.shape)


@dataclass(frozen=True)
class KidneySource:
    """One side of a KiTS mask: labels at GRID_MM, and the voxel that goes where the anatomy's own kidney was."""

    name: str
    side: str
    labels: Array
    centre: tuple[float, float, float]


def cache_folder() -> Path:
    """Where what was read is kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "kits-cascade" / "painter"


def _cached(source: Path, make: Any) -> dict[str, Array]:
    if source.suffix == PREPARED:
        with np.load(source, allow_pickle=False) as kept:
            return dict(kept)
    state = source.stat()
    key = hashlib.sha256(f"{_CACHE_VERSION} {source.resolve()} {state.st_size} {state.st_mtime_ns}".encode())
    path = cache_folder() / f"{source.parent.name}-{key.hexdigest()[:16]}.npz"
    try:
        with np.load(path, allow_pickle=False) as kept:
            return dict(kept)
    except (OSError, ValueError, EOFError):
        content: dict[str, Array] = make()
        with atomic_path(path) as temporary:
            np.savez_compressed(temporary, **content)  # type: ignore[arg-type]
        return content


def resample_labels(labels: Array, spacing: tuple[float, ...], target: float = GRID_MM) -> Array:
    """Nearest neighbours on an isotropic grid."""
    index = []
    for size, step in zip(labels.shape, spacing, strict=True):
        count = max(1, round(size * step / target))
        places = (np.arange(count) + 0.5) * target / step - 0.5
        index.append(np.clip(np.rint(places), 0, size - 1).astype(np.intp))
    return labels[np.ix_(*index)]


# --- anatomies


def find_anatomies(folder: Path) -> list[Path]:
    """Combined label maps (``*.nii.gz`` beside a labels.json), or subjects that are folders of masks."""
    prepared = sorted(folder.glob("*" + PREPARED))
    if prepared:
        return prepared
    if (folder / "labels.json").is_file():
        found = sorted(folder.glob("*.nii.gz"))
    else:
        found = sorted(path.parent for path in folder.glob("*/segmentations") if path.is_dir())
    if not found:
        raise DatasetError(
            f"{folder}: no anatomy in there; wanted are label maps (*.nii.gz) beside a labels.json that names their "
            "values, or subjects as TotalSegmentator's data set has them (NAME/segmentations/*.nii.gz)"
        )
    return found


def read_anatomy(path: Path) -> Anatomy:
    """An anatomy, ready to be painted."""
    content = _body(path)
    sides = [str(side) for side in content["sides"]]
    centres = {side: _triple(centre) for side, centre in zip(sides, content["centres"], strict=True)}
    return Anatomy(path.name.split(".")[0], content["tissue"], content["outside"], centres)


def _body(path: Path) -> dict[str, Array]:
    return _cached(path if path.is_file() else path / "segmentations", lambda: _prepare(*_structures(path)))


def _triple(values: Any) -> tuple[float, float, float]:
    first, second, third = (float(v) for v in values)
    return first, second, third


def _structures(path: Path) -> tuple[Array, dict[int, str]]:
    """One label map at GRID_MM and the name of each value."""
    if path.is_file():
        names = {int(value): str(name) for value, name in read_json(path.parent / "labels.json").items()}
        volume = read_labels(path)
        return resample_labels(volume.array, volume.spacing), names
    combined: Array | None = None
    names = {}
    for value, mask in enumerate(sorted((path / "segmentations").glob("*.nii.gz")), start=1):
        volume = read_labels(mask)
        part = resample_labels(volume.array, volume.spacing) > 0
        combined = np.zeros(part.shape, dtype=np.uint16) if combined is None else combined
        combined[part] = value
        names[value] = mask.name.split(".")[0]
    if combined is None:
        raise DatasetError(f"{path / 'segmentations'}: no *.nii.gz in there")
    return combined, names


def _prepare(labels: Array, names: Mapping[int, str]) -> dict[str, Array]:
    table = np.zeros(max([*names, int(labels.max())]) + 1, dtype=np.uint8)
    sides: dict[str, Array] = {}
    for value, name in names.items():
        kind = tissue_of(name)
        table[value] = KIDNEY_CODE if kind == "kidney" else CODE[kind]
        if kind == "kidney" and "cyst" not in name and (labels == value).any():
            sides["left" if "left" in name else "right"] = np.argwhere(labels == value).mean(axis=0) * GRID_MM
    tissue = table[labels]
    _add_bone(tissue, labels, {value for value, name in names.items() if "vertebra" in name})
    return {
        "tissue": tissue,
        "outside": _distance_to_hull(labels > 0),
        "sides": np.array(list(sides), dtype="U8"),
        "centres": np.array(list(sides.values()), dtype=np.float64).reshape(-1, 3),
    }


def _add_bone(tissue: Array, labels: Array, vertebrae: set[int]) -> None:
    """Discs between vertebrae, and a shell of cortical bone around marrow: neither is labelled."""
    spine = np.isin(labels, list(vertebrae))
    if spine.any():
        box = ndimage.find_objects(spine.astype(np.uint8))[0]
        part = spine[box]
        closed = ndimage.binary_dilation(part, iterations=4)
        closed = ndimage.binary_erosion(closed, iterations=4)
        view = tissue[box]
        view[closed & (view == 0)] = CODE["disc"]
    bone = tissue == CODE["marrow"]
    tissue[bone & ~ndimage.binary_erosion(bone)] = CODE["cortical bone"]


def _distance_to_hull(body: Array) -> Array:
    """Signed distance in mm to the closed hull of all labels, at every second voxel; negative inside."""
    small = body[::COARSE, ::COARSE, ::COARSE]
    step = GRID_MM * COARSE
    margin = int(np.ceil((CLOSING_MM + 60) / step))
    padded = np.pad(small, ((margin, margin),) * 3, mode="edge")
    padded[:, [0, -1]] = padded[:, :, [0, -1]] = False
    grown = ndimage.distance_transform_edt(~padded, step) <= CLOSING_MM
    hull = ndimage.distance_transform_edt(grown, step) > CLOSING_MM
    signed = ndimage.distance_transform_edt(~hull, step) - ndimage.distance_transform_edt(hull, step)
    return signed[margin:-margin].astype(np.float16)  # the sides keep their margin: fat and skin lie there


def hull_margin() -> float:
    """How far :attr:`Anatomy.outside` reaches beyond the labels to the sides, in mm."""
    step = GRID_MM * COARSE
    return float(np.ceil((CLOSING_MM + 60) / step)) * step


# --- kidneys


def find_masks(folder: Path) -> list[Path]:
    """Segmentations of a folder in KiTS layout."""
    found = sorted(folder.glob("*" + PREPARED)) or sorted(folder.glob("*/segmentation.nii.gz"))
    if not found:
        raise DatasetError(f"{folder}: no */segmentation.nii.gz in there; wanted is a folder in KiTS layout")
    return found


def read_kidneys(path: Path) -> list[KidneySource]:
    """The kidneys of a mask, with their masses; one that has them joined is left out."""
    content = _halves(path)
    name = path.stem if path.suffix == PREPARED else path.parent.name
    sources = []
    for side in ("left", "right"):
        if f"{side}_labels" in content:
            centre = _triple(content[f"{side}_centre"])
            sources.append(KidneySource(name, side, content[f"{side}_labels"], centre))
    return sources


def _halves(path: Path) -> dict[str, Array]:
    return _cached(path, lambda: _split_kidneys(path))


_LEAST_ML: Final = 20.0


def _split_kidneys(path: Path) -> dict[str, Array]:
    volume = read_labels(path)
    labels = resample_labels(volume.array, volume.spacing).astype(np.uint8)
    parts, count = ndimage.label(labels > 0, np.ones((3, 3, 3)))
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:] * GRID_MM**3 / 1000
    large = [number + 1 for number in np.argsort(sizes)[::-1][:2] if sizes[number] > _LEAST_ML]
    boxes = ndimage.find_objects(parts)
    middle = labels.shape[2] / 2
    result: dict[str, Array] = {}
    for number in large:
        box = boxes[number - 1]
        if (box[2].stop - box[2].start) * GRID_MM > 190:  # both kidneys in one piece
            continue
        own = np.where(parts[box] == number, labels[box], 0).astype(np.uint8)
        side = "left" if (box[2].start + box[2].stop) / 2 < middle else "right"  # x runs to the right in the array
        anchor = own == 1 if (own == 1).sum() * GRID_MM**3 / 1000 > _LEAST_ML else own > 0
        result[f"{side}_labels"] = own
        result[f"{side}_centre"] = np.argwhere(anchor).mean(axis=0)
    return result


# --- a folder that travels


def prepare_sources(anatomies: Sequence[Path], masks: Sequence[Path], out: Path) -> None:
    """Write what is read of the sources to ``out/anatomy`` and ``out/masks``: half as large, and read at once.

    Both folders are sources like those that they were made of.
    """
    for path in anatomies:
        _write_prepared(out / "anatomy" / (path.name.split(".")[0] + PREPARED), _body(path))
    for path in masks:
        _write_prepared(out / "masks" / (path.parent.name + PREPARED), _halves(path))


def _write_prepared(path: Path, content: dict[str, Array]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **content)  # type: ignore[arg-type]
