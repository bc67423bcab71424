"""Cases with their voxels, and results beside them: files, KiTS case folders and DICOM series.

Everything that is wrong with a case becomes a :class:`CaseError` with a reason in one line.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np

from kits_cascade.background import Background
from kits_cascade.errors import CaseError, FileFormatError, GeometryError, KitsCascadeError, UsageError
from kits_cascade.files import atomic_path
from kits_cascade.volumes import dicom, itk
from kits_cascade.volumes.find import InputCase
from kits_cascade.volumes.nifti import check_finite, packed_volume, read_volume, write_volume
from kits_cascade.volumes.volume import Array, StoredAs, Volume

AFFINE_TOLERANCE: Final = 1e-3  # summed over the matrix, as in the challenge's own check of submissions
_BODY_HU: Final = -200  # below it there is air and nothing else
_SPACING_MM: Final = (0.02, 30.0)


@dataclass(frozen=True)
class LoadedCase:
    """A case with its voxels, and what must be known to write a result beside it."""

    case: InputCase
    volume: Volume
    grid: itk.Grid | None = None  # of what SimpleITK has read
    warnings: tuple[str, ...] = field(default=())
    air_only: bool = False  # nothing in it that a network could find: the segmentation is empty


def affine_difference(first: Array, second: Array) -> float:
    """The challenge's measure: the sum of the absolute differences."""
    return float(np.abs(first - second).sum())


def check_same_grid(names: tuple[str, str], first: StoredAs, second: StoredAs, remedy: str = "") -> None:
    """Raise where two files, by their headers, do not have the same voxels in the same place."""
    own, other = names
    after = f"; {remedy}" if remedy else ""
    if first.shape != second.shape:
        turned = sorted(first.shape) == sorted(second.shape)
        why = " (the same axes in another order)" if turned else ""
        raise GeometryError(f"{own} has shape {first.shape}, {other} {second.shape}{why}{after}")
    apart = affine_difference(first.affine, second.affine)
    if apart > AFFINE_TOLERANCE:
        raise GeometryError(
            f"the affines of {own} and {other} differ by {apart:.4g} in all (at most {AFFINE_TOLERANCE:g} is allowed): "
            f"{_flat(first.affine)} and {_flat(second.affine)}{after}"
        )


def _flat(affine: Array) -> str:
    return str(np.round(affine[:3], 4).tolist()).replace(" ", "")


_begun: dict[InputCase, Background[LoadedCase]] = {}


def begin_loading(case: InputCase) -> None:
    """Begin to read a case in a thread, for the next :func:`load_case` to have it sooner, if it is this one."""
    _begun[case] = Background(lambda: _loaded(case))


def load_case(case: InputCase) -> LoadedCase:
    """Read a case into canonical order; what is wrong with it becomes a :class:`CaseError` with a one-line reason."""
    begun = _begun.pop(case, None)
    _begun.clear()
    return _loaded(case) if begun is None else begun.result()


def _loaded(case: InputCase) -> LoadedCase:
    if case.problem:
        raise CaseError(case.name, case.problem)
    try:
        return check_case(_read(case))
    except CaseError:
        raise
    except KitsCascadeError as error:
        raise CaseError(case.name, _one_line(str(error), case.path)) from error
    except MemoryError as error:
        raise CaseError(case.name, "does not fit into memory") from error
    except OSError as error:
        raise CaseError(case.name, _one_line(f"{error.strerror or error}", case.path)) from error


def check_case(loaded: LoadedCase) -> LoadedCase:
    """A case whose geometry and values have been looked at: errors are raised, oddities become warnings."""
    _check(loaded.volume, loaded.case.path)
    warnings, air_only = _judge_values(loaded.volume.array)
    return replace(loaded, warnings=loaded.warnings + warnings, air_only=air_only)


def _read(case: InputCase) -> LoadedCase:
    if case.kind == "dicom":
        series = dicom.read_series(case.path)
        return LoadedCase(case, series.volume, warnings=series.warnings)
    if case.kind == "itk":
        volume, grid = itk.read_itk(case.path)
        return LoadedCase(case, volume, grid)
    return LoadedCase(case, read_volume(case.path))


def _one_line(message: str, path: Path) -> str:
    # The case's name stands before it, and the folder in run.json.
    return " ".join(message.removeprefix(f"{path}: ").replace(f"{path.parent}/", "").split())


def _check(volume: Volume, path: Path) -> None:
    if 1 in volume.shape:
        raise FileFormatError(f"{path}: a single slice (shape {volume.stored.shape}); a 3-D volume is needed")
    if not all(_SPACING_MM[0] <= size <= _SPACING_MM[1] for size in volume.spacing):
        sizes = " x ".join(f"{size:g}" for size in volume.spacing[::-1])
        raise FileFormatError(f"{path}: a voxel size of {sizes} mm is not that of a CT; correct the header")
    check_finite(volume, path)


def _judge_values(array: Array) -> tuple[tuple[str, ...], bool]:
    """What the values say about the image: air only, or not in Hounsfield units."""
    low, high = float(array.min()), float(array.max())
    if high < _BODY_HU:
        return (f"air only: no voxel above {_BODY_HU} HU (highest {high:g}); the segmentation is empty",), True
    if low == high:
        return (f"every voxel is {low:g}: no image; the segmentation is empty",), True
    if low >= 0 and high > np.iinfo(np.uint8).max:
        return (f"lowest value {low:g}: these may not be Hounsfield units (air is -1000); check the result",), False
    return (), False


def result_path(case: InputCase, out_folder: Path) -> Path:
    """Where the result of a case is written. Never among the inputs: the next run would take it for one."""
    folder = case.path.parent
    if case.path.exists() and case.kind in {"nifti", "itk"} and out_folder.exists() and out_folder.samefile(folder):
        raise UsageError(f"{out_folder} is the folder of the inputs; choose another one for the results")
    return out_folder / case.result_name


def packed_result(loaded: LoadedCase, labels: Array) -> bytes | None:
    """The file that :func:`write_result` writes; None for formats that are written in one go."""
    if loaded.grid is not None or not loaded.case.result_name.endswith(".gz"):
        return None
    return packed_volume(loaded.volume, labels.astype(np.uint8, copy=False))


def write_result(loaded: LoadedCase, labels: Array, out_folder: Path, packed: bytes | None = None) -> Path:
    """Write a label map (canonical, full size) in the shape, affine, orientation and format of the input.

    ``packed``: the file's content, where it is made already.
    """
    path = result_path(loaded.case, out_folder)
    if packed is not None:
        with atomic_path(path) as temporary:
            temporary.write_bytes(packed)
        return path
    data = labels.astype(np.uint8, copy=False)
    if loaded.grid is not None:
        itk.write_itk(path, loaded.volume, data, loaded.grid)
    else:
        write_volume(path, loaded.volume, data)
    return path
