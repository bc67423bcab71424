"""One case for the report: three slices as JPEG, outlines as SVG paths, and its lesions as rows."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from kits_cascade.errors import CaseError, FileFormatError, KitsCascadeError
from kits_cascade.evaluation.lesions import LesionScore, score_lesions
from kits_cascade.evaluation.metrics import LabelPair
from kits_cascade.evaluation.pairs import HIGHEST_LABEL, header_spacing
from kits_cascade.inference.measure import LesionRow, measure_lesions
from kits_cascade.labels import CYST, KIDNEY, LABEL_NAMES, TUMOR
from kits_cascade.report.figures import case_panel
from kits_cascade.report.slices import Plane, outlines, planes
from kits_cascade.volumes.cases import load_case
from kits_cascade.volumes.find import find_inputs
from kits_cascade.volumes.itk import is_itk, read_itk
from kits_cascade.volumes.nifti import read_labels
from kits_cascade.volumes.volume import Array, Volume

_PIXEL_MM: Final = 0.7
_MOST_PIXELS: Final = 640
_JPEG_QUALITY: Final = 80
_UNITS_PER_MM: Final = 10  # of the outlines: whole numbers, so that they are short
# What is outlined: the kidney with its masses, as one line around both, and each lesion.
_OUTLINED: Final = (("kidney", (KIDNEY, TUMOR, CYST)), ("tumor", (TUMOR,)), ("cyst", (CYST,)))


@dataclass(frozen=True)
class PictureTask:
    """Where a case's files lie; what is None is not shown."""

    case: str
    prediction: Path
    truth: Path | None = None
    image: Path | None = None
    panel: Path | None = None  # a PNG to write
    look_at: tuple[int, int, int] | None = None  # the voxel that the slices show, instead of the largest lesion


@dataclass(frozen=True)
class PlanePicture:
    """One slice."""

    name: str
    width: int  # of the outlines' units
    height: int
    jpeg: str | None  # base64
    truth: dict[str, str]  # structure -> SVG path
    prediction: dict[str, str]


@dataclass(frozen=True)
class LesionLine:
    """A row of a case's lesion table."""

    kind: str
    number: int  # within its kind and source, by falling volume
    source: str
    side: str
    volume_ml: float
    diameter_mm: float
    mean_hu: float | None
    verdict: str  # empty where there is no truth


@dataclass(frozen=True)
class CasePicture:
    """All the report shows of a case, but for its scores."""

    case: str
    planes: tuple[PlanePicture, ...]
    lesions: tuple[LesionLine, ...]
    volumes_ml: dict[str, float]
    notes: tuple[str, ...] = ()


def draw_case(task: PictureTask) -> CasePicture:
    """Read, cut, compress; a case without a readable image or truth is drawn without it, and says so."""
    notes: list[str] = []
    prediction = read_label_map(task.case, task.prediction)
    truth = _optional(task, "truth", notes, prediction)
    image = _optional(task, "image", notes, prediction)
    cut = planes(image, truth, prediction, point=task.look_at)
    if task.panel is not None:
        case_panel(image, truth, prediction, task.panel, task.case)
    volumes = {
        name: float(np.count_nonzero(prediction.array == label) * prediction.voxel_mm3 / 1000)
        for label, name in LABEL_NAMES.items()
    }
    lesions = _lesion_lines(prediction, truth, image)
    return CasePicture(task.case, tuple(_plane(plane) for plane in cut), lesions, volumes, tuple(notes))


def read_label_map(case: str, path: Path) -> Volume:
    """A label map of any kind that predict writes, its values checked."""
    if not is_itk(path):
        volume = read_labels(path)
    else:
        volume = read_itk(path)[0]
        volume = volume.with_array(volume.array.astype(np.uint8))
    if volume.array.max() > HIGHEST_LABEL:
        raise CaseError(case, f"{path.name} has labels above {HIGHEST_LABEL}")
    return volume


