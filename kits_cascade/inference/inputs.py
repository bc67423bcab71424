"""What a user can hand in: files, KiTS case folders and DICOM series; each becomes a named case.

Finding looks at names only, so that a folder of a thousand cases is listed at once. What is wrong with a case is said
when it is loaded, so that one bad case never keeps the others from being worked on.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal

import numpy as np

from kits_cascade.errors import CaseError, FileFormatError, KitsCascadeError, UsageError
from kits_cascade.inference import dicom, itk
from kits_cascade.volume import Array, Volume, case_name, check_finite, is_nifti, read_volume, write_volume

Kind = Literal["nifti", "itk", "dicom", "kits"]

KITS_IMAGE: Final = "imaging.nii.gz"
_KITS_FOLDER: Final = re.compile(r"case_\d{5}")
_CHANNEL: Final = re.compile(r"(?P<name>.+)_(?P<number>\d{4})")
_DEPTH: Final = 5  # patient / study / series, and some
_MARKS_OF_OUTPUT: Final = ("run.json", ".kits-cascade")
_BODY_HU: Final = -200  # below it there is air and nothing else
_SPACING_MM: Final = (0.02, 30.0)
TAKES: Final = (
    "a NIfTI file (.nii.gz, .nii), .mha, .mhd or .nrrd; a folder of such files; KiTS case folders with imaging.nii.gz; "
    "a folder of DICOM slices, or a folder of such folders"
)


@dataclass(frozen=True)
class InputCase:
    """One case: what it is called, and where it lies."""

    name: str
    path: Path  # the file, or the folder of a DICOM series
    kind: Kind
    problem: str = ""  # why it cannot be loaded, where its name alone tells

    @property
    def result_name(self) -> str:
        """File name of the result: the case's name, in the format of the input."""
        if self.kind == "itk":
            return self.name + itk.result_ending(self.path)
        plain = self.kind == "nifti" and self.path.name.endswith(".nii")
        return self.name + (".nii" if plain else ".nii.gz")


@dataclass(frozen=True)
class LoadedCase:
    """A case with its voxels, and what must be known to write a result beside it."""

    case: InputCase
    volume: Volume
    grid: itk.Grid | None = None  # of what SimpleITK has read
    warnings: tuple[str, ...] = field(default=())
    air_only: bool = False  # nothing in it that a network could find: the segmentation is empty


def find_cases(source: Path) -> list[InputCase]:
    """All cases in ``source``, sorted by name; names are unique."""
    if source.is_file():
        return [_file_case(source)]
    if not source.exists():
        raise UsageError(f"{source}: no such file or folder; needed is {TAKES}")
    found = list(_folder_cases(source))
    if not found:
        raise UsageError(f"{source}: no case in it; needed is {TAKES}")
    return sorted(_unique([_printable(case) for case in found]), key=lambda case: case.name)


def _printable(case: InputCase) -> InputCase:
    """A name that is no text (written under another encoding) can neither be shown nor put into run.json."""
    name = "".join("?" if unicodedata.category(letter) in {"Cc", "Cs"} else letter for letter in case.name)
    if name == case.name:
        return case
    return replace(case, name=name, problem="its file name is not valid text (UTF-8); rename it")


def _file_case(path: Path) -> InputCase:
    if is_nifti(path):
        name = path.resolve().parent.name if path.name == KITS_IMAGE else case_name(path)
        return InputCase(name, path, "kits" if path.name == KITS_IMAGE else "nifti")
    if itk.is_itk(path):
        return InputCase(case_name(path), path, "itk")
    if dicom.looks_like_dicom(path):
        raise UsageError(f"{path}: a single DICOM file; give the folder of its series")
    raise UsageError(f"{path}: not a kind of file that is read here; needed is {TAKES}")


def _visible(folder: Path) -> list[Path]:
    # Hidden files are no cases: among them are the ._x.nii.gz companions that macOS leaves on shared drives.
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _folder_cases(source: Path) -> Iterator[InputCase]:
    name = source.resolve().name
    if (source / KITS_IMAGE).is_file():
        yield InputCase(name, source / KITS_IMAGE, "kits")
        return
    entries = _visible(source)
    files = [path for path in entries if path.is_file()]
    images = [path for path in files if is_nifti(path) or itk.is_itk(path)]
    yield from _image_cases(images)
    if not images and dicom.holds_dicom(files):
        yield InputCase(name, source, "dicom")
        return
    folders = [path for path in entries if path.is_dir()]
    nested = [case for folder in folders for case in _nested_cases(folder, folder.name, _DEPTH)]
    yield from nested
    if nested and not images:
        yield from _useless(folders, nested)


