"""Is a folder of predictions what the challenge takes? And if so, pack it."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from kits_cascade.errors import DatasetError, KitsCascadeError
from kits_cascade.evaluation.pairs import HIGHEST_LABEL, nifti_files
from kits_cascade.evaluation.score import check_writable
from kits_cascade.files import atomic_path
from kits_cascade.parallel import Progress, run_cases
from kits_cascade.volumes.cases import AFFINE_TOLERANCE, affine_difference
from kits_cascade.volumes.kits import find_kits_cases
from kits_cascade.volumes.nifti import case_name, read_header, read_volume

ENDING: Final = ".nii.gz"
# A zip that is the same for the same predictions: no times of files.
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class SubmissionCheck:
    """What was looked at, and what is wrong with it."""

    files: tuple[Path, ...]
    findings: tuple[str, ...]

    @property
    def ready(self) -> bool:
        """Nothing is wrong."""
        return not self.findings


def image_files(folder: Path) -> dict[str, Path]:
    """Images by the name that their prediction must have."""
    found = {case: paths[0] for case, paths in nifti_files(folder).items()}
    if not found:
        try:
            found = {case.name: case.image for case in find_kits_cases(folder) if case.image is not None}
        except DatasetError:
            found = {}
    if not found:
        raise DatasetError(f"{folder}: no images (*.nii.gz or *.nii, or case folders with imaging.nii.gz) here")
    return {f"{case}{ENDING}": path for case, path in found.items()}


def check_submission(
    images: Path, predictions: Path, *, jobs: int | None = 1, progress: Progress | None = None
) -> SubmissionCheck:
    """Compare a folder of predictions with the folder of images that they answer."""
    expected = image_files(images)
    found = nifti_files(predictions)
    present = {path.name: path for paths in found.values() for path in paths}
    findings = list(_names(expected, present))
    pairs = [(name, (image, present[name])) for name, image in sorted(expected.items()) if name in present]
    for outcome in sorted(run_cases(check_case, pairs, jobs=jobs, progress=progress), key=lambda o: o.name):
        reasons = [outcome.failure] if outcome.failure else outcome.result or []
        findings += [f"{outcome.name}: {reason}" for reason in reasons]
    return SubmissionCheck(tuple(pair[1][1] for pair in pairs), tuple(findings))


def _names(expected: dict[str, Path], present: dict[str, Path]) -> Iterator[str]:
    by_case = {case_name(path): name for name, path in present.items() if name not in expected}
    for name in sorted(expected.keys() - present.keys()):
        near = by_case.get(case_name(Path(name)))
        there = f"; there is {near}, which must be renamed or written again" if near else ""
        yield f"{name}: missing{there}"
    for name in sorted(present.keys() - expected.keys()):
        yield f"{name}: extra, no image has this name; remove it"


def check_case(pair: tuple[Path, Path]) -> list[str]:
    """What is wrong with one prediction, in words."""
    image, prediction = pair
    try:
        shape, affine, _ = read_header(image)
    except KitsCascadeError as error:
        return [f"the image cannot be read: {error}"]
    try:
        own_shape, own_affine, _ = read_header(prediction)
    except KitsCascadeError as error:
        return [str(error)]
    reasons = []
    if own_shape != shape:
        reasons.append(f"shape {own_shape}, the image has {shape}")
    difference = affine_difference(own_affine, affine)
    if difference > AFFINE_TOLERANCE:
        reasons.append(
            f"affine differs from the image's by {difference:.4g} in all (at most {AFFINE_TOLERANCE:g} is allowed)"
        )
    return reasons + _values(prediction)


def _values(prediction: Path) -> list[str]:
    try:
        voxels = read_volume(prediction).array
    except KitsCascadeError as error:
        return [str(error)]
    if voxels.dtype.kind == "f" and not all(np.array_equal(part, np.round(part)) for part in voxels):
        return ["has values that are not whole numbers (NaN among them counts); labels are 0 to 3"]
    low, high = voxels.min(), voxels.max()
    if low < 0 or high > HIGHEST_LABEL:
        return [f"has values from {low:g} to {high:g}; labels are 0 to {HIGHEST_LABEL}"]
    return []


def write_zip(check: SubmissionCheck, target: Path) -> Path:
    """Pack what was checked, all files at the top level; only when nothing is wrong."""
    if not check.ready:
        raise KitsCascadeError(f"{len(check.findings)} findings: not packed")
    check_writable(target.parent)
    with atomic_path(target) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for path in check.files:
            # Stored, not deflated: the files are compressed already.
            with archive.open(zipfile.ZipInfo(path.name, _EPOCH), "w", force_zip64=True) as entry:
                entry.write(path.read_bytes())
    return target
