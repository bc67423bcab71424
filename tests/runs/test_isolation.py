"""One bad case never takes the others along: the whole command over folders with everything that goes wrong in them."""

import csv
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from kits_cascade.volumes.cases import load_case
from kits_cascade.volumes.find import find_inputs
from tests.inference.handmade import write_models
from tests.inference.oracle import HU
from tests.inference.test_cascade import two_kidneys
from tests.volumes.test_dicom import UID, write_series

REPOSITORY = Path(__file__).parent.parent.parent
AFFINE = np.diag([2.0, 2.0, 4.0, 1.0])
AFFINE[:3, 3] = (-70, 12, 300)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("results"))


def predict(results, source, out, *more):
    """The command line, with an oracle in place of the networks."""
    command = [sys.executable, "-m", "tests.inference.oracle", "predict", "-i", str(source), "-o", str(out), *more]
    environment = {**os.environ, "nnUNet_results": str(results), "COLUMNS": "200"}
    return subprocess.run(command, check=False, cwd=REPOSITORY, env=environment, capture_output=True, encoding="utf-8")


def nifti(path, labels=None, affine=AFFINE):
    labels = two_kidneys() if labels is None else labels
    nib.save(nib.Nifti1Image(HU[labels.transpose(2, 1, 0)], affine), path)
    return path


def twelve(folder):
    """The good ones and the reasons why the others are bad."""
    folder.mkdir()
    small = np.zeros((40, 40, 40), np.uint8)
    small[8:32, 8:32, 8:32], small[16:22, 16:22, 16:22] = 1, 2
    good = {"a good one": two_kidneys(), "b small": small, "Žofie Müller (2)": two_kidneys()}
    for name, labels in good.items():
        nifti(folder / f"{name}_0000.nii.gz", labels)
    whole = nifti(folder / "c truncated.nii.gz").read_bytes()
    (folder / "c truncated.nii.gz").write_bytes(whole[: len(whole) * 2 // 3])
    (folder / "d text.nii.gz").write_text("this is a text\n")
    nib.save(nib.Nifti1Image(np.zeros((9, 9, 9, 3), np.int16), AFFINE), folder / "e four.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros((9, 9), np.int16), AFFINE), folder / "f two.nii.gz")
    for name, value in (("g nan", np.nan), ("h infinite", -np.inf)):
        image = HU[two_kidneys()].astype(np.float32)
        image[3, 4, 5:7] = value
        nib.save(nib.Nifti1Image(image, AFFINE), folder / f"{name}.nii.gz")
    data = bytearray(gzip.decompress(whole))
    data[80:84] = bytes(4)
    (folder / "i zero.nii.gz").write_bytes(gzip.compress(bytes(data)))
    nib.save(nib.Nifti1Image(np.full((30, 30, 20), -1000, np.int16), AFFINE), folder / "j air.nii.gz")
    (folder / "k empty.nii.gz").touch()
    bad = {
        "c truncated": "truncated",
        "d text": "not a valid gzip",
        "e four": "4-D",
        "f two": "2-D",
        "g nan": "2 voxels are NaN or infinite",
        "h infinite": "2 voxels are NaN or infinite",
        "i zero": "voxel size",
        "k empty": "truncated",
    }
    return good, bad


def test_a_folder_of_twelve(results, tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    good, bad = twelve(source)
    done = predict(results, source, out)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    for name, reason in bad.items():
        lines = [line for line in done.stderr.splitlines() if line.startswith(f"{name}: failed")]
        assert len(lines) == 1
        assert reason in lines[0]
        assert not (out / f"{name}.nii.gz").exists()
    assert [line for line in done.stderr.splitlines() if "j air" in line and "air only" in line]
    for name, labels in good.items():
        given, result = nib.load(source / f"{name}_0000.nii.gz"), nib.load(out / f"{name}.nii.gz")
        assert np.array_equal(np.asarray(result.dataobj).transpose(2, 1, 0), labels), name
        assert np.array_equal(given.affine, result.affine)
        for field in ("pixdim", "qform_code", "sform_code", "qoffset_x"):
            assert np.array_equal(given.header[field], result.header[field])
    assert not np.asarray(nib.load(out / "j air.nii.gz").dataobj).any()
    content = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert content["counts"] == {"done": 4, "failed": 8}
    assert set(content["cases"]) == {*good, *bad, "j air"}
    assert all(reason in content["cases"][name]["reason"] for name, reason in bad.items())
    rows = list(csv.DictReader((out / "lesions.csv").read_text(encoding="utf-8").splitlines()))
    assert {row["case"] for row in rows} == set(good)
    # The same again: nothing is done twice, and what is bad is said again.
    again = predict(results, source, out, "-q")
    assert again.returncode == 1
    assert again.stderr.count(": failed: ") == len(bad)
    before = json.loads((out / "run.json").read_text(encoding="utf-8"))["cases"]
    assert {name: before[name] for name in good} == {name: content["cases"][name] for name in good}


def test_all_kinds_of_inputs_in_one_folder(results, tmp_path):
    source, out = tmp_path / "eingang", tmp_path / "out"
    labels = two_kidneys()
    hu = HU[labels]
    lps = hu[:, ::-1, ::-1]  # DICOM's axes run to the left and to the back
    step = {"step": (0, 0, 4.0), "pixel": (2.0, 2.0)}
    write_series(source / "Zoë" / "ct", lps, **step)
    write_series(source / "missing", lps, skip=(10,), **step)
    write_series(source / "mixed", lps, **step)
    write_series(source / "mixed", lps, ending="v.dcm", series=UID + "9", text="venous", **step)
    (source / "case_00007").mkdir()
    nifti(source / "case_00007" / "imaging.nii.gz")
    (source / "case_00008").mkdir()
    image = SimpleITK.GetImageFromArray(lps)
    image.SetSpacing((2, 2, 4))
    for ending in ("mha", "nrrd"):
        SimpleITK.WriteImage(image, str(source / f"x {ending}.{ending}"))
    (source / "broken.mha").write_text("ObjectType = Image\n")
    nifti(source / "plain.nii")
    done = predict(results, source, out)
    assert done.returncode == 1, done.stderr
    content = json.loads((out / "run.json").read_text(encoding="utf-8"))["cases"]
    failed = {name: case["reason"] for name, case in content.items() if case["status"] == "failed"}
    assert set(failed) == {"missing", "mixed", "case_00008", "broken"}
    assert "1 missing slices" in failed["missing"]
    assert "2 series in one folder" in failed["mixed"]
    for name, file in {
        "Zoë_ct": "Zoë_ct.nii.gz",
        "case_00007": "case_00007.nii.gz",
        "plain": "plain.nii",
        "x mha": "x mha.mha",
        "x nrrd": "x nrrd.nrrd",
    }.items():
        assert content[name]["output"] == file
        given = next(load_case(case).volume for case in find_inputs(source) if case.name == name)
        result = load_case(find_inputs(out / file)[0]).volume
        assert np.array_equal(result.array, labels), name
        assert np.allclose(result.affine, given.affine, atol=1e-5)