def _useless(folders: list[Path], cases: list[InputCase]) -> Iterator[InputCase]:
    """Folders beside case folders that hold no case: half a download, an empty export. To be named, not passed over."""
    used = {parent for case in cases for parent in case.path.parents} | {case.path for case in cases}
    for folder in folders:
        if folder not in used and not _is_output(folder):
            yield InputCase(folder.name, folder, "dicom", f"neither DICOM slices nor {KITS_IMAGE} in this folder")


def _is_output(folder: Path) -> bool:
    return any((folder / mark).exists() for mark in _MARKS_OF_OUTPUT)


def _nested_cases(folder: Path, name: str, depth: int) -> Iterator[InputCase]:
    if _is_output(folder):
        return
    if (folder / KITS_IMAGE).is_file():
        yield InputCase(folder.name, folder / KITS_IMAGE, "kits")
        return
    if _KITS_FOLDER.fullmatch(folder.name):
        yield InputCase(folder.name, folder / KITS_IMAGE, "kits", f"{KITS_IMAGE} is missing in {folder}")
        return
    entries = _visible(folder)
    if dicom.holds_dicom([path for path in entries if path.is_file()]):
        yield InputCase(name, folder, "dicom")
    elif depth > 0:
        for entry in entries:
            if entry.is_dir():
                yield from _nested_cases(entry, f"{name}_{entry.name}", depth - 1)


def _image_cases(images: list[Path]) -> Iterator[InputCase]:
    """Cases of the image files of one folder, channels told from numbered patients."""
    channels: dict[str, list[Path]] = defaultdict(list)
    for path in images:
        stem = case_name(path)
        numbered = _CHANNEL.fullmatch(stem)
        # case_name has taken _0000 away; x_0001 belongs to x only when there is an x_0000.
        first = numbered and any((path.parent / f"{numbered['name']}_0000{end}").exists() for end in _endings(path))
        channels[numbered["name"] if numbered and first else stem].append(path)
    for name, paths in channels.items():
        case = replace(_file_case(paths[0]), name=name)
        if len(paths) > 1:
            case = replace(case, problem=_several(name, paths))
        yield case


def _endings(path: Path) -> tuple[str, ...]:
    return (".nii.gz", ".nii") if is_nifti(path) else (path.suffix,)


def _several(name: str, paths: list[Path]) -> str:
    listed = ", ".join(path.name for path in paths[:4]) + (", ..." if len(paths) > 4 else "")
    if any(_CHANNEL.fullmatch(case_name(path)) for path in paths):
        return (
            f"{listed} look like channels of one case, and a CT has one; keep {name}_0000 alone, or rename the files "
            "if they are different patients"
        )
    return f"{len(paths)} files go by this name: {listed}; keep one, or rename the others"


def _unique(cases: list[InputCase]) -> Iterator[InputCase]:
    """One case for each name; the results would overwrite each other otherwise."""
    by_name: dict[str, list[InputCase]] = defaultdict(list)
    for case in cases:
        by_name[case.name].append(case)
    for same in by_name.values():
        first = same[0]
        if len(same) > 1:
            listed = ", ".join(str(case.path) for case in same[:4])
            first = replace(first, problem=f"{len(same)} inputs go by this name: {listed}; rename all but one")
        yield first


def load_case(case: InputCase) -> LoadedCase:
    """Read a case into canonical order; what is wrong with it becomes a :class:`CaseError` with a one-line reason."""
    if case.problem:
        raise CaseError(case.name, case.problem)
    try:
        return judged(_read(case))
    except CaseError:
        raise
    except KitsCascadeError as error:
        raise CaseError(case.name, _one_line(str(error), case.path)) from error
    except MemoryError as error:
        raise CaseError(case.name, "does not fit into memory") from error
    except OSError as error:
        raise CaseError(case.name, _one_line(f"{error.strerror or error}", case.path)) from error


def judged(loaded: LoadedCase) -> LoadedCase:
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


def write_result(loaded: LoadedCase, labels: Array, out_folder: Path) -> Path:
    """Write a label map (canonical, full size) in the shape, affine, orientation and format of the input."""
    path = result_path(loaded.case, out_folder)
    data = labels if labels.dtype == np.uint8 else labels.astype(np.uint8)
    if loaded.grid is not None:
        itk.write_itk(path, loaded.volume, data, loaded.grid)
    else:
        write_volume(path, loaded.volume, data)
    return path
