"""DICOM series by SimpleITK, with their geometry checked before a voxel is believed.

ITK stacks whatever it is given: with a slice missing, the stack is silently squeezed. So the header of every slice is
read first, and missing slices, mixed series and a tilted gantry are named.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from kits_cascade.errors import FileFormatError
from kits_cascade.volumes.dicom_frames import frame_slices, read_frames
from kits_cascade.volumes.dicom_geometry import Slice, order_slices
from kits_cascade.volumes.itk import quiet_itk, reason, volume_of
from kits_cascade.volumes.volume import Array, Volume

_ENDINGS: Final = (".dcm", ".ima", ".dicom")
_SAMPLE: Final = 32  # files of a folder that are looked into, where no name tells
_PREAMBLE: Final = 128

_MODALITY, _IMAGE_TYPE, _SERIES, _SERIES_TEXT = "0008|0060", "0008|0008", "0020|000e", "0008|103e"
_SERIES_NUMBER, _POSITION, _ORIENTATION, _PIXEL_MM = "0020|0011", "0020|0032", "0020|0037", "0028|0030"
_SLOPE, _INTERCEPT, _FRAMES = "0028|1053", "0028|1052", "0028|0008"


@dataclass(frozen=True)
class Series:
    """A series as a volume, and what is worth knowing about it."""

    volume: Volume
    warnings: tuple[str, ...] = ()


def looks_like_dicom(path: Path) -> bool:
    """By its name, else by the four letters after the preamble."""
    if path.suffix.lower() in _ENDINGS:
        return True
    try:
        with path.open("rb") as stream:
            return stream.read(_PREAMBLE + 4)[_PREAMBLE:] == b"DICM"
    except OSError:
        return False


def holds_dicom(files: list[Path]) -> bool:
    """Whether there are DICOM files among ``files`` (of one folder)."""
    files = [path for path in files if path.name.upper() != "DICOMDIR"]
    return any(path.suffix.lower() in _ENDINGS for path in files) or any(map(looks_like_dicom, files[:_SAMPLE]))


def read_series(folder: Path) -> Series:
    """Read the one CT series in ``folder``; anything that makes its geometry doubtful is an error."""
    chosen, warnings = series_slices(folder)
    ordered = order_slices(folder, chosen)
    if ordered[0].frames > 1:
        volume = read_frames(ordered)
        return Series(replace(volume, array=_int16_where_it_fits(volume.array)), warnings)
    with quiet_itk():
        return Series(_read_voxels(folder, ordered), warnings)


def series_slices(folder: Path) -> tuple[list[Slice], tuple[str, ...]]:
    """The slices of the one CT series in ``folder``, in no order and not looked at, and what was set aside.

    Of a file with many slices: one for each, as they are stored.
    """
    if not folder.is_dir():
        raise FileFormatError(f"{folder}: no such folder")
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".") and looks_like_dicom(p))
    with quiet_itk():
        slices = [_slice(path) for path in files if path.name.upper() != "DICOMDIR"]
    chosen, warnings = _one_series(folder, slices)
    if any(item.frames > 1 for item in chosen):
        if len(chosen) > 1:
            raise FileFormatError(
                f"{folder}: {len(chosen)} files with many slices in each; put each into a folder of its own"
            )
        chosen = frame_slices(chosen[0])
    return chosen, warnings


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split("\\") if part.strip())
    except ValueError:
        return ()


def _slice(path: Path) -> Slice:
    import SimpleITK

    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise FileFormatError(f"{path.parent}: {path.name} is not a readable DICOM image ({reason(error)})") from error
    keys = set(reader.GetMetaDataKeys())

    def get(key: str) -> str:
        return _printable(reader.GetMetaData(key)).strip() if key in keys else ""

    return Slice(
        path=path,
        series=get(_SERIES),
        text=" ".join(filter(None, (get(_SERIES_NUMBER), get(_SERIES_TEXT)))),
        modality=get(_MODALITY).upper(),
        kind=get(_IMAGE_TYPE).upper(),
        frames=int(get(_FRAMES) or 1),
        size=(int(reader.GetSize()[0]), int(reader.GetSize()[1])),
        position=_numbers(get(_POSITION)),
        orientation=_numbers(get(_ORIENTATION)),
        pixel_mm=_numbers(get(_PIXEL_MM)),
        rescale=_numbers(f"{get(_SLOPE) or 1}\\{get(_INTERCEPT) or 0}"),
    )


def _printable(text: str) -> str:
    # Descriptions come in the file's own character set; what is no UTF-8 must not break run.json.
    return text.encode("utf-8", "replace").decode("utf-8", "replace")


def _describe(slices: list[Slice]) -> str:
    first = slices[0]
    kind = "scout view" if first.modality == "CT" and not first.is_volume else first.modality
    return f"'{first.text or first.series}' ({len(slices)} files{f', {kind}' if kind not in {'', 'CT'} else ''})"


def _one_series(folder: Path, slices: list[Slice]) -> tuple[list[Slice], tuple[str, ...]]:
    """The one CT series; scout views and other modalities beside it are set aside and named."""
    by_uid: dict[str, list[Slice]] = defaultdict(list)
    for item in slices:
        by_uid[item.series].append(item)
    groups = sorted(by_uid.values(), key=len, reverse=True)
    volumes, others = [], []
    for group in groups:
        real = [item for item in group if item.is_volume]
        aside = [item for item in group if not item.is_volume]
        volumes += [real] if real else []
        others += [aside] if aside else []
    if not volumes:
        listed = ", ".join(_describe(group) for group in others) or "nothing"
        raise FileFormatError(f"{folder}: no CT series in this folder; it holds {listed}")
    if len(volumes) > 1:
        listed = ", ".join(_describe(group) for group in volumes[:6])
        raise FileFormatError(
            f"{folder}: {len(volumes)} series in one folder: {listed}; put each series into a folder of its own"
        )
    warnings = tuple(f"set aside: {_describe(group)}" for group in others)
    return volumes[0], warnings


def _read_voxels(folder: Path, slices: list[Slice]) -> Volume:
    import SimpleITK

    names = [str(item.path) for item in slices]
    try:
        reader = SimpleITK.ImageSeriesReader()
        reader.SetFileNames(names)
        if len({item.rescale for item in slices}) > 1:
            # ITK takes the voxel type from the first slice; another slice's slope may need fractions.
            reader.SetOutputPixelType(SimpleITK.sitkFloat32)
        image = reader.Execute()
    except RuntimeError as error:
        raise FileFormatError(f"{folder}: cannot be read ({reason(error)})") from error
    volume, _ = volume_of(image, folder)
    return replace(volume, array=_int16_where_it_fits(volume.array))


def _int16_where_it_fits(array: Array) -> Array:
    """A rescale intercept makes ITK read 32 bits; the values of a CT nearly always fit into 16."""
    if array.dtype.kind not in "iu" or array.dtype.itemsize <= 2:
        return array
    limits = np.iinfo(np.int16)
    fits = limits.min <= array.min() and array.max() <= limits.max
    return array.astype(np.int16) if fits else array.astype(np.float32)
