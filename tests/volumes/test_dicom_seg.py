"""SEG and SR of a painted series in eight geometries, read back by highdicom, pydicom alone, and other programs."""

import shutil
import subprocess

import numpy as np
import pytest

pytest.importorskip("highdicom", reason="the extra dicom is not installed")
import highdicom
import pydicom
import SimpleITK

from kits_cascade.errors import CaseError, FileFormatError, GeometryError
from kits_cascade.inference.measure import measure_lesions, volumes_ml
from kits_cascade.labels import CYST, KIDNEY, TUMOR
from kits_cascade.volumes.cases import load_case
from kits_cascade.volumes.dicom_seg import make_seg
from kits_cascade.volumes.dicom_source import read_source
from kits_cascade.volumes.dicom_sr import NOT_FOR_DIAGNOSIS, Findings, make_sr
from kits_cascade.volumes.find import find_inputs
from tests.volumes.painted_series import AXIAL, oblique, positions, write_ct, write_enhanced

HU = np.array([-100, 150, 260, 5], np.int16)
SHUFFLED = [int(n) for n in np.random.default_rng(1).permutation(14)]
FEET_FIRST = ((-1, 0, 0), (0, 1, 0))
CORONAL = ((1, 0, 0), (0, 0, -1))
GEOMETRIES = {
    "axial": {},
    "feet first": {"axes": FEET_FIRST, "PatientPosition": "FFS"},
    "coronal": {"axes": CORONAL},
    "oblique": {"axes": oblique(10)},
    "unsorted": {"order": SHUFFLED},
    "gap": {"skip": (5, 6)},
    "multi-frame": {"order": SHUFFLED},
    "5 mm": {"spacing": (5.0, 0.8, 0.7)},
}


def painted(tumor=TUMOR):
    labels = np.zeros((14, 24, 28), np.uint8)
    labels[3:12, 4:20, 3:12] = labels[3:12, 6:18, 18:25] = KIDNEY
    labels[5:8, 8:12, 5:9] = tumor
    labels[9:11, 6:9, 20:22] = CYST
    return labels


def labels_of(volume):
    labels = np.zeros(volume.shape, np.uint8)
    for label in (KIDNEY, TUMOR, CYST):
        labels[volume.array == HU[label]] = label
    return labels


def write(folder, name, labels, **given):
    given = GEOMETRIES.get(name, {}) | given
    if name == "multi-frame":
        return write_enhanced(folder, HU[labels], **given)
    return write_ct(folder, HU[labels], **given)


class Made:
    """A series, its labels, and SEG and SR of them."""

    def __init__(self, folder, name="axial", labels=None, form="seg", remarks=()):
        self.truth = painted() if labels is None else labels
        self.series = write(folder / "series", name, self.truth)
        # A series that lost slices on its way is not predicted, but may get the labels of the whole one.
        whole = write(folder / "whole", name, self.truth, skip=()) if name == "gap" else self.series
        self.volume = load_case(find_inputs(whole)[0]).volume
        self.labels = labels_of(self.volume)
        self.source = read_source(self.series)
        self.lesions = measure_lesions(self.labels, self.volume.array, self.volume.spacing, self.volume.affine)
        self.made = make_seg(self.source, self.volume, self.labels, "5a5a", form)
        self.seg, self.sr = folder / "seg.dcm", folder / "sr.dcm"
        findings = Findings(self.lesions, volumes_ml(self.labels, self.volume.spacing), remarks)
        make_sr(self.source, findings, self.made, "5a5a").save_as(self.sr)
        if self.made is not None:
            self.made.dataset.save_as(self.seg)
        axes, spacing = (GEOMETRIES[name].get(k, d) for k, d in (("axes", AXIAL), ("spacing", (2.5, 0.8, 0.7))))
        self.places = positions(len(self.truth), axes, spacing, (-40, -30, 100))


@pytest.fixture(scope="module", params=GEOMETRIES)
def made(request, tmp_path_factory):
    return Made(tmp_path_factory.mktemp("series"), request.param)


def label_of(segment):
    kind = segment.SegmentedPropertyTypeCodeSequence[0]
    assert kind.CodingSchemeDesignator == "SCT"
    return {"64033007": KIDNEY, "108369006": TUMOR, "367643001": CYST}[kind.CodeValue]


def test_every_voxel_comes_back_at_its_place_by_pydicom_alone(made):
    seg = pydicom.dcmread(made.seg)
    labels = {segment.SegmentNumber: label_of(segment) for segment in seg.SegmentSequence}
    assert set(labels.values()) == {KIDNEY, TUMOR, CYST}
    back = np.zeros_like(made.truth)
    for group, plane in zip(seg.PerFrameFunctionalGroupsSequence, seg.pixel_array, strict=True):
        place = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        at = int(np.argmin([np.linalg.norm(place - other) for other in made.places]))
        assert np.allclose(place, made.places[at], atol=1e-4)
        assert plane.any()
        back[at][plane > 0] = labels[group.SegmentIdentificationSequence[0].ReferencedSegmentNumber]
    expected = made.truth.copy()
    expected[[at for at in range(len(expected)) if not_sent(made, at)]] = 0
    assert np.array_equal(back, expected)


