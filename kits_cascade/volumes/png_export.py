"""Cases as folders of PNG slices, masks beside the images, for networks that see one slice at a time.

Each finished case has a record in ``cases/``: with it a second run keeps the case, and the way back is known.
"""

from __future__ import annotations

import csv
import functools
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from kits_cascade.errors import CaseError, DatasetError, KitsCascadeError, UsageError
from kits_cascade.files import digest, read_json, write_json, write_text
from kits_cascade.labels import LABEL_NAMES
from kits_cascade.parallel import Progress, run_cases
from kits_cascade.version import __version__
from kits_cascade.volumes.cases import check_same_grid, load_case
from kits_cascade.volumes.find import InputCase, find_inputs
from kits_cascade.volumes.geometry import Box
from kits_cascade.volumes.kits import find_kits_cases
from kits_cascade.volumes.nifti import read_labels
from kits_cascade.volumes.png_slices import SliceOptions, cut_plane, grey_picture, mask_picture, write_png
from kits_cascade.volumes.volume import Array, Volume

OPTIONS_JSON: Final = "slices.json"
MANIFEST_CSV: Final = "slices.csv"
RECORDS: Final = "cases"
IMAGES, MASKS = "images", "masks"


@dataclass(frozen=True)
class SliceTask:
    """A case to export."""

    case: InputCase
    segmentation: Path | None

    @property
    def mark(self) -> str:
        """Changes with the files."""
        paths = [path for path in (self.case.path, self.segmentation) if path is not None and path.exists()]
        return digest([[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in paths])


@dataclass
class SlicesReport:
    """What became of each case."""

    written: dict[str, int] = field(default_factory=dict)  # slices of the cases that this run has exported
    kept: list[str] = field(default_factory=list)
    bad: dict[str, str] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """1 when a case had to be left out."""
        return 1 if self.bad else 0


def find_slice_tasks(source: Path, names: Sequence[str] | None = None) -> list[SliceTask]:
    """The cases of a KiTS folder or a raw dataset of nnU-Net, or images alone in any form that is read here."""
    try:
        found = find_kits_cases(source)
    except DatasetError:
        return [SliceTask(case, None) for case in find_inputs(source)]
    wanted = [case for case in found if case.image is not None and (names is None or case.name in names)]
    tasks = [SliceTask(InputCase(c.name, c.image, "nifti"), c.segmentation) for c in wanted if c.image is not None]
    if not tasks:
        raise DatasetError(f"{source}: no case with an image; slices need them")
    return tasks


def export_slices(
    source: Path,
    out: Path,
    options: SliceOptions,
    *,
    cases: Sequence[str] | None = None,
    jobs: int | None = 1,
    progress: Progress | None = None,
) -> SlicesReport:
    """Write ``images/``, ``masks/`` and ``slices.csv``; cases that are there and unchanged are kept."""
    tasks = find_slice_tasks(source, cases)
    _keep_options(out, options)
    report = SlicesReport()
    todo = [task for task in tasks if not _is_done(out, task)]
    report.kept = sorted({task.case.name for task in tasks} - {task.case.name for task in todo})
    work = functools.partial(export_case, out=out, options=options)
    for outcome in run_cases(work, [(t.case.name, t) for t in todo], jobs=jobs, progress=progress):
        if outcome.result is None:
            report.bad[outcome.name] = str(outcome.failure)
        else:
            report.written[outcome.name] = outcome.result
    write_manifest(out)
    return report


def _keep_options(out: Path, options: SliceOptions) -> None:
    """One folder is never a mixture."""
    path = out / OPTIONS_JSON
    if path.is_file() and read_json(path)["options"] != options.to_json():
        raise UsageError(f"{out}: holds slices of other options (see {path}); give another folder with -o")
    write_json(path, {"program": f"kits-cascade {__version__}", "options": options.to_json()})


def _is_done(out: Path, task: SliceTask) -> bool:
    path = out / RECORDS / f"{task.case.name}.json"
    return path.is_file() and read_json(path)["mark"] == task.mark


def export_case(task: SliceTask, out: Path, options: SliceOptions) -> int:
    """Export one case; how many slices it gave. Runs in a worker process."""
    mark = task.mark
    image = load_case(task.case).volume
    labels = _labels(task, image)
    box = _box(image.array, options)
    inside = box.crop(image.array)
    masks = None if labels is None else box.crop(labels)
    slices = list(_write_slices(task.case.name, inside, masks, box, out, options))
    rows, columns = (n for axis, n in enumerate(box.shape) if axis != options.axis_number)
    record = {
        "case": task.case.name,
        "mark": mark,
        "source": str(task.case.path),
        "box": box.to_json(),
        "plane": [rows, columns],
        "written": [options.size or rows, options.size or columns],
        "spacing_mm": list(image.spacing),
        "stored_shape": list(image.stored.shape),
        "stored_affine": image.stored.affine.tolist(),
        "masks": labels is not None,
        "slices": slices,
    }
    write_json(out / RECORDS / f"{task.case.name}.json", record)
    return len(slices)


def _labels(task: SliceTask, image: Volume) -> Array | None:
    if task.segmentation is None:
        return None
    try:
        labels = read_labels(task.segmentation)
        check_same_grid(("the image", "its segmentation"), image.stored, labels.stored)
    except KitsCascadeError as error:
        raise CaseError(task.case.name, str(error)) from error
    return labels.array


def _box(array: Array, options: SliceOptions) -> Box:
    """The whole, or the foreground: all that is not black in the window."""
    return (Box.around(array > options.window[0]) if options.crop else None) or Box.full(array.shape)


def _write_slices(
    name: str, image: Array, labels: Array | None, box: Box, out: Path, options: SliceOptions
) -> Iterator[dict[str, Any]]:
    axis = options.axis_number
    for position in range(image.shape[axis]):
        mask = None if labels is None else mask_picture(cut_plane(labels, axis, position), options.size)
        counts = np.bincount(np.asarray(mask).ravel(), minlength=max(LABEL_NAMES) + 1) if mask is not None else None
        if options.labelled and (counts is None or not counts[1:].any()):
            continue
        index = position + box.start[axis]  # in the whole volume
        file = f"{name}_{options.axis}_{index:04d}.png"
        write_png(out / IMAGES / file, grey_picture(cut_plane(image, axis, position), options))
        if mask is not None:
            write_png(out / MASKS / file, mask)
        pixels = {word: None if counts is None else int(counts[value]) for value, word in LABEL_NAMES.items()}
        yield {"slice": index, "file": file, **pixels}


def read_records(out: Path) -> list[dict[str, Any]]:
    """All finished cases by name."""
    return [read_json(path) for path in sorted((out / RECORDS).glob("*.json"))]


def write_manifest(out: Path) -> None:
    """A row per slice: case, position, files, size of a pixel and distance of slices, pixels of each label."""
    options = SliceOptions.from_json(read_json(out / OPTIONS_JSON)["options"])
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    labels = list(LABEL_NAMES.values())
    columns = ["case", "axis", "slice", "image", "mask", "rows", "columns", "row_mm", "column_mm", "slice_mm"]
    writer.writerow([*columns, *labels])
    for record in read_records(out):
        rows, width = record["written"]
        sizes = list(record["spacing_mm"])
        between = sizes.pop(options.axis_number)
        row_mm, column_mm = (s * n / m for s, n, m in zip(sizes, record["plane"], record["written"], strict=True))
        for entry in record["slices"]:
            mask = f"{MASKS}/{entry['file']}" if record["masks"] else ""
            place = [record["case"], options.axis, entry["slice"], f"{IMAGES}/{entry['file']}", mask, rows, width]
            spacing = [f"{row_mm:.6g}", f"{column_mm:.6g}", f"{between:.6g}"]
            writer.writerow([*place, *spacing, *(entry[word] for word in labels)])
    write_text(out / MANIFEST_CSV, text.getvalue())
