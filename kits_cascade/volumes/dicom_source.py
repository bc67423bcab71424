"""A CT series as other DICOM objects refer to it: the header of every file, and where each of its planes lies.

Labels are brought to the planes one by one, so that a series which was sent in any order, turned about, oblique, or
with slices left out gets its labels where they belong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from kits_cascade.errors import FileFormatError, GeometryError
from kits_cascade.volumes.dicom import series_slices
from kits_cascade.volumes.dicom_extra import load_pydicom
from kits_cascade.volumes.dicom_geometry import Slice, slice_normal
from kits_cascade.volumes.volume import Array, Volume

_LPS: Final = np.diag([-1.0, -1.0, 1.0, 1.0])
_OFF: Final = 0.3  # of a voxel: how far a plane may lie from a layer of the labels
_NEEDED: Final = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "FrameOfReferenceUID")
# May be empty but not absent in what is made of the series, and are often absent in anonymised ones.
_MAY_BE_EMPTY: Final = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)


@dataclass(frozen=True)
class SourceSeries:
    """The headers of a series without its voxels, and its planes: one for each file, or each frame of the one file."""

    headers: tuple[Any, ...]
    planes: tuple[Slice, ...]

    @property
    def series_uid(self) -> str:
        """The UID of the series."""
        return str(self.headers[0].SeriesInstanceUID)


def read_source(folder: Path) -> SourceSeries:
    """The series in a folder, its planes in order along their normal (in a multi-frame file: as they are stored)."""
    pydicom = load_pydicom()
    slices, _ = series_slices(folder)
    paths = list(dict.fromkeys(item.path for item in slices))
    if len(paths) > 1:
        normal = slice_normal(slices[0])
        slices = sorted(slices, key=lambda item: float(np.dot(item.position, normal)))
        paths = [item.path for item in slices]
    headers = tuple(pydicom.dcmread(path, stop_before_pixels=True) for path in paths)
    for path, header in zip(paths, headers, strict=True):
        _complete(path, header)
    return SourceSeries(headers, tuple(slices))


def _complete(path: Path, header: Any) -> None:
    """Refuse a header that nothing can refer to, and fill in what may be empty."""
    missing = [name for name in _NEEDED if not header.get(name)]
    if missing:
        raise FileFormatError(
            f"{path.parent}: {path.name} has no {', '.join(missing)}, which SEG and SR must refer to; "
            "export the original series from the archive"
        )
    for name in _MAY_BE_EMPTY:
        if name not in header:
            setattr(header, name, "")
    if header.PatientSex not in {"M", "F", "O", "", None}:
        header.PatientSex = "O"


def labels_on_planes(volume: Volume, labels: Array, planes: Sequence[Slice]) -> Array:
    """For each plane its labels, row by row; ``labels`` are canonical, on the grid of ``volume``."""
    first = planes[0]
    if labels.shape != volume.shape or any(item.size != first.size for item in planes):
        raise _not_on_grid("their shapes differ")
    to_index = np.linalg.inv(_LPS @ volume.affine)
    along = np.array(first.orientation).reshape(2, 3).T * first.pixel_mm[::-1]  # a step along columns, along rows
    steps = to_index[:3, :3] @ along
    axes = np.abs(steps).argmax(axis=0)
    signs = np.sign(steps[axes, [0, 1]])
    ideal = np.zeros((3, 2))
    ideal[axes, [0, 1]] = signs
    if axes[0] == axes[1] or np.abs(steps - ideal).max() * max(first.size) > _OFF:
        raise _not_on_grid("their axes or voxel sizes differ")
    layers = _Layers(labels.transpose(2, 1, 0), int(axes[0]), int(axes[1]), signs)
    if layers.view.shape[1:] != first.size[::-1]:
        raise _not_on_grid(f"a plane has {first.size[1]} x {first.size[0]} pixels, they {layers.view.shape[1:]}")
    places = np.array([to_index[:3, :3] @ item.position + to_index[:3, 3] for item in planes])
    return layers.at(places)


class _Layers:
    """Labels as a pile of planes: ``view`` is indexed layer, row, column, as the planes have rows and columns."""

    def __init__(self, xyz: Array, column_axis: int, row_axis: int, signs: Array) -> None:
        self._axis = 3 - column_axis - row_axis
        view = xyz.transpose(self._axis, row_axis, column_axis)
        self.view = view[:, :: int(signs[1]), :: int(signs[0])]
        # The index at which the first pixel of a plane must lie: at the far end of an axis that runs the other way.
        self._corner = np.zeros(3)
        for axis, sign in ((column_axis, signs[0]), (row_axis, signs[1])):
            self._corner[axis] = 0 if sign > 0 else xyz.shape[axis] - 1

    def at(self, places: Array) -> Array:
        """The layers at the given places of the planes' first pixels, in indices of the labels."""
        layers = np.rint(places[:, self._axis]).astype(int)
        corners = np.repeat(self._corner[None], len(places), axis=0)
        corners[:, self._axis] = layers
        if layers.min() < 0 or layers.max() >= len(self.view):
            raise _not_on_grid("some planes lie outside of them")
        if np.abs(places - corners).max() > _OFF:
            raise _not_on_grid(f"a plane lies {np.abs(places - corners).max():.2f} voxels beside them")
        if np.array_equal(layers, np.arange(len(self.view))):
            return self.view  # no copy
        planes: Array = self.view[layers]
        return planes


def _not_on_grid(why: str) -> GeometryError:
    return GeometryError(
        f"the labels do not lie on the grid of the series ({why}); give the series they were made from"
    )