def not_sent(made, at):
    sent = [np.array(item.position) for item in made.source.planes]
    return min(np.linalg.norm(made.places[at] - place) for place in sent) > 1e-3


def test_every_voxel_comes_back_by_highdicom(made):
    seg = highdicom.seg.segread(made.seg)
    labels = {n: label_of(seg.get_segment_description(n)) for n in seg.segment_numbers}
    if len(made.source.headers) > 1:
        uids = [str(header.SOPInstanceUID) for header in made.source.headers]
        planes = seg.get_pixels_by_source_instance(uids, combine_segments=True, assert_missing_frames_are_empty=True)
        places = [np.array(header.ImagePositionPatient, float) for header in made.source.headers]
    else:
        frames = range(1, len(made.source.planes) + 1)
        uid = made.source.headers[0].SOPInstanceUID
        planes = seg.get_pixels_by_source_frame(
            uid, list(frames), combine_segments=True, assert_missing_frames_are_empty=True
        )
        places = [np.array(plane.position) for plane in made.source.planes]
    table = np.array([0, *(labels[n] for n in sorted(labels))])
    for plane, place in zip(planes, places, strict=True):
        at = int(np.argmin([np.linalg.norm(place - other) for other in made.places]))
        assert np.array_equal(table[plane], made.truth[at])


def test_dcmqi_reads_the_same_voxels(made, tmp_path):
    program = shutil.which("segimage2itkimage")
    if program is None:
        pytest.skip("dcmqi is not installed: pip install dcmqi")
    command = [program, "--inputDICOM", str(made.seg), "--outputDirectory", str(tmp_path), "--outputType", "nrrd"]
    subprocess.run(command, check=True, capture_output=True)
    seg = pydicom.dcmread(made.seg)
    for segment in seg.SegmentSequence:
        image = SimpleITK.ReadImage(str(tmp_path / f"{segment.SegmentNumber}.nrrd"))
        found = np.argwhere(SimpleITK.GetArrayFromImage(image) > 0)
        world = {tuple(np.round(image.TransformIndexToPhysicalPoint(p[::-1].tolist()), 2)) for p in found}
        assert world == expected_points(made, label_of(segment))


def expected_points(made, label):
    points = set()
    for plane in made.source.planes:
        row, column = np.array(plane.orientation).reshape(2, 3) * np.array(plane.pixel_mm[::-1])[:, None]
        at = int(np.argmin([np.linalg.norm(np.array(plane.position) - other) for other in made.places]))
        for r, c in np.argwhere(made.truth[at] == label):
            points.add(tuple(np.round(np.array(plane.position) + c * row + r * column, 2) + 0.0))
    return points


def test_dciodvfy_finds_no_error(made):
    assert_valid(made.seg)
    assert_valid(made.sr)


def assert_valid(path):
    program = shutil.which("dciodvfy")
    if program is None:
        pytest.skip("dciodvfy is not installed: Debian's package dicom3tools")
    said = subprocess.run([program, str(path)], capture_output=True, text=True, errors="replace", check=False)
    assert [line for line in (said.stdout + said.stderr).splitlines() if line.startswith("Error")] == []


