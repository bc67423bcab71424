"""Folders as the challenges publish them: which cases are there, and what their numbers say."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kits_cascade.errors import DatasetError, UsageError
from kits_cascade.volumes.nifti import NIFTI_ENDINGS, case_name

KITS23_CASES: Final = (*range(300), *range(400, 589))
KITS19_CASES: Final = tuple(range(210))
KITS19_TEST: Final = range(210, 300)
DATASET_CASES: Final = {"kits23": KITS23_CASES, "kits19": KITS19_CASES}

IMAGE_NAMES: Final = ("imaging",)
# KiTS21 has several annotations per case; the challenge's own evaluation takes the majority vote.
SEGMENTATION_NAMES: Final = ("segmentation", "aggregated_MAJ_seg")
# Where the case folders lie in a clone of each challenge's repository.
_INSIDE: Final = (".", "dataset", "data", "kits21/data")
_NUMBER: Final = re.compile(r"case_(\d{5})$")
_CHANNEL: Final = re.compile(r"_(\d{4})\.nii(\.gz)?$")
_RANGE: Final = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(frozen=True)
class KitsCase:
    """A case with its two files; a file that is not there is None."""

    name: str
    image: Path | None
    segmentation: Path | None

    @property
    def missing(self) -> str | None:
        """What is not there, in words; None when both files are."""
        absent = [word for word, path in (("image", self.image), ("segmentation", self.segmentation)) if path is None]
        return f"no {' and no '.join(absent)} file" if absent else None


def case_id(number: int) -> str:
    """The challenge's name of a case."""
    return f"case_{number:05d}"


def case_number(name: str) -> int | None:
    """The number in the challenge's name of a case; None for other names."""
    found = _NUMBER.fullmatch(name)
    return int(found.group(1)) if found else None


def contrast_phase(name: str) -> str | None:
    """Contrast phase that the challenge states: cases 0-499 are arterial, 500-589 nephrogenic; None where unknown."""
    number = case_number(name)
    if number is None or number > 589:
        return None
    return "arterial" if number < 500 else "nephrogenic"


def parse_cases(text: str | None, available: Iterable[int]) -> list[int]:
    """Numbers from a list such as ``0-19,400``, in ascending order; all that are available when there is no list.

    A range may run over numbers that do not exist (300-399); a number that is named alone must exist.
    """
    known = set(available)
    if text is None:
        return sorted(known)
    chosen: set[int] = set()
    for part in text.split(","):
        found = _RANGE.fullmatch(part.strip())
        if found is None:
            raise UsageError(f"cannot read the case list {text!r} at {part!r}; it looks like 0-19,400")
        first, last = int(found.group(1)), int(found.group(2) or found.group(1))
        inside = known & set(range(first, last + 1))
        if not inside:
            raise UsageError(f"there is no case {part.strip()}; there are {_spans(known)}")
        chosen |= inside
    return sorted(chosen)


def _spans(numbers: set[int]) -> str:
    """Numbers as the shortest list of ranges."""
    ordered = sorted(numbers)
    starts = [n for n in ordered if n - 1 not in numbers]
    ends = [n for n in ordered if n + 1 not in numbers]
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True)) or "none"


def chosen_names(source: Path, text: str | None) -> list[str] | None:
    """Names of the cases in a list such as ``0-19,400``, of those in ``source``; None when there is no list."""
    if text is None:
        return None
    numbers = {case_number(case.name) for case in find_kits_cases(source)} - {None}
    return [case_id(number) for number in parse_cases(text, (n for n in numbers if n is not None))]


def find_kits_cases(source: Path) -> list[KitsCase]:
    """All cases under ``source``, by name.

    ``source`` is the folder of the case folders, a clone of the repository of KiTS19, KiTS21 or KiTS23, or a dataset in
    nnU-Net's raw format.
    """
    if not source.is_dir():
        raise DatasetError(f"{source}: no such folder; it must hold the folders case_00000, case_00001, ...")
    if (source / "imagesTr").is_dir() or (source / "labelsTr").is_dir():
        return _find_raw(source)
    for inside in _INSIDE:
        cases = [case for case in _case_folders(source / inside) if case.image or case.segmentation]
        if cases:
            return cases
    raise DatasetError(
        f"{source}: no KiTS cases here; there must be folders such as case_00000 with imaging.nii.gz and "
        "segmentation.nii.gz (KiTS19, KiTS23) or aggregated_MAJ_seg.nii.gz (KiTS21)"
    )


def _case_folders(folder: Path) -> Iterator[KitsCase]:
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.name.startswith("."):
            yield KitsCase(path.name, _file(path, IMAGE_NAMES), _file(path, SEGMENTATION_NAMES))


def _file(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The compressed file where both are there: it can be linked into a dataset as it is."""
    candidates = (folder / f"{name}{ending}" for name in names for ending in NIFTI_ENDINGS)
    return next((path for path in candidates if path.is_file()), None)


def _find_raw(source: Path) -> list[KitsCase]:
    images, labels = (
        {case_name(path): path for path in _niftis(source / folder)} for folder in ("imagesTr", "labelsTr")
    )
    names = sorted(images.keys() | labels.keys())
    if not names:
        raise DatasetError(f"{source}: imagesTr and labelsTr are empty")
    return [KitsCase(name, images.get(name), labels.get(name)) for name in names]


def _niftis(folder: Path) -> Iterator[Path]:
    """Label maps, or the first channels of images; further channels are not images of their own."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        channel = _CHANNEL.search(path.name) if folder.name.startswith("images") else None
        first = channel is None or channel.group(1) == "0000"
        if first and path.name.endswith(NIFTI_ENDINGS) and not path.name.startswith("."):
            yield path


def kits19_test_cases(cases: Iterable[KitsCase]) -> set[str]:
    """KiTS19's test cases, for which no masks were published: images 210-299, none of which has a mask."""
    later = [case for case in cases if case_number(case.name) in KITS19_TEST]
    if any(case.segmentation for case in later):
        return set()
    return {case.name for case in later}
