"""DICOM series by SimpleITK, with their geometry checked before a voxel is believed.

ITK stacks whatever it is given: with a slice missing, the stack is silently squeezed. So the header of every slice is
read first, and missing slices, mixed series and a tilted gantry are named.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from kits_cascade.errors import FileFormatError
from kits_cascade.inference.itk import quiet_itk, reason, volume_of
from kits_cascade.volume import Array, Volume

_ENDINGS: Final = (".dcm", ".ima", ".dicom")
_SAMPLE: Final = 32  # files of a folder that are looked into, where no name tells
_PREAMBLE: Final = 128
_GAP: Final = 0.05  # of the slice distance: how far gaps may differ; positions are rounded in many scanners
_GAP_MM: Final = 0.02
_SAME_AXIS: Final = 1e-3

_MODALITY, _IMAGE_TYPE, _SERIES, _SERIES_TEXT = "0008|0060", "0008|0008", "0020|000e", "0008|103e"
_SERIES_NUMBER, _POSITION, _ORIENTATION, _PIXEL_MM = "0020|0011", "0020|0032", "0020|0037", "0028|0030"
_SLOPE, _INTERCEPT, _FRAMES = "0028|1053", "0028|1052", "0028|0008"


@dataclass(frozen=True)
class Slice:
    """What the header of one file says."""

    path: Path
    series: str
    text: str
    modality: str
    kind: str
    frames: int
    size: tuple[int, int]
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    pixel_mm: tuple[float, ...]
    rescale: tuple[float, ...]

    @property
    def is_volume(self) -> bool:
        """Part of a CT, and not a scout view."""
        return self.modality in {"CT", ""} and "LOCALIZER" not in self.kind


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
    if not folder.is_dir():
        raise FileFormatError(f"{folder}: no such folder")
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".") and looks_like_dicom(p))
    with quiet_itk():
        slices = [_slice(path) for path in files if path.name.upper() != "DICOMDIR"]
        chosen, warnings = _one_series(folder, slices)
        if any(item.frames > 1 for item in chosen):
            raise FileFormatError(
                f"{folder}: {chosen[0].path.name} holds many slices in one file, whose positions cannot be checked; "
                "export the series as single slices, or convert it to NIfTI (dcm2niix)"
            )
        ordered = _checked_order(folder, chosen)
        return Series(_read_voxels(folder, ordered), warnings)


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


def _checked_order(folder: Path, slices: list[Slice]) -> list[Slice]:
    """The slices from the first to the last along their normal, after all checks."""
    if len(slices) < 2:
        raise FileFormatError(f"{folder}: a single slice; a 3-D volume is needed")
    _check_alike(folder, slices)
    normal, positions = _normal(slices[0]), np.array([item.position for item in slices])
    along = positions @ normal
    order = np.argsort(along, kind="stable")
    _check_gaps(folder, [slices[i] for i in order], along[order])
    _check_tilt(folder, normal, positions[order], slices[0])
    return [slices[i] for i in order]


def _check_alike(folder: Path, slices: list[Slice]) -> None:
    unplaced = [item.path.name for item in slices if len(item.position) != 3 or len(item.orientation) != 6]
    if unplaced:
        raise FileFormatError(
            f"{folder}: {len(unplaced)} slices have no position in space (first {unplaced[0]}); "
            "export the original series from the archive"
        )
    traits: tuple[tuple[str, Callable[[Slice], Any]], ...] = (
        ("size", lambda item: item.size),
        ("pixel size", lambda item: tuple(round(v, 4) for v in item.pixel_mm)),
        ("orientation", lambda item: tuple(round(v, 3) + 0.0 for v in item.orientation)),
    )
    for what, trait in traits:
        counts = Counter(trait(item) for item in slices)
        if len(counts) > 1:
            odd = next(item for item in slices if trait(item) == counts.most_common()[-1][0])
            raise FileFormatError(
                f"{folder}: slices of different {what} in one series ({len(counts)} kinds; {odd.path.name} differs); "
                "separate them into folders of their own"
            )
    if len(slices[0].pixel_mm) != 2 or min(slices[0].pixel_mm) <= 0:
        raise FileFormatError(f"{folder}: pixel size {slices[0].pixel_mm} mm; it must be above zero")


def _normal(item: Slice) -> Array:
    row, column = np.array(item.orientation[:3]), np.array(item.orientation[3:])
    normal: Array = np.cross(row, column)
    length = np.linalg.norm(normal)
    if abs(length - 1) > _SAME_AXIS * 10:
        raise FileFormatError(f"{item.path.parent}: the axes of {item.path.name} are not at right angles")
    normal /= length
    return normal


def _check_gaps(folder: Path, slices: list[Slice], along: Array) -> None:
    gaps = np.diff(along)
    usual = float(np.median(gaps))
    same = np.flatnonzero(gaps < _GAP_MM)
    if len(same):
        first = slices[int(same[0]) + 1]
        raise FileFormatError(
            f"{folder}: {len(same)} slices lie where another lies (first {first.path.name}): a file twice, or several "
            "phases in one series; keep one of each"
        )
    odd = np.flatnonzero(np.abs(gaps - usual) > max(_GAP * usual, _GAP_MM))
    if not len(odd):
        return
    wide, at = gaps[odd].max(), int(odd[np.argmax(gaps[odd])])
    missing = sum(max(0, round(gap / usual) - 1) for gap in gaps[odd])
    between = f"between {slices[at].path.name} and {slices[at + 1].path.name}"
    if missing:
        raise FileFormatError(
            f"{folder}: {missing} missing slices ({wide:.2f} mm {between}, {usual:.2f} mm elsewhere); "
            "export the series again"
        )
    raise FileFormatError(
        f"{folder}: uneven slice distances, {gaps.min():.2f} to {gaps.max():.2f} mm ({wide:.2f} mm {between}); "
        "use a series with one slice distance"
    )


def _check_tilt(folder: Path, normal: Array, positions: Array, first: Slice) -> None:
    """Slices must be stacked along their normal: a tilted gantry shifts each one a little further."""
    path = positions[-1] - positions[0]
    sideways = path - (path @ normal) * normal
    drift = float(np.linalg.norm(sideways))
    if drift > max(first.pixel_mm):
        angle = math.degrees(math.atan2(drift, abs(float(path @ normal))))
        raise FileFormatError(
            f"{folder}: gantry tilt of {angle:.1f} degrees; use a reconstruction without tilt, or resample it to one"
        )


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