def test_who_made_it_and_of_what(tmp_path):
    made = Made(tmp_path)
    seg = pydicom.dcmread(made.seg)
    assert str(seg.PatientName) == "Müller^Zoë"
    assert (seg.ContentQualification, seg.SegmentationType) == ("RESEARCH", "BINARY")
    assert "not for diagnosis" in seg.ContentDescription + seg.SeriesDescription
    kidney, tumor, _cyst = seg.SegmentSequence
    assert kidney.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning.lower() == "anatomical structure"
    assert tumor.AnatomicRegionSequence[0].CodeValue == "64033007"
    assert tumor.SegmentationAlgorithmIdentificationSequence[0].AlgorithmParameters == "networks=5a5a"
    assert len({s.TrackingUID for s in seg.SegmentSequence}) == 3
    assert all(len(s.RecommendedDisplayCIELabValue) == 3 for s in seg.SegmentSequence)
    instances = {i.ReferencedSOPInstanceUID for i in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert instances == {header.SOPInstanceUID for header in made.source.headers}
    again = make_seg(made.source, made.volume, made.labels, "5a5a").dataset
    assert again.SOPInstanceUID == seg.SOPInstanceUID  # an archive takes it for the same object
    other = make_seg(made.source, made.volume, np.roll(made.labels, 1), "5a5a").dataset
    assert other.SOPInstanceUID != seg.SOPInstanceUID


def test_there_is_no_empty_segment(tmp_path):
    made = Made(tmp_path / "a", labels=painted(tumor=KIDNEY))
    seg = pydicom.dcmread(made.seg)
    assert [label_of(segment) for segment in seg.SegmentSequence] == [KIDNEY, CYST]
    assert [segment.SegmentNumber for segment in seg.SegmentSequence] == [1, 2]
    assert len(seg.pixel_array) == 9 + 2  # the frames that hold something
    nothing = Made(tmp_path / "b", labels=np.zeros_like(painted()))
    assert nothing.made is None
    assert_valid(nothing.sr)
    assert "No renal tumor and no renal cyst was found." in texts(pydicom.dcmread(nothing.sr))


@pytest.mark.parametrize("form", ["labelmap", "fractional"])
def test_other_forms(tmp_path, form):
    made = Made(tmp_path, form=form)
    seg = highdicom.seg.segread(made.seg)
    uids = [str(header.SOPInstanceUID) for header in made.source.headers]
    planes = seg.get_pixels_by_source_instance(uids, combine_segments=True, assert_missing_frames_are_empty=True)
    assert np.array_equal(planes, made.truth)
    if form == "fractional":  # Debian's dciodvfy is older than label maps
        assert_valid(made.seg)


def texts(sr):
    comment = "121106"
    return [item.TextValue for item in walk(sr) if item.ConceptNameCodeSequence[0].CodeValue == comment]


def walk(item):
    for inner in item.get("ContentSequence", []):
        yield inner
        yield from walk(inner)


def test_the_report_tells_what_was_measured(tmp_path):
    made = Made(tmp_path, remarks=["The left kidney is doubtful."])
    sr = pydicom.dcmread(made.sr)
    report = highdicom.sr.srread(made.sr).content
    assert sr.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    groups = report.get_volumetric_roi_measurement_groups()
    assert len(groups) == 1 + len(made.lesions) == 3
    segment_of = {label_of(s): s.SegmentNumber for s in pydicom.dcmread(made.seg).SegmentSequence}
    for group, lesion in zip(groups[1:], made.lesions, strict=True):
        values = {m.name.meaning: (float(m.value), m.unit.value) for m in group.get_measurements()}
        assert values == {
            "Volume": (pytest.approx(lesion.volume_ml), "cm3"),
            "Long axis": (pytest.approx(lesion.diameter_mm), "mm"),
            "Attenuation Coefficient": (pytest.approx(lesion.mean_hu), "[hnsf'U]"),
        }
        assert group.finding_sites[0].laterality.meaning.lower() == lesion.side
        referenced = group.referenced_segment
        assert referenced.referenced_sop_instance_uid == made.made.dataset.SOPInstanceUID
        assert list(referenced.referenced_segment_numbers) == [segment_of[TUMOR if lesion.kind == "tumor" else CYST]]
    assert sr.VerificationFlag == "UNVERIFIED"
    assert texts(sr)[:2] == [NOT_FOR_DIAGNOSIS, "The left kidney is doubtful."]


def test_labels_of_another_series_are_refused(tmp_path):
    made = Made(tmp_path)
    elsewhere = read_source(write_ct(tmp_path / "b", HU[painted()], origin=(-39, -30, 100)))
    with pytest.raises(GeometryError, match="do not lie on the grid"):
        make_seg(elsewhere, made.volume, made.labels)
    turned = read_source(write_ct(tmp_path / "c", HU[painted()], axes=oblique(3)))
    with pytest.raises(GeometryError, match="axes or voxel sizes differ"):
        make_seg(turned, made.volume, made.labels)


def test_anonymised_series(tmp_path):
    write_ct(tmp_path / "a", HU[painted()], PatientSex="U")
    for path in (tmp_path / "a").iterdir():
        ds = pydicom.dcmread(path)
        for name in ("PatientName", "PatientBirthDate", "StudyDate", "AccessionNumber", "ReferringPhysicianName"):
            delattr(ds, name)
        ds.save_as(path)
    volume = load_case(find_inputs(tmp_path / "a")[0]).volume
    assert make_seg(read_source(tmp_path / "a"), volume, labels_of(volume)).dataset.PatientName == ""
    for path in (tmp_path / "a").iterdir():
        ds = pydicom.dcmread(path)
        del ds.FrameOfReferenceUID
        ds.save_as(path)
    with pytest.raises(FileFormatError, match="has no FrameOfReferenceUID"):
        read_source(tmp_path / "a")


def test_gaps_in_files_of_many_slices_are_found(tmp_path):
    spaced = np.delete(HU[painted()], 5, axis=0)
    folder = write_enhanced(tmp_path / "a", spaced)
    ds = pydicom.dcmread(folder / "all.dcm")
    for group in ds.PerFrameFunctionalGroupsSequence[5:]:
        place = group.PlanePositionSequence[0]
        place.ImagePositionPatient = [*place.ImagePositionPatient[:2], place.ImagePositionPatient[2] + 2.5]
    ds.save_as(folder / "all.dcm")
    with pytest.raises(CaseError, match="1 missing slices"):
        load_case(find_inputs(folder)[0])
