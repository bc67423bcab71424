"""Labels as a DICOM segmentation (SEG), by highdicom: one segment each for kidney, tumour, cyst, none of them empty."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from kits_cascade.labels import CYST, KIDNEY, TUMOR
from kits_cascade.version import __version__
from kits_cascade.volumes.dicom_extra import derived_uid, load_codes, load_highdicom
from kits_cascade.volumes.dicom_source import SourceSeries, labels_on_planes
from kits_cascade.volumes.volume import Array, Volume

# The forms of a SEG by the names of the command line; every reader knows the first.
FORMS: Final[Mapping[str, str]] = MappingProxyType(
    {"seg": "BINARY", "labelmap": "LABELMAP", "fractional": "FRACTIONAL"}
)
SERIES_NUMBER: Final = 9220  # far from what scanners count; the series of a study need not differ in it
MAKER: Final = "kits-cascade"
RGB = tuple[int, int, int]


@dataclass(frozen=True)
class SegmentRow:
    """A label's segment; terms go by their names in pydicom's dictionary of SNOMED CT."""

    label: int
    title: str
    category: str
    kind: str
    region: str  # the organ it is in; empty for the organ itself
    colour: RGB  # as 3D Slicer recommends it for the term


SEGMENTS: Final = (
    SegmentRow(KIDNEY, "Kidney", "AnatomicalStructure", "Kidney", "", (185, 102, 83)),
    SegmentRow(TUMOR, "Renal tumor", "MorphologicallyAbnormalStructure", "Neoplasm", "Kidney", (144, 238, 144)),
    SegmentRow(CYST, "Renal cyst", "MorphologicallyAbnormalStructure", "Cyst", "Kidney", (205, 205, 100)),
)


@dataclass(frozen=True)
class Segmentation:
    """A SEG, and which segment holds which label."""

    dataset: Any
    numbers: Mapping[int, int]  # segment by label


def make_seg(
    source: SourceSeries, volume: Volume, labels: Array, networks: str = "", form: str = "seg"
) -> Segmentation | None:
    """A SEG of canonical labels, referring to the series; None where no label is set, since no segment may be empty.

    ``networks`` is the checksum of the networks that made the labels.
    """
    planes = labels_on_planes(volume, labels, source.planes)
    counts = np.bincount(planes.ravel(order="K"), minlength=CYST + 1)
    rows = [row for row in SEGMENTS if counts[row.label]]
    if not rows:
        return None
    numbers = {row.label: number for number, row in enumerate(rows, start=1)}
    return Segmentation(_dataset(source, _renumbered(planes, numbers), rows, networks, form), numbers)


def _renumbered(planes: Array, numbers: Mapping[int, int]) -> Array:
    """Labels to numbers of segments, which have no gaps."""
    if all(label == number for label, number in numbers.items()):
        return planes
    table = np.zeros(256, dtype=np.uint8)
    table[list(numbers)] = list(numbers.values())
    renumbered: Array = table[planes]
    return renumbered


def _dataset(source: SourceSeries, planes: Array, rows: list[SegmentRow], networks: str, form: str) -> Any:
    highdicom = load_highdicom()
    # What the planes hold decides the UID, and with it whether an archive takes this for a new object.
    content = hashlib.sha256(np.ascontiguousarray(planes).data).hexdigest()
    uid = [source.series_uid, networks, content, form]
    return highdicom.seg.Segmentation(
        source_images=list(source.headers),
        pixel_array=planes,
        segmentation_type=FORMS[form],
        segment_descriptions=[_description(highdicom, n, row, source, networks) for n, row in enumerate(rows, start=1)],
        series_instance_uid=derived_uid(*uid, "series"),
        series_number=SERIES_NUMBER + list(FORMS).index(form),
        sop_instance_uid=derived_uid(*uid, "instance"),
        instance_number=1,
        manufacturer=MAKER,
        manufacturer_model_name=MAKER,
        software_versions=f"{__version__}, networks {networks[:16]}" if networks else __version__,
        device_serial_number=networks[:16] or "unknown",
        fractional_type="OCCUPANCY",
        content_description="Kidneys, renal tumors and cysts by neural networks; research, not for diagnosis"[:64],
        content_label="KIDNEY_MASSES",
        series_description="kits-cascade: kidneys and masses (not for diagnosis)",
        content_qualification="RESEARCH",
        omit_empty_frames=True,
    )


def _description(highdicom: Any, number: int, row: SegmentRow, source: SourceSeries, networks: str) -> Any:
    codes = load_codes()
    term: Callable[[str], Any] = lambda name: getattr(codes.SCT, name)  # noqa: E731
    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=row.title,
        segmented_property_category=term(row.category),
        segmented_property_type=term(row.kind),
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm(highdicom, codes, networks),
        tracking_uid=derived_uid(source.series_uid, row.title),
        tracking_id=row.title,
        anatomic_regions=[term(row.region)] if row.region else None,
        display_color=highdicom.color.CIELabColor.from_rgb(*row.colour),
    )


def algorithm(highdicom: Any, codes: Any, networks: str) -> Any:
    """Who has made the segments: this package, its version, and the checksum of the networks."""
    return highdicom.AlgorithmIdentificationSequence(
        name=MAKER,
        family=codes.DCM.ArtificialIntelligence,
        version=__version__,
        source=MAKER,
        parameters={"networks": networks} if networks else None,
    )
