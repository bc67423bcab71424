"""Volumes by SimpleITK: .mha, .mhd and .nrrd. ITK's world is LPS, ours is NIfTI's RAS."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np

from kits_cascade.errors import FileFormatError, GeometryError
from kits_cascade.files import atomic_path
from kits_cascade.volumes.volume import Array, Volume, to_stored, volume_from_stored

# Headers with a file of voxels beside them are read, and their results are written as one file.
_RESULT_ENDING: Final = {".mha": ".mha", ".mhd": ".mha", ".nrrd": ".nrrd", ".nhdr": ".nrrd"}
_LPS_TO_RAS: Final = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Grid:
    """An ITK image's place in the world, number by number as the file gave it."""

    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]

    @property
    def affine(self) -> Array:
        """From voxel indices to RAS millimetres."""
        affine = np.eye(4)
        affine[:3, :3] = np.reshape(self.direction, (3, 3)) * np.asarray(self.spacing)
        affine[:3, 3] = self.origin
        result: Array = _LPS_TO_RAS @ affine
        return result


def is_itk(path: Path) -> bool:
    """By its name."""
    return path.suffix.lower() in _RESULT_ENDING


def result_ending(path: Path) -> str:
    """Ending of the result for an input."""
    return _RESULT_ENDING[path.suffix.lower()]


@contextmanager
def quiet_itk() -> Iterator[None]:
    """Without ITK's own warnings on the terminal: what matters is checked and said in our words."""
    import SimpleITK

    before = SimpleITK.ProcessObject.GetGlobalWarningDisplay()
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        SimpleITK.ProcessObject.SetGlobalWarningDisplay(before)


def reason(error: Exception) -> str:
    """The telling line of an ITK exception: the last one, without the C++ file and the object's address."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].split("): ", 1)[-1] if lines else type(error).__name__


def read_itk(path: Path) -> tuple[Volume, Grid]:
    """Read a file in canonical order; also its own grid, for writing."""
    import SimpleITK

    if not path.is_file():
        raise FileFormatError(f"{path}: no such file")
    try:
        with quiet_itk():
            image = SimpleITK.ReadImage(str(path))
    except RuntimeError as error:
        raise FileFormatError(f"{path}: cannot be read ({reason(error)})") from error
    return volume_of(image, path)


def volume_of(image: Any, path: Path) -> tuple[Volume, Grid]:
    """A canonical volume from a SimpleITK image; ``path`` is for messages."""
    import SimpleITK

    if image.GetDimension() == 4 and image.GetSize()[3] == 1:
        image = image[:, :, :, 0]
    if image.GetDimension() != 3:
        raise FileFormatError(
            f"{path}: {image.GetDimension()}-D image of shape {image.GetSize()}; a 3-D volume is needed"
        )
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise FileFormatError(f"{path}: {image.GetNumberOfComponentsPerPixel()} values per voxel; a CT has one channel")
    grid = Grid(image.GetSpacing(), image.GetOrigin(), image.GetDirection())
    array = _small(SimpleITK.GetArrayFromImage(image))
    header = nib.Nifti1Header()
    header.set_xyzt_units("mm")
    header.set_qform(grid.affine, code=1)
    header.set_sform(grid.affine, code=1)
    try:
        return volume_from_stored(array.transpose(2, 1, 0), grid.affine, header), grid
    except GeometryError as error:
        raise GeometryError(f"{path}: {error}") from error


def _small(array: Array) -> Array:
    if array.dtype.kind == "f" and array.dtype.itemsize > 4:
        return array.astype(np.float32)
    if array.dtype.itemsize > 4:
        return array.astype(np.int32)
    return array


def grid_of(affine: Array) -> Grid:
    """ITK's numbers for an affine in RAS millimetres."""
    lps = _LPS_TO_RAS @ affine
    spacing = np.sqrt((lps[:3, :3] ** 2).sum(axis=0))
    return Grid(tuple(spacing.tolist()), tuple(lps[:3, 3].tolist()), tuple((lps[:3, :3] / spacing).ravel().tolist()))


def image_of(volume: Volume, labels: Array, grid: Grid | None = None) -> Any:
    """Labels as a SimpleITK image, in the axes and the place of the input."""
    import SimpleITK

    grid = grid or grid_of(volume.stored.affine)
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(to_stored(volume, labels).transpose(2, 1, 0)))
    image.SetSpacing(grid.spacing)
    image.SetOrigin(grid.origin)
    image.SetDirection(grid.direction)
    return image


def write_itk(path: Path, volume: Volume, labels: Array, grid: Grid) -> None:
    """Write labels in an ITK format, on exactly the grid that was read, atomically."""
    import SimpleITK

    image = image_of(volume, labels, grid)
    with atomic_path(path) as temporary:
        try:
            SimpleITK.WriteImage(image, str(temporary), useCompression=True)
        except RuntimeError as error:
            raise OSError(f"{path}: cannot be written ({reason(error)})") from error
