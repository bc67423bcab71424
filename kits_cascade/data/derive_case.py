"""One case of the stage datasets: from its CT and its labels to the files of stages 221, 222 and 223."""

from __future__ import annotations

import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, cast

import numpy as np

from kits_cascade.errors import CaseError
from kits_cascade.files import link_or_copy
from kits_cascade.labels import CYST, TUMOR
from kits_cascade.stages import MASSES_CYST, MASSES_TUMOR, STAGE_BY_KEY
from kits_cascade.volumes.cases import check_same_grid
from kits_cascade.volumes.geometry import Box
from kits_cascade.volumes.nifti import read_cropped, read_header, read_labels, write_volume
from kits_cascade.volumes.roi_boxes import box_without_specks, roi_box
from kits_cascade.volumes.volume import Array, Spacing, StoredAs, Volume

JITTER_MM: Final = 5.0  # a face of a coarse mask is off by a voxel or two of the coarse stage
_SIGNATURE_BYTES: Final = 4096
_COARSE, _KIDNEY, _MASSES = STAGE_BY_KEY


@dataclass(frozen=True)
class DeriveOptions:
    """All that decides what a derived file holds, besides the source files."""

    margin_mm: float
    jitter_mm: float
    seed: int
    coarse_predictions: bool
    kidney_predictions: bool

    def to_json(self, stage: str) -> dict[str, Any]:
        """What matters to one stage."""
        if stage == _COARSE:
            return {}
        content = asdict(self)
        if stage == _KIDNEY:
            del content["kidney_predictions"]
        if self.coarse_predictions:
            del content["jitter_mm"], content["seed"]
        return content


@dataclass(frozen=True)
class CaseTask:
    """What a worker needs to know about one case."""

    name: str
    image: Path
    label: Path
    coarse: Path | None
    kidney: Path | None
    targets: dict[str, Path]  # stage key -> raw folder, for the stages that are to be written
    ending: str
    options: DeriveOptions

    def files(self, stage: str) -> list[Path]:
        """The files of this case in a stage's folder."""
        return case_files(self.targets[stage], stage, self.name, self.ending)

    def signature(self, stage: str) -> dict[str, str]:
        """Marks of the source files that a stage depends on: when one changes, the case is derived again."""
        sources = {"image": self.image, "label": self.label}
        if self.coarse is not None and stage != _COARSE:
            sources["coarse"] = self.coarse
        if self.kidney is not None and stage == _MASSES:
            sources["kidney"] = self.kidney
        return {name: file_signature(path) for name, path in sources.items()}


def case_files(folder: Path, stage: str, case: str, ending: str) -> list[Path]:
    """Images, then the label, of a case of a stage."""
    channels = len(STAGE_BY_KEY[stage].channels)
    images = [folder / "imagesTr" / f"{case}_{channel:04d}{ending}" for channel in range(channels)]
    return [*images, folder / "labelsTr" / f"{case}{ending}"]


def file_signature(path: Path) -> str:
    """Size and checksum of both ends: in a gzip file the last bytes are the checksum of the content."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        mark = zlib.crc32(stream.read(_SIGNATURE_BYTES))
        stream.seek(max(0, size - _SIGNATURE_BYTES))
        mark = zlib.crc32(stream.read(_SIGNATURE_BYTES), mark)
    return f"{size}-{mark:08x}"


def derive_case(task: CaseTask) -> dict[str, dict[str, Any]]:
    """Write a case's files for all stages in ``task.targets``; the record of each stage for its roi.json."""
    labels = _read_labels(task)
    tight = roi_box(labels.array, labels.spacing, 0.0)
    if tight is None:
        raise CaseError(task.name, "the label map is empty: there is no kidney to learn from; leave the case out")
    record = _common_record(task, labels, tight)
    cropped = _Cropped.of(task, labels, tight) if set(task.targets) - {_COARSE} else None
    records: dict[str, dict[str, Any]] = {}
    if _COARSE in task.targets:
        box = Box.full(labels.shape).to_json()
        _write_coarse(task, labels, tight)
        records[_COARSE] = {"box": box, **record, "source": task.signature(_COARSE)}
    del labels
    if cropped is not None:
        own = {"box": cropped.box.to_json(), "box_from": cropped.origin, "label_voxels_outside": cropped.outside}
        _write_cropped(task, cropped)
        for stage in set(task.targets) - {_COARSE}:
            records[stage] = {**own, **record, "source": task.signature(stage)}
    return records


def _read_labels(task: CaseTask) -> Volume:
    labels = read_labels(task.label)
    names = (f"the image {task.image.name}", "its label")
    remedy = "they must share one grid: convert the dataset again, or leave the case out"
    check_same_grid(names, StoredAs(*read_header(task.image)), labels.stored, remedy)
    return labels


def _common_record(task: CaseTask, labels: Volume, tight: Box) -> dict[str, Any]:
    """The part of the record that all stages share: the source's grid, canonical and as stored, and its lesions."""
    counts = np.bincount(tight.crop(labels.array).ravel(order="K"), minlength=256)
    if counts[CYST + 1 :].any():
        values = ", ".join(map(str, np.flatnonzero(counts)))
        raise CaseError(task.name, f"label values {values}; KiTS has 0 background, 1 kidney, 2 tumour, 3 cyst")
    return {
        "shape": list(labels.shape),
        "affine": labels.affine.tolist(),
        "stored_shape": list(labels.stored.shape),
        "stored_affine": labels.stored.affine.tolist(),
        "tumor_mm3": round(float(counts[TUMOR]) * labels.voxel_mm3, 2),
        "cyst_mm3": round(float(counts[CYST]) * labels.voxel_mm3, 2),
    }


