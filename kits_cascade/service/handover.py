"""A case that one process has read, for another: voxels as plain numbers, and JSON. Neither can hold code.

Whoever takes it over believes nothing of it: the process that wrote it has read a stranger's file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np

from kits_cascade.errors import KitsCascadeError
from kits_cascade.files import read_json, write_json
from kits_cascade.service.uploads import Limits, RefusedError
from kits_cascade.volumes.cases import LoadedCase
from kits_cascade.volumes.find import InputCase
from kits_cascade.volumes.volume import Array, StoredAs, Volume, check_affine

_VOXELS: Final = "voxels.npy"
_ABOUT: Final = "case.json"


def store_case(loaded: LoadedCase, folder: Path) -> None:
    """Write a case into ``folder``, which its own files lie in."""
    volume, stored = loaded.volume, loaded.volume.stored
    np.save(folder / _VOXELS, volume.array, allow_pickle=False)
    write_json(
        folder / _ABOUT,
        {
            "kind": loaded.case.kind,
            "file": loaded.case.path.name,
            "warnings": loaded.warnings,
            "air_only": loaded.air_only,
            "affine": volume.affine.tolist(),
            "stored": {
                "shape": stored.shape,
                "affine": stored.affine.tolist(),
                "header": stored.header.binaryblock.hex(),
            },
        },
    )


def restore_case(folder: Path, limits: Limits) -> LoadedCase:
    """The case in ``folder``, its voxels left on disk until they are looked at. Raises RefusedError."""
    try:
        return _restored(folder, read_json(folder / _ABOUT), limits)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, KitsCascadeError) as error:
        raise RefusedError("what was read of it makes no case") from error


def _restored(folder: Path, about: dict[str, Any], limits: Limits) -> LoadedCase:
    # Changes stay in memory: whoever computes with the array may write into it, and torch wants to be able to.
    array: Array = np.load(folder / _VOXELS, mmap_mode="c", allow_pickle=False)
    if array.ndim != 3 or array.dtype.kind not in "iuf" or array.size > limits.voxels:
        raise ValueError(f"voxels {array.dtype} {array.shape}")
    stored = about["stored"]
    first, second, third = (int(size) for size in stored["shape"])
    own = StoredAs((first, second, third), _affine(stored["affine"]), _header(bytes.fromhex(stored["header"])))
    if sorted(own.shape) != sorted(array.shape):
        raise ValueError(f"a shape of {own.shape} for {array.shape}")
    kind: Any = "dicom" if about["kind"] == "dicom" else "nifti"
    case = InputCase("image", folder / Path(str(about["file"])).name, kind)
    volume = Volume(array, _affine(about["affine"]), own)
    warnings = tuple(str(warning) for warning in about["warnings"])
    return LoadedCase(case, volume, warnings=warnings, air_only=bool(about["air_only"]))


def _affine(rows: Any) -> Array:
    affine = np.array(rows, dtype=np.float64)
    if affine.shape != (4, 4):
        raise ValueError(f"an affine of shape {affine.shape}")
    check_affine(affine)
    return affine


def _header(block: bytes) -> Any:
    kind = nib.Nifti2Header if len(block) == nib.Nifti2Header.sizeof_hdr else nib.Nifti1Header
    return kind(block, check=False)
