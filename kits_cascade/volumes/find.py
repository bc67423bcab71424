"""Which cases there are in what a user hands in: by names alone, so that a folder of a thousand is listed at once.

What is wrong with a case is said when it is loaded, so that one bad case never keeps the others from being worked on.
Nothing that may be meant as a case is passed over in silence.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from kits_cascade.errors import UsageError
from kits_cascade.volumes import dicom, itk
from kits_cascade.volumes.nifti import case_name, is_nifti
from kits_cascade.words import some

Kind = Literal["nifti", "itk", "dicom", "kits"]

KITS_IMAGE: Final = "imaging.nii.gz"
_KITS_FOLDER: Final = re.compile(r"case_\d{5}")
_CHANNEL: Final = re.compile(r"(?P<name>.+)_(?P<number>\d{4})")
_DEPTH: Final = 5  # patient / study / series, and some
_FOREIGN: Final = (".hdr", ".img", ".img.gz", ".mgz", ".mgh", ".nii.bz2", ".nii.zst", ".nii.xz", ".mnc")
_MARKS_OF_OUTPUT: Final = ("run.json", ".kits-cascade")
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


def find_inputs(source: Path) -> list[InputCase]:
    """All cases in ``source``, sorted by name; names are unique."""
    if source.is_file():
        return [_printable(_file_case(source))]
    if not source.exists():
        raise UsageError(f"{source}: no such file or folder; needed is {TAKES}")
    try:
        found = list(_folder_cases(source))
    except OSError as error:
        raise UsageError(f"{source}: the folder cannot be read ({error.strerror})") from error
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


def _entries(folder: Path) -> tuple[list[Path], list[Path]]:
    """Files and folders in a folder. What is neither (a link to nothing) counts as a file: reading it tells."""
    # Hidden files are no cases: among them are the ._x.nii.gz companions that macOS leaves on shared drives.
    visible = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    return [path for path in visible if not path.is_dir()], [path for path in visible if path.is_dir()]


def _folder_cases(source: Path) -> Iterator[InputCase]:
    name = source.resolve().name
    if (source / KITS_IMAGE).is_file():
        yield InputCase(name, source / KITS_IMAGE, "kits")
        return
    files, folders = _entries(source)
    images = [path for path in files if is_nifti(path) or itk.is_itk(path)]
    others = sorted(set(files).difference(images))
    yield from _image_cases(images)
    yield from _foreign(others)
    holds_series = dicom.holds_dicom(others)
    if holds_series:
        yield InputCase(name, source, "dicom")
    nested = [case for folder in folders for case in _nested_cases(folder, folder.name, _DEPTH)]
    yield from nested
    if nested and not images and not holds_series:
        yield from _useless(folders, nested)


def _foreign(files: Iterable[Path]) -> Iterator[InputCase]:
    """Images of kinds that are not read here: named, since whoever put them there waits for a result."""
    for path in files:
        if path.name.lower().endswith(_FOREIGN) or is_nifti(path.with_name(path.name.lower())):
            why = f"files of this kind are not read here ({path.name}); convert it to .nii.gz"
            yield InputCase(path.name, path, "nifti", why)


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
    try:
        files, folders = _entries(folder)
    except OSError as error:
        yield InputCase(name, folder, "dicom", f"the folder cannot be read ({error.strerror})")
        return
    if dicom.holds_dicom(files):
        yield InputCase(name, folder, "dicom")
    for inner in folders if depth > 0 else ():
        yield from _nested_cases(inner, f"{name}_{inner.name}", depth - 1)


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
    listed = some((path.name for path in paths), 4)
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