def _write_coarse(task: CaseTask, labels: Volume, tight: Box) -> None:
    """The whole scan. Changes ``labels`` where they are: a second array of this size would cost more than the rest."""
    image, label = task.files(_COARSE)
    link_or_copy(task.image, image)
    inner = tight.crop(labels.array)
    np.minimum(inner, 1, out=inner)
    write_volume(label, labels)


@dataclass(frozen=True)
class _Cropped:
    """What the cropped stages need of the labels, cut out."""

    box: Box
    origin: str
    outside: int  # labelled voxels that the box leaves out
    labels: Volume
    kidney: Array | None

    @staticmethod
    def of(task: CaseTask, labels: Volume, tight: Box) -> _Cropped:
        box, origin = _region(task, labels, tight)
        crop = labels.cropped(box.slices)
        crop = crop.with_array(np.ascontiguousarray(crop.array))
        outside = int(np.count_nonzero(tight.crop(labels.array))) - int(np.count_nonzero(crop.array))
        kidney = _kidney_channel(task, labels, box) if _MASSES in task.targets else None
        return _Cropped(box, origin, outside, crop, kidney)


def _write_cropped(task: CaseTask, cropped: _Cropped) -> None:
    image: Path | None = None
    for stage in (_KIDNEY, _MASSES):
        if stage not in task.targets:
            continue
        files = task.files(stage)
        if image is None:
            image = files[0]
            write_volume(image, read_cropped(task.image, cropped.box.slices))
        else:
            link_or_copy(image, files[0])
        if cropped.kidney is not None and stage == _MASSES:
            write_volume(files[1], cropped.labels, cropped.kidney)
        write_volume(files[-1], cropped.labels, _stage_labels(stage, cropped.labels.array))


def _stage_labels(stage: str, source: Array) -> Array:
    """The rule: 222 has kidney and masses as one class; 223 has 1 cyst, 2 tumour."""
    if stage == _KIDNEY:
        return np.minimum(source, 1)
    table = np.zeros(256, dtype=np.uint8)
    table[CYST], table[TUMOR] = MASSES_CYST, MASSES_TUMOR
    return cast("Array", table[source])


def _region(task: CaseTask, labels: Volume, tight: Box) -> tuple[Box, str]:
    """The case's box, and where it comes from."""
    origin = "labels"
    if task.coarse is not None:
        box = _predicted_region(task, task.coarse, labels)
        if box is not None:
            return box, "coarse prediction"
        origin = "labels (the coarse prediction is empty)"
    return _jittered(tight, labels.spacing, labels.shape, task.options, task.name), origin


def _predicted_region(task: CaseTask, path: Path, labels: Volume) -> Box | None:
    """The box around a coarse prediction, as inference finds it; None where the prediction is empty."""
    prediction = read_labels(path)
    place = _place(task.name, path, prediction, labels)
    found = box_without_specks(prediction.array, labels.spacing)
    if found is None:
        return None
    return found.shifted(place.start).grown(task.options.margin_mm, labels.spacing).clipped(labels.shape)


def _jittered(tight: Box, spacing: Spacing, shape: tuple[int, int, int], options: DeriveOptions, case: str) -> Box:
    """Grown by the margin, each face then moved by up to the jitter: a network must not learn where the box ends.

    Seeded by the case's name, so that it depends neither on the other cases nor on their order.
    """
    reach = min(options.jitter_mm, options.margin_mm / 2)
    rng = np.random.default_rng([options.seed, zlib.crc32(case.encode())])
    shift = [
        [round(float(value) / s) for value, s in zip(face, spacing, strict=True)]
        for face in rng.uniform(-reach, reach, size=(2, 3))
    ]
    grown = tight.grown(options.margin_mm, spacing)
    low = [a + d for a, d in zip(grown.start, shift[0], strict=True)]
    high = [b + d for b, d in zip(grown.stop, shift[1], strict=True)]
    return Box((low[0], low[1], low[2]), (high[0], high[1], high[2])).clipped(shape)


def _kidney_channel(task: CaseTask, labels: Volume, box: Box) -> Array:
    """The kidney mask inside the box: predicted out of fold where there is a prediction, else the label's."""
    if task.kidney is None:
        return np.minimum(box.crop(labels.array), 1)
    prediction = read_labels(task.kidney)
    place = _place(task.name, task.kidney, prediction, labels)
    channel = np.zeros(box.shape, dtype=np.uint8)
    shared = Box(
        (max(box.start[0], place.start[0]), max(box.start[1], place.start[1]), max(box.start[2], place.start[2])),
        (min(box.stop[0], place.stop[0]), min(box.stop[1], place.stop[1]), min(box.stop[2], place.stop[2])),
    )
    if place.intersects(box):
        source = shared.seen_from(place)
        shared.seen_from(box).paste(channel, np.minimum(source.crop(prediction.array), 1))
    return channel


def _place(case: str, path: Path, prediction: Volume, source: Volume) -> Box:
    """Where a prediction's grid lies in the source's: the same grid, or a part of it cut out at whole voxels."""
    relative = np.linalg.inv(source.affine) @ prediction.affine
    start = relative[:3, 3][::-1]
    whole = np.rint(start)
    box = Box.full(prediction.shape).shifted(whole.tolist())
    same = np.allclose(relative[:3, :3], np.eye(3), atol=1e-3) and np.allclose(start, whole, atol=0.05)
    if not same or box.clipped(source.shape) != box:
        raise CaseError(
            case,
            f"prediction {path} of shape {prediction.shape} and spacing {prediction.spacing} mm does not lie on the "
            f"grid of the case (shape {source.shape}, spacing {source.spacing} mm); it was made from another image",
        )
    return box
