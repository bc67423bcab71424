"""Case folders, numbers and phases."""

import pytest

from kits_cascade.errors import DatasetError, UsageError
from kits_cascade.volumes.kits import (
    KITS19_CASES,
    KITS23_CASES,
    case_number,
    chosen_names,
    contrast_phase,
    find_kits_cases,
    parse_cases,
)


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def names(cases):
    return [case.name for case in cases]


def test_published_numbers():
    assert len(KITS23_CASES) == 489 and len(KITS19_CASES) == 210
    assert 299 in KITS23_CASES and 300 not in KITS23_CASES and 588 in KITS23_CASES


@pytest.mark.parametrize(
    ("name", "phase"),
    [
        ("case_00000", "arterial"),
        ("case_00499", "arterial"),
        ("case_00500", "nephrogenic"),
        ("case_00589", "nephrogenic"),
        ("case_00600", None),
        ("patient 12", None),
    ],
)
def test_contrast_phase(name, phase):
    assert contrast_phase(name) == phase


def test_case_number_takes_whole_names_only():
    assert case_number("case_00012") == 12
    assert case_number("case_00012_0000") is None and case_number("my case_00012") is None


def test_case_lists():
    assert parse_cases("0-19,400", KITS23_CASES) == [*range(20), 400]
    assert parse_cases(" 3 , 1-2, 2", KITS23_CASES) == [1, 2, 3]
    assert parse_cases("298-401", KITS23_CASES) == [298, 299, 400, 401]
    assert parse_cases(None, [3, 1]) == [1, 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [("300", "no case 300; there are 0-299, 400-588"), ("9-2", "no case"), ("1,,2", "looks like"), ("a", "looks like")],
)
def test_case_lists_that_say_nothing(text, message):
    with pytest.raises(UsageError, match=message):
        parse_cases(text, KITS23_CASES)


@pytest.mark.parametrize("inside", [".", "dataset", "data", "kits21/data"])
def test_folder_of_cases_or_repository(tmp_path, inside):
    folder = tmp_path / inside
    touch(folder, "case_00001/imaging.nii.gz", "case_00001/segmentation.nii.gz", "case_00000/imaging.nii.gz")
    touch(folder, "README.md", ".git/config")
    (folder / "empty").mkdir()
    found = find_kits_cases(tmp_path)
    assert names(found) == ["case_00000", "case_00001"]
    assert found[0].missing == "no segmentation file" and found[1].missing is None


def test_kits21_takes_the_majority_vote(tmp_path):
    touch(
        tmp_path,
        "case_00000/imaging.nii.gz",
        *(f"case_00000/aggregated_{kind}_seg.nii.gz" for kind in ("AND", "MAJ", "OR")),
    )
    (case,) = find_kits_cases(tmp_path)
    assert case.segmentation.name == "aggregated_MAJ_seg.nii.gz"


def test_the_compressed_file_comes_first(tmp_path):
    touch(tmp_path, "a/imaging.nii", "a/imaging.nii.gz", "a/segmentation.nii")
    (case,) = find_kits_cases(tmp_path)
    assert case.image.name == "imaging.nii.gz" and case.segmentation.name == "segmentation.nii"


def test_raw_dataset(tmp_path):
    touch(tmp_path, "imagesTr/b_0000.nii.gz", "imagesTr/b_0001.nii.gz", "imagesTr/a_0000.nii.gz", "labelsTr/b.nii.gz")
    a, b = find_kits_cases(tmp_path)
    assert (a.name, a.segmentation) == ("a", None)
    assert (b.image.name, b.segmentation.name) == ("b_0000.nii.gz", "b.nii.gz")


def test_nothing_there(tmp_path):
    with pytest.raises(DatasetError, match="no such folder"):
        find_kits_cases(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="no KiTS cases here"):
        find_kits_cases(tmp_path)


def test_chosen_names(tmp_path):
    touch(tmp_path, "case_00001/imaging.nii.gz", "case_00007/imaging.nii.gz", "extra/imaging.nii.gz")
    assert chosen_names(tmp_path, None) is None
    assert chosen_names(tmp_path, "0-5") == ["case_00001"]
    with pytest.raises(UsageError, match="there are 1, 7"):
        chosen_names(tmp_path, "3")