def _optional(task: PictureTask, what: str, notes: list[str], like: Volume) -> Volume | None:
    path: Path | None = getattr(task, what)
    if path is None:
        return None
    try:
        volume = read_image(path) if what == "image" else read_label_map(task.case, path)
        if volume.shape != like.shape:
            raise FileFormatError(f"{path.name} has another shape than the prediction")
    except (KitsCascadeError, OSError) as error:
        notes.append(f"{what} not shown: {error}")
        return None
    return volume


def read_image(path: Path) -> Volume:
    """The image of a case, of any kind that predict reads."""
    found = find_inputs(path)
    return load_case(found[0]).volume


def _plane(plane: Plane) -> PlanePicture:
    height, width = (round(size * _UNITS_PER_MM) for size in plane.size_mm)
    jpeg = None if plane.image is None else _jpeg(plane)
    paths = [{} if labels is None else _paths(labels, plane) for labels in (plane.truth, plane.prediction)]
    return PlanePicture(plane.name, width, height, jpeg, *paths)


def _jpeg(plane: Plane) -> str:
    from PIL import Image

    height, width = plane.size_mm
    pixel = max(_PIXEL_MM, height / _MOST_PIXELS, width / _MOST_PIXELS)
    size = max(1, round(width / pixel)), max(1, round(height / pixel))
    picture = Image.fromarray(np.ascontiguousarray(plane.image)).resize(size, Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return base64.b64encode(stream.getvalue()).decode("ascii")


def _paths(labels: Array, plane: Plane) -> dict[str, str]:
    paths = {}
    for name, group in _OUTLINED:
        mask = np.isin(labels, group)
        if mask.any():
            paths[name] = "".join(svg_path(line) for line in outlines(mask, plane))
    return paths


def svg_path(line: Array) -> str:
    """A closed line as a short SVG path: relative whole steps, those in one direction joined."""
    points = np.round(line * _UNITS_PER_MM).astype(int)
    steps = np.diff(points, axis=0)
    steps = steps[(steps != 0).any(axis=1)]
    if not len(steps):
        return ""
    cross = steps[1:, 0] * steps[:-1, 1] - steps[1:, 1] * steps[:-1, 0]
    ahead = (steps[1:] * steps[:-1]).sum(axis=1) > 0
    starts = np.flatnonzero(np.concatenate([[True], (cross != 0) | ~ahead]))
    joined = np.add.reduceat(steps, starts, axis=0)
    moves = "".join(f"l{dx} {dy}" for dx, dy in joined[:-1].tolist())
    return f"M{points[0, 0]} {points[0, 1]}{moves}z"


def _lesion_lines(prediction: Volume, truth: Volume | None, image: Volume | None) -> tuple[LesionLine, ...]:
    verdicts: tuple[LesionScore, ...] = ()
    if truth is not None:
        verdicts = score_lesions(LabelPair.cut(truth.array, prediction.array, header_spacing(prediction)))
    lines: list[LesionLine] = []
    for source, volume in (("prediction", prediction), ("truth", truth)):
        if volume is None:
            continue
        grey = np.broadcast_to(np.int16(0), volume.shape) if image is None else image.array
        rows = measure_lesions(volume.array, grey, volume.spacing, volume.affine)
        lines += [_line(row, source, verdicts, image is not None) for row in rows]
    return tuple(line for line in lines if line.source == "prediction" or line.verdict == "missed")


def _line(row: LesionRow, source: str, verdicts: tuple[LesionScore, ...], with_hu: bool) -> LesionLine:
    # Both list the lesions of a kind by falling volume, so the number tells which is which.
    own = [score for score in verdicts if score.kind == row.kind and score.source == source]
    verdict = own[row.number - 1].verdict if own else ""
    hu: Any = row.mean_hu if with_hu else None
    return LesionLine(row.kind, row.number, source, row.side, row.volume_ml, row.diameter_mm, hu, verdict)
