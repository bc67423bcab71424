"""One case as one HTML file to turn in one's hands: slices, labels and surfaces, with no network and no server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, cast

import numpy as np

from kits_cascade.errors import CaseError, FileFormatError, UsageError
from kits_cascade.files import write_text
from kits_cascade.inference.certainty import LIKELY, UNSURE
from kits_cascade.inference.measure import LesionRow, body_midline, measure_lesions, volumes_ml
from kits_cascade.labels import CYST, KIDNEY, LABEL_NAMES, TUMOR
from kits_cascade.report.embedded import ViewOptions, pack_scan, to_base64
from kits_cascade.report.figures import LABEL_COLORS
from kits_cascade.report.niivue import niivue_licence, niivue_script
from kits_cascade.report.page import VIEW_FOLDER, prediction_files
from kits_cascade.report.pictures import read_image, read_label_map
from kits_cascade.report.run_info import Judgement, RunInfo
from kits_cascade.report.surfaces import Surface, mask_surface
from kits_cascade.version import __version__
from kits_cascade.volumes.components import components
from kits_cascade.volumes.find import find_inputs
from kits_cascade.volumes.geometry import Box
from kits_cascade.volumes.nifti import case_name
from kits_cascade.volumes.volume import Array, Volume

_PRESETS: Final = (("Soft tissue", -160, 240), ("Kidney", -20, 220), ("Narrow", 0, 120), ("Wide", -200, 400))
_WIDE_PRESETS: Final = (("Bone", -450, 1050), ("Lung", -1350, 150))
_KIDNEY_OPACITY: Final = 0.5
Point = tuple[float, float, float]  # in the world


@dataclass(frozen=True)
class Lesion:
    """A line of the list."""

    row: LesionRow
    place: Point  # a point inside it, in the world
    surface: Surface | None

    @property
    def name(self) -> str:
        """Such as tumor 1."""
        return f"{self.row.kind} {self.row.number}"


def write_view(
    path: Path,
    name: str,
    image: Volume,
    labels: Volume,
    options: ViewOptions | None = None,
    judged: Judgement | None = None,
) -> Path:
    """Write the page of a case; image and labels are on one grid. ``judged``: how far the result is to be believed."""
    options, judged = options or ViewOptions(), judged or Judgement()
    if image.shape != labels.shape:
        raise CaseError(
            name, f"the image has shape {image.shape}, the labels {labels.shape}; they do not belong together"
        )
    script = niivue_script()  # first: without it nothing else is worth doing
    region = _region(labels, options.margin_mm)
    middle = body_midline(image.array, image.affine)
    near = [_compact(volume.cropped(region.slices)) for volume in (image, labels)]
    rows = measure_lesions(near[1].array, near[0].array, labels.spacing, labels.affine, region, labels.shape, middle)
    lesions = [
        Lesion(row, _inside(mask, box, near[1].affine), mask_surface(mask, labels.spacing, _moved(near[1].affine, box)))
        for row, (mask, box) in zip(rows, _lesion_masks(near[1].array), strict=True)
    ]
    kidneys = mask_surface(near[1].array == KIDNEY, labels.spacing, near[1].affine)
    ct, overlay, notes = pack_scan(near[0], near[1], options)
    judged = replace(judged, remarks=(*judged.remarks, *notes))
    inside = {lesion.name: lesion.place for lesion in lesions}
    spots = [_Spot.of(finding, region, labels.affine, inside) for finding in judged.findings]
    volumes = volumes_ml(near[1].array, labels.spacing)
    shown = _Shown(name, ct, overlay, lesions, kidneys, volumes, judged, spots)
    write_text(path, _render(shown, options, script))
    return path


@dataclass(frozen=True)
class _Spot:
    """A finding, and where to look."""

    text: str
    severity: str
    place: Point | None  # None where it concerns the whole, or what the page does not show
    look: str  # where, in words

    @staticmethod
    def of(finding: Mapping[str, Any], region: Box, affine: Array, lesions: Mapping[str, Point]) -> _Spot:
        """``lesions``: a point inside of each, which the middle of a crescent is not."""
        where = finding.get("where")
        place = lesions.get(str(finding.get("lesion", "")))
        if not place and where and all(a <= at < b for at, a, b in zip(where, region.start, region.stop, strict=True)):
            place = _world(affine, np.array(where))
        return _Spot(
            str(finding.get("text", "")), str(finding.get("severity", "note")), place, str(finding.get("look", ""))
        )


def _world(affine: Array, zyx: Array) -> Point:
    world = affine[:3, :3] @ zyx[::-1] + affine[:3, 3]
    return cast("Point", tuple(round(float(value), 2) for value in world))


def _region(labels: Volume, margin_mm: float) -> Box:
    """What is segmented, with a margin; the whole scan where nothing is."""
    box = Box.around(labels.array)
    return Box.full(labels.shape) if box is None else box.grown(margin_mm, labels.spacing).clipped(labels.shape)


def _compact(volume: Volume) -> Volume:
    """With rows that lie together in memory: a CT is read in the order of its file."""
    return volume.with_array(np.ascontiguousarray(volume.array))


def _lesion_masks(labels: Array) -> Iterator[tuple[Array, Box]]:
    """Each lesion in its box, in the order of ``measure_lesions``: by kind, then by falling volume."""
    for label in (TUMOR, CYST):
        found = components(labels == label)
        for number, box in found.boxes(np.argsort(-found.voxels, kind="stable") + 1):
            yield box.crop(found.labels) == number, box


def _moved(affine: Array, box: Box) -> Array:
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ np.array(box.start[::-1])
    return moved


def _inside(mask: Array, box: Box, affine: Array) -> Point:
    """The voxel of a lesion nearest to its centre: of a crescent the centre itself is outside."""
    points = np.argwhere(mask)
    centre = points.mean(axis=0)
    nearest = points[((points - centre) ** 2).sum(axis=1).argmin()] + box.start
    return _world(affine, nearest)


def _rgb(label: int) -> tuple[int, int, int]:
    return cast("tuple[int, int, int]", tuple(bytes.fromhex(LABEL_COLORS[label].lstrip("#"))))


@dataclass(frozen=True)
class _Shown:
    """What stands in the page."""

    name: str
    ct: str
    overlay: str
    lesions: list[Lesion]
    kidneys: Surface | None
    volumes: dict[str, float]
    judged: Judgement
    spots: list[_Spot]


def _render(shown: _Shown, options: ViewOptions, script: str) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("kits_cascade.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    presets = _PRESETS + (_WIDE_PRESETS if options.bits == 16 else ())
    return environment.get_template("viewer.html").render(
        shown=shown,
        version=__version__,
        niivue=script,
        licence=niivue_licence(),
        presets=presets,
        unsure=UNSURE,
        likely=LIKELY,
        colours={name: LABEL_COLORS[label] for label, name in LABEL_NAMES.items()},
        scene={
            "window": presets[0][1:],
            "names": ["", *LABEL_NAMES.values()],
            "colours": [(0, 0, 0), *(_rgb(label) for label in LABEL_NAMES)],
            "places": [lesion.place for lesion in shown.lesions],
            "spots": [spot.place for spot in shown.spots],
        },
        meshes=list(_meshes(shown.kidneys, shown.lesions)),
    )


def _meshes(kidneys: Surface | None, lesions: list[Lesion]) -> Iterator[dict[str, Any]]:
    """Lesions first, then the kidneys that are seen through: the other way round they would hide them."""
    for number, lesion in enumerate(lesions):
        if lesion.surface is not None:
            label = TUMOR if lesion.row.kind == LABEL_NAMES[TUMOR] else CYST
            yield {"data": to_base64(lesion.surface.to_mz3()), "rgb": _rgb(label), "opacity": 1.0, "lesion": number}
    if kidneys is not None:
        yield {"data": to_base64(kidneys.to_mz3()), "rgb": _rgb(KIDNEY), "opacity": _KIDNEY_OPACITY, "lesion": -1}


@dataclass(frozen=True)
class ViewTask:
    """Where a case's files lie."""

    case: str
    labels: Path
    image: Path | None
    page: Path
    judged: Judgement = field(default_factory=Judgement)

    def write(self, options: ViewOptions | None = None) -> Path:
        """Read both, and write the page."""
        if self.image is None:
            raise CaseError(self.case, "its image is not where run.json says; give the folder of the images with -i")
        try:
            labels = read_label_map(self.case, self.labels)
        except FileFormatError as error:
            raise CaseError(self.case, str(error)) from error
        return write_view(self.page, self.case, read_image(self.image), labels, options, self.judged)


def view_cases(target: Path, images: Path | None = None, out: Path | None = None) -> list[ViewTask]:
    """What ``kits-cascade view`` was asked for: a case of a folder of predictions, or all of them."""
    folder, wanted = (target, None) if target.is_dir() else (target.parent, target)
    if not folder.is_dir():
        raise UsageError(f"{target}: no such case or folder; give one that kits-cascade predict has written")
    files = prediction_files(folder)
    if wanted is not None:
        files = {case: path for case, path in files.items() if case == case_name(wanted) or path == wanted}
    if not files:
        raise UsageError(f"{target}: no such case; there is {', '.join(sorted(prediction_files(folder))[:5])}")
    run = RunInfo.read(folder)
    known = {case.name: case.path for case in find_inputs(images)} if images else run.inputs
    place = out or folder / VIEW_FOLDER
    return [
        ViewTask(case, files[case], known.get(case), place / f"{case}.html", run.judgement(case, files[case]))
        for case in sorted(files)
    ]
