"""What the challenge takes, and what it does not."""

import zipfile

import nibabel as nib
import numpy as np
import pytest

from kits_cascade.errors import DatasetError, KitsCascadeError
from kits_cascade.evaluation.submission import check_submission, write_zip
from tests.evaluation.small_scores import AFFINE, label_map, write

NAMES = ["case_00589.nii.gz", "case_00590.nii.gz"]


@pytest.fixture
def folders(tmp_path):
    images, predictions = tmp_path / "images", tmp_path / "pred"
    for name in NAMES:
        write(images / name, np.zeros((12, 40, 40), np.int16))
        write(predictions / name, label_map())
    (predictions / "run.json").write_text("{}")
    return images, predictions


def test_a_good_folder_is_packed_and_again_to_the_same_bytes(folders, tmp_path):
    check = check_submission(*folders)
    assert check.ready
    first, second = (write_zip(check, tmp_path / name).read_bytes() for name in ("a.zip", "b.zip"))
    assert first == second
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.namelist() == NAMES
        assert archive.read(NAMES[0]) == (folders[1] / NAMES[0]).read_bytes()
        assert archive.testzip() is None


def save(path, array):
    nib.save(nib.Nifti1Image(array, AFFINE), path)


SPOILS = {
    "missing": lambda path: path.unlink(),
    "extra": lambda path: write(path.with_name("case_00700.nii.gz"), label_map()),
    "uncompressed twin": lambda path: write(path.with_name("case_00590.nii"), label_map()),
    "shape": lambda path: write(path, label_map()[1:]),
    "affine": lambda path: write(path, label_map(), AFFINE + np.eye(4, k=3) * 2e-3),
    "label": lambda path: write(path, label_map() + np.uint8(1)),
    "negative": lambda path: save(path, label_map().astype(np.int16) - 1),
    "fraction": lambda path: save(path, label_map().astype(np.float32) / 2),
    "nan": lambda path: save(path, np.full((12, 40, 40), np.nan, np.float32)),
    "empty file": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-50]),
    "nnU-Net's name": lambda path: path.rename(path.with_name("case_00590_0000.nii.gz")),
}


@pytest.mark.parametrize(
    ("kind", "lines", "word"),
    [
        ("missing", 1, "missing"),
        ("extra", 1, "extra"),
        ("uncompressed twin", 1, "extra"),
        ("shape", 1, "shape (11, 40, 40), the image has (12, 40, 40)"),
        ("affine", 1, "affine differs"),
        ("label", 1, "values from 1 to 4"),
        ("negative", 1, "values from -1 to 2"),
        ("fraction", 1, "whole numbers"),
        ("nan", 1, "whole numbers"),
        ("empty file", 1, "truncated"),
        ("truncated", 1, "too early"),
        ("nnU-Net's name", 2, "missing; there is case_00590_0000.nii.gz"),
    ],
)
def test_a_line_per_finding(folders, tmp_path, kind, lines, word):
    SPOILS[kind](folders[1] / NAMES[1])
    check = check_submission(*folders)
    assert len(check.findings) == lines, check.findings
    assert any(word in finding for finding in check.findings)
    with pytest.raises(KitsCascadeError):
        write_zip(check, tmp_path / "s.zip")
    assert not (tmp_path / "s.zip").exists()


def test_several_findings_in_one_case(folders):
    write(folders[1] / NAMES[0], label_map()[1:] + np.uint8(1), AFFINE * 2)
    assert len(check_submission(*folders).findings) == 3


def test_whole_floats_pass_as_the_challenge_lets_them(folders):
    nib.save(nib.Nifti1Image(label_map().astype(np.float32), AFFINE), folders[1] / NAMES[0])
    assert check_submission(*folders).ready


def test_images_in_kits_layout(folders, tmp_path):
    images, predictions = folders
    for name in NAMES:
        target = tmp_path / "kits" / name.removesuffix(".nii.gz")
        target.mkdir(parents=True)
        (images / name).rename(target / "imaging.nii.gz")
    assert check_submission(tmp_path / "kits", predictions).ready


def test_no_images(tmp_path, folders):
    (tmp_path / "none").mkdir()
    with pytest.raises(DatasetError, match="no images"):
        check_submission(tmp_path / "none", folders[1])
