"""Which predictions belong to which truths, and whether a pair may be scored at all."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from kits_cascade.errors import CaseError, DatasetError, KitsCascadeError
from kits_cascade.evaluation.metrics import LabelPair
from kits_cascade.labels import LABEL_NAMES
from kits_cascade.volumes.cases import check_same_grid
from kits_cascade.volumes.kits import find_kits_cases
from kits_cascade.volumes.nifti import NIFTI_ENDINGS, case_name, is_nifti, read_header, read_labels
from kits_cascade.volumes.volume import Spacing, StoredAs, Volume, to_stored

HIGHEST_LABEL: Final = max(LABEL_NAMES)
Files = dict[str, list[Path]]


@dataclass(frozen=True)
class Finding:
    """Something about a case that keeps it from being scored."""

    kind: str  # error, missing or extra
    case: str
    message: str

    def __str__(self) -> str:
        return f"{self.case}: {self.message}"


@dataclass(frozen=True)
class Pairing:
    """Pairs to score, and what cannot be paired."""

    pairs: tuple[tuple[str, Path, Path], ...]  # case, prediction, truth
    findings: tuple[Finding, ...]


def nifti_files(folder: Path) -> Files:
    """NIfTI files in a folder by case; several files may claim one case."""
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder")
    files: Files = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and is_nifti(path) and not path.name.startswith("."):
            files.setdefault(case_name(path), []).append(path)
    return files


def truth_files(folder: Path) -> Files:
    """Label files by case: a folder of label files, one of the challenge's layouts, or a raw nnU-Net dataset."""
    files = nifti_files(folder)
    if files:
        return files
    try:
        cases = find_kits_cases(folder)
    except DatasetError as error:
        raise DatasetError(
            f"{folder}: no truth here; it must hold label files (case_00000.nii.gz, ...) or case folders with a "
            "segmentation (case_00000/segmentation.nii.gz, ...)"
        ) from error
    return {case.name: _twins(case.segmentation) for case in cases if case.segmentation is not None}


def _twins(path: Path) -> list[Path]:
    """The file, and its like with the other ending."""
    stem = next(path.name[: -len(ending)] for ending in NIFTI_ENDINGS if path.name.endswith(ending))
    return [twin for ending in NIFTI_ENDINGS if (twin := path.with_name(stem + ending)).is_file()]


def pair_up(predictions: Path, truths: Path) -> Pairing:
    """Match a folder of predictions with its truth by case name."""
    predicted, true = nifti_files(predictions), truth_files(truths)
    if not predicted:
        raise DatasetError(f"{predictions}: no predictions (*.nii.gz or *.nii) in this folder")
    pairs, findings = [], []
    for case in sorted(predicted.keys() | true.keys()):
        mine, theirs = predicted.get(case, []), true.get(case, [])
        if not mine:
            findings.append(Finding("missing", case, "there is no prediction for it"))
        elif not theirs:
            findings.append(Finding("extra", case, f"{_names(mine)}: there is no truth for it"))
        elif len(mine) > 1 or len(theirs) > 1:
            double = mine if len(mine) > 1 else theirs
            findings.append(Finding("error", case, f"{len(double)} files for one case: {_names(double)}; remove one"))
        else:
            pairs.append((case, mine[0], theirs[0]))
    return Pairing(tuple(pairs), tuple(findings))


def _names(paths: Iterable[Path]) -> str:
    return ", ".join(path.name for path in paths)


def read_label_map(path: Path, allow_float: bool = False) -> Volume:
    """A label map with KiTS labels in an integer type; anything else is an error."""
    stored = read_header(path)[2].get_data_dtype()
    if stored.kind not in "iu" and not allow_float:
        raise KitsCascadeError(
            f"{path}: labels are stored as {stored}; they must be whole numbers in an integer type. Save as uint8, "
            "or allow whole numbers in a floating type with --allow-float"
        )
    volume = read_labels(path)
    # Whether a label above 3 is there shows in the highest one; which, only matters for the message.
    if to_stored(volume).max() > HIGHEST_LABEL:  # in the order of memory: several times as fast
        wrong = [int(label) for label in np.unique(volume.array) if label > HIGHEST_LABEL]
        raise KitsCascadeError(f"{path}: has label {', '.join(map(str, wrong))}; labels are 0 to {HIGHEST_LABEL}")
    return volume


def check_same_geometry(prediction: Path, truth: Path) -> None:
    """Raise where two files do not have the same voxels in the same place. Reads headers only."""
    first, second = (StoredAs(*read_header(path)) for path in (prediction, truth))
    check_same_grid(("the prediction", "the truth"), first, second, "write the prediction on the grid of its image")


def header_spacing(volume: Volume) -> Spacing:
    """Voxel size (z, y, x) as the header states it, which the challenge scores with.

    Where header and affine do not agree, the affine is right: it is what places the voxels.
    """
    stated = np.asarray(volume.stored.header["pixdim"][1:4], dtype=np.float64)
    canonical = np.empty(3)
    canonical[volume.stored.orientation[:, 0].astype(int)] = stated
    z, y, x = canonical[::-1].tolist()
    return (z, y, x) if np.allclose((z, y, x), volume.spacing, rtol=1e-4) else volume.spacing


def read_pair(case: str, prediction: Path, truth: Path, allow_float: bool = False) -> LabelPair:
    """Both label maps of a case, checked, and cut to their foreground."""
    try:
        check_same_geometry(prediction, truth)
        predicted = read_label_map(prediction, allow_float)
        true = read_label_map(truth, allow_float)
    except KitsCascadeError as error:
        raise CaseError(case, str(error)) from error
    except (OSError, MemoryError) as error:
        raise CaseError(case, f"cannot be read: {error or type(error).__name__}") from error
    return LabelPair.cut(true.array, predicted.array, header_spacing(predicted))
