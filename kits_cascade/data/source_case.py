"""One case: is it sound, what is in it, and how do its files come into a dataset."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from isal import igzip

from kits_cascade import labels as kits
from kits_cascade.errors import CaseError, DatasetError, FileFormatError, KitsCascadeError
from kits_cascade.files import atomic_path, link_or_copy
from kits_cascade.volumes.cases import check_same_grid
from kits_cascade.volumes.kits import KitsCase, contrast_phase
from kits_cascade.volumes.nifti import check_finite, read_labels, read_volume, reading
from kits_cascade.volumes.volume import Array, Volume

AFFINE_TOLERANCE: Final = 1e-3  # summed over the matrix, as in the challenge's own check of submissions
_CHUNK: Final = 1 << 20


def read_case(case: KitsCase) -> tuple[Volume, Volume]:
    """Image and label map, both read to the end and checked against each other."""
    if case.image is None or case.segmentation is None:
        raise CaseError(case.name, str(case.missing))
    try:
        image, label = read_volume(case.image), read_labels(case.segmentation)
        check_finite(image, case.image)
        check_label_values(label)
        check_same_grid(("the image", "its segmentation"), image.stored, label.stored)
    except KitsCascadeError as error:
        raise CaseError(case.name, str(error)) from error
    return image, label


def label_counts(label: Array) -> Array:
    """Voxels of each label value, 0 to 255."""
    counts = np.zeros(256, dtype=np.int64)
    for part in along_memory(label):
        counts += np.bincount(part[part > 0], minlength=256)
    counts[0] = label.size - counts.sum()
    return counts


def along_memory(array: Array) -> Iterator[Array]:
    """The planes of an array across its slowest axis in memory: each is one piece, whatever the axis order."""
    slowest = max(range(array.ndim), key=lambda axis: abs(array.strides[axis]))
    return iter(np.moveaxis(array, slowest, 0))


def check_label_values(label: Volume) -> Array:
    """Only KiTS labels, and kidney or masses somewhere; returns the voxel counts."""
    counts = label_counts(label.array)
    values = np.flatnonzero(counts).tolist()
    unknown = [value for value in values if value > kits.CYST]
    if unknown:
        raise FileFormatError(
            f"label values {', '.join(map(str, unknown))} in the segmentation; KiTS has 0 background, 1 kidney, "
            "2 tumor, 3 cyst"
        )
    if values == [kits.BACKGROUND]:
        raise FileFormatError("the segmentation is empty: no kidney and no mass")
    return counts


def case_facts(name: str, image: Volume, label: Volume) -> dict[str, Any]:
    """What selection, stratified splits and statistics want to know, without reading the case again."""
    return {
        "phase": contrast_phase(name),
        "shape": list(image.shape),
        "spacing": [round(size, 6) for size in image.spacing],
        "hu": [float(image.array.min()), float(image.array.max())],
        "label_voxels": label_voxels(label),
    }


def label_voxels(label: Volume) -> dict[str, int]:
    """Voxels of each KiTS label, as written to JSON."""
    counts = label_counts(label.array)
    return {str(value): int(counts[value]) for value in kits.LABEL_NAMES}


def identity(case: KitsCase) -> dict[str, list[Any]]:
    """Path, size and time of both files: enough to see that a source has changed."""
    files = {"image": case.image, "segmentation": case.segmentation}
    return {key: _stamp(path) for key, path in files.items() if path is not None}


def _stamp(path: Path) -> list[Any]:
    status = path.stat()
    return [str(path.resolve()), status.st_size, status.st_mtime_ns]


def place(source: Path, target: Path, *, copy: bool) -> str:
    """Put a file into a dataset without a second copy of its bytes where that works; says how it went.

    A hard link comes first: it stays valid when the source is moved or deleted, and copying the dataset to another
    machine or mounting it alone into a container takes the bytes along. Across file systems, a symbolic link; where
    there are neither, a copy. An uncompressed file is packed, since a dataset has one file ending.
    """
    source = source.resolve()
    if source == target:
        raise DatasetError(f"{source} belongs to the dataset itself: the source only links to it")
    if not source.name.endswith(".gz"):
        _pack(source, target)
        return "packed"
    return link_or_copy(source, target, copy=copy)


def _pack(source: Path, target: Path) -> None:
    with (
        atomic_path(target) as temporary,
        temporary.open("wb") as raw,
        igzip.IGzipFile(filename="", mode="wb", compresslevel=2, fileobj=raw, mtime=0) as packed,
        source.open("rb") as stream,
    ):
        shutil.copyfileobj(stream, packed, _CHUNK)


def unpack(source: Path, target: Path) -> None:
    """The uncompressed file, checked by gzip's own checksum on the way."""
    with (
        reading(source),
        igzip.open(source, "rb") as stream,
        atomic_path(target) as temporary,
        temporary.open("wb") as plain,
    ):
        shutil.copyfileobj(stream, plain, _CHUNK)


def check_gzip(path: Path) -> None:
    """Read a compressed file to its end, where its checksum is."""
    with reading(path), igzip.open(path, "rb") as stream:
        while stream.read(_CHUNK):
            pass
