"""Measured lesions as a DICOM structured report (SR, TID 1500), by highdicom, which refers to the segments of a SEG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from kits_cascade.labels import KIDNEY, LABEL_NAMES
from kits_cascade.version import __version__
from kits_cascade.volumes.dicom_extra import derived_uid, load_codes, load_highdicom
from kits_cascade.volumes.dicom_seg import MAKER, SEGMENTS, Segmentation, SegmentRow
from kits_cascade.volumes.dicom_source import SourceSeries

SERIES_NUMBER: Final = 9230
NOT_FOR_DIAGNOSIS: Final = "Not for diagnosis: made by neural networks for research, and looked at by nobody."
_ROW_OF: Final[Mapping[str, SegmentRow]] = {LABEL_NAMES[row.label]: row for row in SEGMENTS}


class MeasuredLesion(Protocol):
    """What the report says of a lesion."""

    @property
    def kind(self) -> str:
        """Either tumor or cyst."""

    @property
    def number(self) -> int:
        """From 1 within its kind."""

    @property
    def side(self) -> str:
        """Either left or right, of the patient."""

    @property
    def volume_ml(self) -> float:
        """Volume."""

    @property
    def diameter_mm(self) -> float:
        """The largest in an axial slice."""

    @property
    def mean_hu(self) -> float:
        """Mean attenuation."""

    @property
    def cut_by_border(self) -> bool:
        """Whether the scan ends in it."""


@dataclass(frozen=True)
class Findings:
    """What is reported of a case."""

    lesions: Sequence[MeasuredLesion] = ()
    volumes_ml: Mapping[str, float] = field(default_factory=dict)  # by the name of the label
    remarks: Sequence[str] = ()  # what a reader should know: doubts about the result among them


def make_sr(source: SourceSeries, findings: Findings, seg: Segmentation | None, networks: str = "") -> Any:
    """The report; without a SEG nothing was found, and it says that."""
    highdicom, codes = load_highdicom(), load_codes()
    writer = _Writer(highdicom, codes, source, seg, networks)
    groups = [writer.lesion(lesion) for lesion in findings.lesions]
    report = highdicom.sr.MeasurementReport(
        observation_context=writer.context(),
        procedure_reported=codes.cid100.CTUnspecifiedBodyRegion,
        imaging_measurements=[writer.kidneys(findings.volumes_ml.get(LABEL_NAMES[KIDNEY], 0.0)), *groups],
    )
    texts = [NOT_FOR_DIAGNOSIS, *_verdict(findings)]
    report[0].ContentSequence.append(writer.comments(texts))
    evidence = [*source.headers, *([] if seg is None else [seg.dataset])]
    said = [repr(findings.volumes_ml), *map(repr, findings.lesions), *texts]
    uid = [source.series_uid, networks, "" if seg is None else str(seg.dataset.SOPInstanceUID), *said]
    return highdicom.sr.ComprehensiveSR(
        evidence=evidence,
        content=report,
        series_instance_uid=derived_uid(*uid, "series"),
        series_number=SERIES_NUMBER,
        sop_instance_uid=derived_uid(*uid, "instance"),
        instance_number=1,
        manufacturer=MAKER,
        manufacturer_model_name=MAKER,
        software_versions=__version__,
        series_description="kits-cascade: measurements (not for diagnosis)",
        is_complete=True,
        is_final=False,
        is_verified=False,
    )


def _verdict(findings: Findings) -> list[str]:
    """Doubts first, then what the numbers alone do not say."""
    texts = list(findings.remarks)
    texts += [
        f"{lesion.kind} {lesion.number} reaches the border of the scan: its true size may be larger."
        for lesion in findings.lesions
        if lesion.cut_by_border
    ]
    if not findings.lesions:
        texts.append("No renal tumor and no renal cyst was found.")
    return texts


@dataclass(frozen=True)
class _Writer:
    """Makes the parts of the report."""

    highdicom: Any
    codes: Any
    source: SourceSeries
    seg: Segmentation | None
    networks: str

    def context(self) -> Any:
        """Who reports: a program, not a person."""
        sr = self.highdicom.sr
        device = sr.DeviceObserverIdentifyingAttributes(
            uid=derived_uid(MAKER, __version__, self.networks), name=MAKER, manufacturer_name=MAKER, model_name=MAKER
        )
        observer = sr.ObserverContext(observer_type=self.codes.DCM.Device, observer_identifying_attributes=device)
        return sr.ObservationContext(observer_device_context=observer)

    def kidneys(self, volume_ml: float) -> Any:
        """The volume of both kidneys without their masses."""
        row = _ROW_OF[LABEL_NAMES[KIDNEY]]
        return self._group("kidneys", row, [self._volume(volume_ml)], self._site())

    def lesion(self, lesion: MeasuredLesion) -> Any:
        """What was measured of one lesion."""
        ucum = self.codes.UCUM
        measurements = [
            self._volume(lesion.volume_ml),
            self._measurement(self.codes.SCT.LongAxis, lesion.diameter_mm, ucum.Millimeter),
            self._measurement(
                self.codes.DCM.AttenuationCoefficient, lesion.mean_hu, ucum.HounsfieldUnit, self.codes.SCT.Mean
            ),
        ]
        site = self._site(lesion.side)
        return self._group(f"{lesion.kind} {lesion.number}", _ROW_OF[lesion.kind], measurements, site)

    def _volume(self, volume_ml: float) -> Any:
        return self._measurement(self.codes.SCT.Volume, volume_ml, self.codes.UCUM.CubicCentimeter)

    def _measurement(self, name: Any, value: float, unit: Any, derivation: Any = None) -> Any:
        return self.highdicom.sr.Measurement(name=name, value=value, unit=unit, derivation=derivation)

    def _site(self, side: str = "") -> Any:
        sct = self.codes.SCT
        laterality = {"left": sct.Left, "right": sct.Right}.get(side)
        return self.highdicom.sr.FindingSite(anatomic_location=sct.Kidney, laterality=laterality)

    def _group(self, name: str, row: SegmentRow, measurements: list[Any], site: Any) -> Any:
        """A group of measurements of a segment; of none, where there is no such segment."""
        sr, sct = self.highdicom.sr, self.codes.SCT
        common = {
            "tracking_identifier": sr.TrackingIdentifier(derived_uid(self.source.series_uid, name), name),
            "finding_type": getattr(sct, row.kind),
            "finding_category": getattr(sct, row.category),
            "finding_sites": [site],
            "measurements": measurements,
            "algorithm_id": sr.AlgorithmIdentification(
                name=MAKER, version=__version__, parameters=[f"networks: {self.networks}"] if self.networks else None
            ),
        }
        number = None if self.seg is None else self.seg.numbers.get(row.label)
        if self.seg is None or number is None:
            return sr.MeasurementsAndQualitativeEvaluations(**common)
        segment = sr.ReferencedSegment(
            sop_class_uid=self.seg.dataset.SOPClassUID,
            sop_instance_uid=self.seg.dataset.SOPInstanceUID,
            segment_number=number,
            source_series=sr.SourceSeriesForSegmentation(self.source.series_uid),
        )
        return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(referenced_segment=segment, **common)

    def comments(self, texts: Sequence[str]) -> Any:
        """Sentences, in the template's container for what is not a number."""
        sr, contains = self.highdicom.sr, self.highdicom.sr.RelationshipTypeValues.CONTAINS
        name = sr.CodedConcept("C0034375", "UMLS", "Qualitative Evaluations")
        container = sr.ContainerContentItem(name=name, relationship_type=contains)
        container.ContentSequence = sr.ContentSequence(
            [sr.TextContentItem(name=self.codes.DCM.Comment, value=text, relationship_type=contains) for text in texts]
        )
        return container
