"""Files with a whole series in them (Enhanced CT): each frame's place, and the voxels, by pydicom.

ITK reads such files too, but takes their slices to be evenly spaced whatever their positions say.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import nibabel as nib
import numpy as np

from kits_cascade.errors import FileFormatError, MissingExtraError
from kits_cascade.volumes.dicom_extra import load_pydicom
from kits_cascade.volumes.dicom_geometry import Slice
from kits_cascade.volumes.itk import Grid
from kits_cascade.volumes.volume import Array, Volume, volume_from_stored


def frame_slices(file: Slice) -> list[Slice]:
    """A slice for each frame, with its own place."""
    place = f"{file.path.parent}: {file.path.name} holds many slices in one file, whose positions cannot be checked"
    try:
        header = load_pydicom().dcmread(file.path, stop_before_pixels=True)
    except MissingExtraError as error:
        raise FileFormatError(f"{place} without pydicom ({error})") from error
    try:
        shared, frames = header.SharedFunctionalGroupsSequence[0], header.PerFrameFunctionalGroupsSequence
        return [_frame(file, number, [own, shared]) for number, own in enumerate(frames)]
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise FileFormatError(
            f"{place}; export the series as single slices, or convert it to NIfTI (dcm2niix)"
        ) from error


def _frame(file: Slice, number: int, groups: list[Any]) -> Slice:
    def group(name: str) -> Any:
        return next(found[name].value[0] for found in groups if name in found)

    try:
        rescale = group("PixelValueTransformationSequence")
        values = (float(rescale.RescaleSlope), float(rescale.RescaleIntercept))
    except StopIteration:
        values = (1.0, 0.0)
    try:
        return replace(
            file,
            frame=number,
            position=_numbers(group("PlanePositionSequence").ImagePositionPatient),
            orientation=_numbers(group("PlaneOrientationSequence").ImageOrientationPatient),
            pixel_mm=_numbers(group("PixelMeasuresSequence").PixelSpacing),
            rescale=values,
        )
    except StopIteration as error:
        raise ValueError(f"frame {number + 1} has no place") from error


def _numbers(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def read_frames(ordered: list[Slice]) -> Volume:
    """The voxels of the one file, from its first to its last slice in space."""
    first, last = ordered[0], ordered[-1]
    row, column = np.reshape(first.orientation, (2, 3))
    step = (np.array(last.position) - first.position) / (len(ordered) - 1)
    length = float(np.linalg.norm(step))
    grid = Grid((*first.pixel_mm[::-1], length), first.position, tuple(np.stack([row, column, step / length], 1).flat))
    header = nib.Nifti1Header()
    header.set_xyzt_units("mm")
    header.set_qform(grid.affine, code=1)
    header.set_sform(grid.affine, code=1)
    return volume_from_stored(_values(ordered).transpose(2, 1, 0), grid.affine, header)


def _values(ordered: list[Slice]) -> Array:
    path = ordered[0].path
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stored: Array = load_pydicom().dcmread(path).pixel_array
    except Exception as error:  # whatever a codec may raise
        raise FileFormatError(f"{path.parent}: {path.name} cannot be read ({' '.join(str(error).split())})") from error
    array = np.empty(stored.shape, dtype=np.float32)
    for index, item in enumerate(ordered):
        slope, intercept = item.rescale
        array[index] = stored[item.frame] * slope + intercept
    whole = all(float(value).is_integer() for item in ordered for value in item.rescale)
    return array.astype(np.int32) if whole else array
