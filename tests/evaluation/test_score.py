"""Folders to tables: the challenge's own scores, and everything that must be named and never scored."""

import gzip
import shutil

import nibabel as nib
import numpy as np
import pytest

from kits_cascade.errors import DatasetError, UsageError
from kits_cascade.evaluation.score import CASES_CSV, FULL_JSON, OFFICIAL_CSV, ScoreTable, evaluate_folder
from kits_cascade.files import read_json
from tests.evaluation.small_scores import AFFINE, label_map, write


def test_the_official_scores_to_the_letter(kits23, tmp_path):
    official = kits23 / "official_scores"
    table = evaluate_folder(official / "predictions", kits23 / "masks", tmp_path)
    assert (tmp_path / OFFICIAL_CSV).read_bytes() == (official / "evaluation.csv").read_bytes()
    assert len(table.cases) == 14
    assert {finding.kind for finding in table.findings} == {"missing"}


def test_tables_and_what_they_say(folders, tmp_path):
    predictions, truth = folders
    out = tmp_path / "out"
    table = evaluate_folder(predictions, truth, out)
    assert [case.case for case in table.worst_first] == ["case_00000", "case_00001", "case_00500"]
    lines = (out / OFFICIAL_CSV).read_text().splitlines()
    assert lines[0] == "caseID,Dice_kidney,Dice_masses,Dice_tumor,SD_kidney,SD_masses,SD_tumor"
    assert lines[3] == "case_00500" + ",1.00000000" * 6
    assert lines[4].startswith("average,") and len(lines) == 5
    assert len((out / CASES_CSV).read_text().splitlines()) == 4
    content = read_json(out / FULL_JSON)
    assert set(content["summary"]) == {"all", "arterial", "nephrogenic"}
    assert content["summary"]["all"]["lesions"]["tumor"]["all"]["detected"] == 3
    assert ScoreTable.read(out / FULL_JSON) == table


def test_several_processes_give_the_same(folders, tmp_path):
    one, two = (evaluate_folder(*folders, tmp_path / str(jobs), jobs=jobs) for jobs in (1, 2))
    assert one == two
    assert (tmp_path / "1" / FULL_JSON).read_bytes() == (tmp_path / "2" / FULL_JSON).read_bytes()


def test_truth_as_a_folder_of_label_files(folders, tmp_path):
    predictions, truth = folders
    flat = tmp_path / "flat"
    flat.mkdir()
    for folder in truth.iterdir():
        shutil.copy(folder / "segmentation.nii.gz", flat / f"{folder.name}.nii.gz")
    assert evaluate_folder(predictions, flat).official_csv() == evaluate_folder(predictions, truth).official_csv()


def moved():
    affine = AFFINE.copy()
    affine[0, 3] = 0.01
    return affine


def shifted_one_voxel(path):
    write(path, label_map(), moved())


def other_shape(path):
    write(path, label_map()[:-1])


def turned(path):
    write(path, label_map().transpose(2, 1, 0), AFFINE[:, [2, 1, 0, 3]])


def half_labels(path):
    nib.save(nib.Nifti1Image(label_map().astype(np.float32) / 2, AFFINE), path)


def float_labels(path):
    nib.save(nib.Nifti1Image(label_map().astype(np.float32), AFFINE), path)


def label_four(path):
    labels = label_map()
    labels[0, 0, 0] = 4
    write(path, labels)


def negative_label(path):
    labels = label_map().astype(np.int16)
    labels[0, 0, 0] = -1
    nib.save(nib.Nifti1Image(labels, AFFINE), path)


def no_header(path):
    with gzip.open(path, "wb") as stream:
        stream.write(label_map().tobytes())


def empty_file(path):
    path.write_bytes(b"")


def truncated(path):
    path.write_bytes(path.read_bytes()[:-60])


def two_files(path):
    write(path.with_name("case_00001.nii"), label_map())


def four_dimensions(path):
    nib.save(nib.Nifti1Image(np.stack([label_map()] * 2, axis=-1), AFFINE), path)


