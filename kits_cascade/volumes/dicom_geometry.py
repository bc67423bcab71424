"""Whether the slices of a DICOM series make a volume: alike, complete, evenly spaced, stacked along their normal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from kits_cascade.errors import FileFormatError
from kits_cascade.volumes.volume import Array

_GAP: Final = 0.05  # of the slice distance: how far gaps may differ; positions are rounded in many scanners
_GAP_MM: Final = 0.02
_SAME_AXIS: Final = 1e-3


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
    frame: int = 0  # in a file that holds many

    @property
    def is_volume(self) -> bool:
        """Part of a CT, and not a scout view."""
        return self.modality in {"CT", ""} and "LOCALIZER" not in self.kind


def order_slices(folder: Path, slices: list[Slice]) -> list[Slice]:
    """The slices from the first to the last along their normal, after all checks."""
    if len(slices) < 2:
        raise FileFormatError(f"{folder}: a single slice; a 3-D volume is needed")
    _check_alike(folder, slices)
    normal, positions = slice_normal(slices[0]), np.array([item.position for item in slices])
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


def slice_normal(item: Slice) -> Array:
    """The direction that a slice faces, of length one."""
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
