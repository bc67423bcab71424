"""SEG and SR beside the results of a run, and made afterwards. An oracle stands for the networks."""

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("highdicom", reason="the extra dicom is not installed")
import pydicom

from kits_cascade import Cascade
from kits_cascade.errors import MissingExtraError, UsageError
from kits_cascade.inference.cascade import CascadeOptions
from kits_cascade.runs import dicom_results
from kits_cascade.runs.dicom_results import find_results, parse_kinds, with_dicom_sources, write_dicom_afterwards
from kits_cascade.runs.manifest import RunManifest
from kits_cascade.runs.runner import Runner
from kits_cascade.volumes.find import find_inputs
from tests.inference.oracle import HU, Oracle
from tests.inference.test_cascade import two_kidneys
from tests.volumes.painted_series import write_ct

MODELS = [{"stage": "coarse", "sha256": {"plans.json": "1"}}]


def predict(source, out, dicom=("seg", "sr"), **changes):
    options = CascadeOptions(dicom=dicom)
    cases = with_dicom_sources(find_inputs(source), dicom)
    manifest = RunManifest(out, models=MODELS)
    return Runner(lambda: Cascade(predictors=Oracle(), options=options), out, manifest, **changes).run(cases)


def write_series(folder, labels):
    return write_ct(folder, HU[labels], spacing=(4.0, 2.0, 2.0))


def segments(path):
    return [str(segment.SegmentLabel) for segment in pydicom.dcmread(path).SegmentSequence]


def test_beside_the_labels_and_afterwards(tmp_path):
    labels = two_kidneys()
    write_series(tmp_path / "in" / "p1", labels)
    nib.save(nib.Nifti1Image(HU[labels.transpose(2, 1, 0)], np.diag([2.0, 2, 4, 1])), tmp_path / "in" / "p2.nii.gz")
    out = tmp_path / "out"
    summary = predict(tmp_path / "in", out)
    assert summary.done == ["p1"]
    assert "Give the folder of the original series" in summary.failed["p2"]
    seg, sr = out / "dicom/p1/seg.dcm", out / "dicom/p1/sr.dcm"
    assert segments(seg) == ["Kidney", "Renal tumor", "Renal cyst"]
    networks = RunManifest(out, models=MODELS).networks
    described = pydicom.dcmread(seg).SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
    assert described.AlgorithmParameters == f"networks={networks}"

    verdict = RunManifest(out).record("p1").verdict
    assert f"Verdict of the automatic checks: {verdict}.".encode() in sr.read_bytes()

    before = pydicom.dcmread(seg), pydicom.dcmread(sr)
    seg.unlink()
    sr.unlink()
    [result] = find_results(out / "p1")
    assert write_dicom_afterwards(result, ("seg", "sr")) == [seg, sr]
    after = pydicom.dcmread(seg), pydicom.dcmread(sr)
    assert [a.SOPInstanceUID for a in after] == [b.SOPInstanceUID for b in before]
    assert after[0].PixelData == before[0].PixelData


def test_edited_labels_are_measured_anew(tmp_path):
    write_series(tmp_path / "in" / "p1", two_kidneys())
    out = tmp_path / "out"
    predict(tmp_path / "in", out, dicom=())
    image = nib.load(out / "p1.nii.gz")
    edited = np.asarray(image.dataobj).copy()
    edited[edited > 1] = 1
    nib.save(nib.Nifti1Image(edited, image.affine, image.header), out / "p1.nii.gz")
    [result] = find_results(out)
    write_dicom_afterwards(result, ("seg", "sr"))
    assert segments(out / "dicom/p1/seg.dcm") == ["Kidney"]
    assert b"have been changed" in (out / "dicom/p1/sr.dcm").read_bytes()
    edited[:] = 0
    nib.save(nib.Nifti1Image(edited, image.affine, image.header), out / "p1.nii.gz")
    write_dicom_afterwards(result, ("seg", "sr"))
    assert [p.name for p in (out / "dicom/p1").iterdir()] == ["sr.dcm"]  # no segment, no SEG, not the old one either


def test_what_is_asked_for(tmp_path, monkeypatch):
    assert parse_kinds(None) == ()
    assert parse_kinds("sr") == ("seg", "sr")
    assert parse_kinds("Labelmap, seg") == ("seg", "labelmap")
    for wrong in ("segg", ",", ""):
        with pytest.raises(UsageError, match="one or more of seg, labelmap, fractional, sr"):
            parse_kinds(wrong)
    with pytest.raises(UsageError, match="no finished case"):
        find_results(tmp_path / "nothing")

    def missing():
        raise MissingExtraError("highdicom", "dicom")

    monkeypatch.setattr(dicom_results, "load_highdicom", missing)
    assert with_dicom_sources([], ()) == []
    with pytest.raises(MissingExtraError, match=r"kits-cascade\[dicom\]"):
        with_dicom_sources([], ("seg",))