BROKEN = {
    shifted_one_voxel: "affine",
    other_shape: "shape",
    turned: "shape",
    half_labels: "float32",
    float_labels: "float32",
    label_four: "label 4",
    negative_label: "whole numbers",
    no_header: "header",
    empty_file: "truncated",
    truncated: "too early",
    two_files: "2 files",
    four_dimensions: "4-D",
}


@pytest.mark.parametrize("breaks", BROKEN, ids=lambda f: f.__name__)
@pytest.mark.parametrize("where", ["prediction", "truth"])
def test_a_broken_case_is_named_and_never_scored(folders, tmp_path, breaks, where):
    predictions, truth = folders
    if where == "truth":  # as a folder of label files, where the same can go wrong
        flat = tmp_path / "flat"
        flat.mkdir()
        for folder in truth.iterdir():
            shutil.copy(folder / "segmentation.nii.gz", flat / f"{folder.name}.nii.gz")
        truth = flat
    breaks((predictions if where == "prediction" else truth) / "case_00001.nii.gz")
    table = evaluate_folder(predictions, truth, tmp_path / "out")
    assert [case.case for case in table.cases] == ["case_00000", "case_00500"]
    assert [finding.case for finding in table.findings] == ["case_00001"]
    assert table.findings[0].kind == "error"
    assert BROKEN[breaks] in table.findings[0].message
    assert "case_00001" not in (tmp_path / "out" / OFFICIAL_CSV).read_text()
    assert read_json(tmp_path / "out" / FULL_JSON)["findings"][0]["case"] == "case_00001"


def test_two_files_in_a_case_folder(folders):
    predictions, truth = folders
    write(truth / "case_00001" / "segmentation.nii", label_map())
    assert [finding.case for finding in evaluate_folder(predictions, truth).errors] == ["case_00001"]


def test_whole_floats_can_be_allowed(folders):
    predictions, truth = folders
    float_labels(predictions / "case_00001.nii.gz")
    assert len(evaluate_folder(predictions, truth, allow_float=True).cases) == 3
    half_labels(predictions / "case_00001.nii.gz")
    assert len(evaluate_folder(predictions, truth, allow_float=True).cases) == 2


def test_missing_and_extra_are_named(folders):
    predictions, truth = folders
    (predictions / "case_00001.nii.gz").rename(predictions / "né phrite.nii.gz")
    table = evaluate_folder(predictions, truth)
    assert [(f.kind, f.case) for f in table.findings] == [("extra", "né phrite"), ("missing", "case_00001")]
    assert not table.errors


def test_nothing_scored_leaves_old_tables_alone(folders, tmp_path):
    predictions, truth = folders
    out = tmp_path / "out"
    evaluate_folder(predictions, truth, out)
    before = (out / OFFICIAL_CSV).read_bytes()
    for path in predictions.iterdir():
        empty_file(path)
    assert len(evaluate_folder(predictions, truth, out).errors) == 3
    assert (out / OFFICIAL_CSV).read_bytes() == before


def test_a_folder_that_cannot_be_made_is_said_before_the_work(folders, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="-o"):
        evaluate_folder(*folders, tmp_path / "file" / "out")


@pytest.mark.parametrize(("which", "word"), [(0, "predictions"), (1, "truth")])
def test_empty_folders(folders, tmp_path, which, word):
    empty = tmp_path / "empty"
    empty.mkdir()
    given = list(folders)
    given[which] = empty
    with pytest.raises(DatasetError, match=word):
        evaluate_folder(*given)


def test_the_header_decides_the_spacing_only_where_it_fits(folders):
    predictions, truth = folders
    for path in (predictions / "case_00000.nii.gz", truth / "case_00000" / "segmentation.nii.gz"):
        image = nib.load(path)
        image.header["pixdim"][1:4] = 1.0  # does not fit the affine, which is what places the voxels
        image.set_sform(AFFINE, code=2, update_affine=False)
        nib.save(image, path)
    case = evaluate_folder(predictions, truth).cases[0]
    assert case.spacing == pytest.approx((3.0, 0.8, 0.8)) or case.spacing == pytest.approx((0.8, 0.8, 3.0))
