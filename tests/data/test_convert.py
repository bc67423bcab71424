"""Converting KiTS folders into Dataset220_KiTS."""

import gzip
import json
import os
import shutil
import subprocess
import sys
import time

import nibabel as nib
import numpy as np
import pytest

from kits_cascade.data.convert import convert_dataset
from kits_cascade.errors import CaseError, DatasetError, UsageError
from kits_cascade.nnunet_folders import open_folders
from kits_cascade.stages import SOURCE_CLASS_ORDER, SOURCE_LABELS

# The stored axes of all published cases: z, y, x, each reversed.
AFFINE = np.array([[0, 0, -0.8, 0], [0, -0.8, 0, 0], [-3.0, 0, 0, 0], [0, 0, 0, 1]])
SHAPE = (6, 12, 10)


def label_array(cyst=True):
    label = np.zeros(SHAPE, dtype=np.uint8)
    label[1:5, 2:9, 2:8] = 1
    label[2:4, 3:5, 3:5] = 2
    if cyst:
        label[3, 6:8, 6:7] = 3
    return label


def save(path, array, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def make_case(folder, name, slices=None, seed=0, ending=".nii.gz", mask="segmentation", cyst=True, hu=(-1000, 1000)):
    image = np.random.default_rng(seed).integers(-200, 300, SHAPE).astype(np.int16)
    image[0, 0, :2] = hu
    label = label_array(cyst)
    if slices:
        image, label = np.resize(image, (slices, *SHAPE[1:])), np.resize(label, (slices, *SHAPE[1:]))
    save(folder / name / f"imaging{ending}", image)
    save(folder / name / f"{mask}{ending}", label)


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "KiTS mit Ümläuten"
    for number in range(3):
        make_case(folder, f"case_{number:05d}", seed=number)
    return folder


@pytest.fixture
def folders(tmp_path, monkeypatch):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, "")
    return open_folders(tmp_path / "nnU-Net")


def snapshot(folder):
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "conversion.json"
    }


def test_layout_names_and_description(source, folders):
    report = convert_dataset(source, folders)
    target = folders.raw / "Dataset220_KiTS"
    assert report.folder == target
    assert report.exit_code == 0
    assert report.converted == ["case_00000", "case_00001", "case_00002"]
    assert sorted(p.name for p in (target / "imagesTr").iterdir()) == [f"case_0000{i}_0000.nii.gz" for i in range(3)]
    assert sorted(p.name for p in (target / "labelsTr").iterdir()) == [f"case_0000{i}.nii.gz" for i in range(3)]
    content = json.loads((target / "dataset.json").read_text())
    assert content["labels"] == {"background": 0, "kidney": [1, 2, 3], "masses": [2, 3], "tumor": 2}
    assert content["labels"] == SOURCE_LABELS
    assert content["regions_class_order"] == [1, 3, 2] == list(SOURCE_CLASS_ORDER)
    assert content["numTraining"] == 3
    assert content["file_ending"] == ".nii.gz"
    assert content["channel_names"] == {"0": "CT"}
    assert content["overwrite_image_reader_writer"] == "NibabelIOWithReorient"


@pytest.mark.filterwarnings("ignore")
def test_nnunet_accepts_the_dataset(source, folders):
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    report = convert_dataset(source, folders)
    verify_dataset_integrity(str(report.folder), num_processes=1)
    report = convert_dataset(source, folders, dataset_id=230, drop_cyst=True)
    verify_dataset_integrity(str(report.folder), num_processes=1)


def test_images_are_hard_links_and_survive_the_source(source, folders):
    report = convert_dataset(source, folders)
    image = report.folder / "imagesTr" / "case_00001_0000.nii.gz"
    assert report.links == {"hard link": 3}
    assert image.samefile(source / "case_00001" / "imaging.nii.gz")
    before = image.read_bytes()
    shutil.rmtree(source)
    assert image.read_bytes() == before


def test_symbolic_link_where_hard_links_do_not_work(source, folders, monkeypatch):
    def no_link(*_args, **_kwargs):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_link)
    report = convert_dataset(source, folders)
    image = report.folder / "imagesTr" / "case_00001_0000.nii.gz"
    assert report.links == {"symbolic link": 3}
    assert image.is_symlink() and image.samefile(source / "case_00001" / "imaging.nii.gz")
    monkeypatch.setattr(os, "symlink", no_link)
    report = convert_dataset(source, folders, dataset_id=230)
    assert report.links == {"copy": 3}


def test_copy_is_independent_and_replaces_links(source, folders):
    convert_dataset(source, folders)
    report = convert_dataset(source, folders, copy=True)
    assert report.links == {"copy": 3}
    image = report.folder / "imagesTr" / "case_00001_0000.nii.gz"
    assert not image.samefile(source / "case_00001" / "imaging.nii.gz")
    assert image.read_bytes() == (source / "case_00001" / "imaging.nii.gz").read_bytes()
    assert convert_dataset(source, folders, copy=True).kept == ["case_00000", "case_00001", "case_00002"]
    assert convert_dataset(source, folders).kept == ["case_00000", "case_00001", "case_00002"]  # copies are fine too


def test_second_run_does_nothing(source, folders):
    report = convert_dataset(source, folders)
    before = snapshot(report.folder)
    again = convert_dataset(source, folders)
    after = snapshot(report.folder)
    assert again.converted == [] and again.kept == report.converted and again.total == 3
    assert {k: v[1] for k, v in before.items()} == {k: v[1] for k, v in after.items()}
    assert {k: v[0] for k, v in before.items() if "Tr" in k} == {k: v[0] for k, v in after.items() if "Tr" in k}


def test_new_changed_and_lost_cases_are_taken_up(source, folders):
    convert_dataset(source, folders)
    make_case(source, "case_00003", seed=9)
    (source / "case_00000" / "segmentation.nii.gz").unlink()
    save(source / "case_00000" / "segmentation.nii.gz", label_array(cyst=False))
    (folders.raw / "Dataset220_KiTS/imagesTr/case_00001_0000.nii.gz").unlink()
    report = convert_dataset(source, folders)
    assert report.converted == ["case_00000", "case_00001", "case_00003"]
    assert report.kept == ["case_00002"]
    label = nib.load(report.folder / "labelsTr/case_00000.nii.gz").get_fdata()
    assert np.array_equal(label, label_array(cyst=False))


def test_changed_options_are_an_error_and_nothing_is_mixed(source, folders):
    report = convert_dataset(source, folders)
    before = snapshot(report.folder)
    with pytest.raises(DatasetError, match="drop_cyst: False before, True now"):
        convert_dataset(source, folders, drop_cyst=True)
    with pytest.raises(DatasetError, match="max_slices: None before, 5 now"):
        convert_dataset(source, folders, max_slices=5)
    other = source.parent / "other"
    make_case(other, "case_00007")
    with pytest.raises(DatasetError, match="source folder"):
        convert_dataset(other, folders)
    assert snapshot(report.folder) == before
    convert_dataset(source, folders, drop_cyst=True, dataset_id=221)


def test_moved_source_is_followed(source, folders, monkeypatch):
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(18, "cross-device")))
    convert_dataset(source, folders)
    moved = source.parent / "moved"
    source.rename(moved)
    report = convert_dataset(moved, folders)
    assert report.total == 3
    assert (report.folder / "imagesTr/case_00000_0000.nii.gz").samefile(moved / "case_00000/imaging.nii.gz")


def test_drop_cyst(source, folders):
    report = convert_dataset(source, folders, drop_cyst=True)
    stored = nib.load(report.folder / "labelsTr" / "case_00000.nii.gz")
    expected = label_array()
    expected[expected == 3] = 1
    assert np.array_equal(np.asarray(stored.dataobj), expected)
    assert np.array_equal(stored.affine, nib.load(source / "case_00000/segmentation.nii.gz").affine)
    assert np.array_equal(nib.load(source / "case_00000/segmentation.nii.gz").get_fdata(), label_array())
    content = json.loads((report.folder / "dataset.json").read_text())
    assert content["labels"] == {"background": 0, "kidney": [1, 2], "tumor": 2}
    assert content["regions_class_order"] == [1, 2]


def test_selection(tmp_path, folders):
    source = tmp_path / "kits"
    make_case(source, "case_00000", slices=120)
    make_case(source, "case_00001", slices=110)
    make_case(source, "case_00002", hu=(-1024, 3071))
    make_case(source, "case_00003", hu=(-1024, 1679))
    report = convert_dataset(source, folders, max_slices=110, hu_range=(-1024, 1679))
    assert report.converted == ["case_00001", "case_00003"]
    assert report.unselected == {
        "case_00000": "120 slices, more than 110",
        "case_00002": "HU -1024 to 3071, outside -1024 to 1679",
    }
    assert report.exit_code == 0
    limited = convert_dataset(source, folders, dataset_id=230, max_slices=110, limit=2, jobs=2)
    assert limited.converted == ["case_00001", "case_00002"]
    more = convert_dataset(source, folders, dataset_id=230, max_slices=110, limit=3)
    assert more.converted == ["case_00003"] and more.total == 3


def test_limit_and_cases_keep_what_is_there(source, folders):
    convert_dataset(source, folders)
    report = convert_dataset(source, folders, cases=["case_00001"])
    assert report.kept == ["case_00001"] and report.total == 3
    assert any("2 further cases" in note for note in report.notes)
    with pytest.raises(UsageError, match="case_00009"):
        convert_dataset(source, folders, cases=["case_00009"])


def bad_value(folder):
    label = label_array()
    label[0, 0, 0] = 7
    save(folder / "segmentation.nii.gz", label)


def shape_differs(folder):
    save(folder / "segmentation.nii.gz", label_array()[:, :, :-1])


def affine_differs(folder):
    save(folder / "segmentation.nii.gz", label_array(), AFFINE + np.diag([0, 0, 0, 0]) + np.eye(4, k=3) * 5)


def empty(folder):
    save(folder / "segmentation.nii.gz", np.zeros(SHAPE, dtype=np.uint8))


def half_label(folder):
    save(folder / "segmentation.nii.gz", label_array().astype(np.float32) * 0.5)


def truncated_image(folder):
    path = folder / "imaging.nii.gz"
    path.write_bytes(path.read_bytes()[:-40])


def damaged_image(folder):
    path = folder / "imaging.nii.gz"
    data = bytearray(path.read_bytes())
    data[-6] ^= 0xFF  # in the checksum: everything unpacks, and yet it is wrong
    path.write_bytes(data)


def four_d(folder):
    save(folder / "imaging.nii.gz", np.zeros((*SHAPE, 2), dtype=np.int16))


def nan(folder):
    image = np.zeros(SHAPE, dtype=np.float32)
    image[0, 0, 0] = np.nan
    save(folder / "imaging.nii.gz", image)


def no_image(folder):
    (folder / "imaging.nii.gz").unlink()


def not_an_image(folder):
    with gzip.open(folder / "imaging.nii.gz", "wb") as stream:
        stream.write(b"<html>not found</html>" * 40)


BAD = {
    bad_value: "label values 7",
    shape_differs: "shape",
    affine_differs: "affine",
    empty: "empty: no kidney",
    half_label: "whole numbers",
    truncated_image: "truncated",
    damaged_image: "gzip",
    four_d: "4-D",
    nan: "NaN",
    no_image: "no image",
    not_an_image: "NIfTI",
}


@pytest.mark.parametrize("spoil", BAD, ids=lambda f: f.__name__)
def test_bad_case_is_left_out_with_its_reason(source, folders, spoil):
    spoil(source / "case_00001")
    report = convert_dataset(source, folders)
    assert report.converted == ["case_00000", "case_00002"]
    assert list(report.bad) == ["case_00001"]
    assert BAD[spoil] in report.bad["case_00001"]
    assert report.exit_code == 1
    assert json.loads((report.folder / "dataset.json").read_text())["numTraining"] == 2
    assert not list(report.folder.rglob("*00001*"))
    with pytest.raises(CaseError, match="case_00001") as caught:
        convert_dataset(source, folders, strict=True)
    assert caught.value.exit_code == 1


def test_what_is_in_stays_when_its_source_goes_or_turns_bad(source, folders):
    report = convert_dataset(source, folders)
    before = snapshot(report.folder)
    (source / "case_00001/imaging.nii.gz").unlink()  # to save space: the dataset has it
    report = convert_dataset(source, folders)
    assert report.kept == ["case_00000", "case_00001", "case_00002"] and report.exit_code == 0
    (source / "case_00001/imaging.nii.gz").write_bytes(b"half a download")
    report = convert_dataset(source, folders)
    assert report.total == 3 and report.exit_code == 1
    assert "earlier run" in report.bad["case_00001"]
    assert {k: v[1] for k, v in snapshot(report.folder).items()} == {k: v[1] for k, v in before.items()}


def test_case_removed_by_hand_is_no_longer_counted(source, folders):
    report = convert_dataset(source, folders)
    (report.folder / "labelsTr/case_00001.nii.gz").unlink()
    shutil.rmtree(source / "case_00001")
    report = convert_dataset(source, folders)
    assert report.total == 2
    assert json.loads((report.folder / "dataset.json").read_text())["numTraining"] == 2
    assert not list(report.folder.rglob("*00001*"))


def test_nothing_usable(source, folders):
    for number in range(3):
        truncated_image(source / f"case_{number:05d}")
    with pytest.raises(DatasetError, match="none of 3 cases"):
        convert_dataset(source, folders)
    assert not (folders.raw / "Dataset220_KiTS/dataset.json").exists()


def test_foreign_datasets_stay_untouched(source, folders):
    theirs = folders.raw / "Dataset220_KiTS2023" / "imagesTr"
    theirs.mkdir(parents=True)
    with pytest.raises(DatasetError, match="Dataset220_KiTS2023"):
        convert_dataset(source, folders)
    theirs.parent.rename(folders.raw / "Dataset220_KiTS")
    (folders.raw / "Dataset220_KiTS/dataset.json").write_text("{}")
    with pytest.raises(DatasetError, match=r"not made by kits-cascade convert"):
        convert_dataset(source, folders)
    assert (folders.raw / "Dataset220_KiTS/dataset.json").read_text() == "{}"


def test_the_dataset_is_no_source_of_itself(source, folders):
    report = convert_dataset(source, folders)
    before = snapshot(report.folder)
    with pytest.raises(UsageError):
        convert_dataset(report.folder, folders)
    links = source.parent / "links"
    for name in ("case_00000", "case_00001"):
        (links / name).mkdir(parents=True)
        (links / name / "imaging.nii.gz").symlink_to(report.folder / "imagesTr" / f"{name}_0000.nii.gz")
        (links / name / "segmentation.nii.gz").symlink_to(report.folder / "labelsTr" / f"{name}.nii.gz")
    shutil.rmtree(source)
    with pytest.raises(UsageError, match="which would be written"):
        convert_dataset(links, folders)
    assert snapshot(report.folder) == before


def test_uncompressed_sources_are_packed(tmp_path, folders):
    source = tmp_path / "kits"
    make_case(source, "case_00000", ending=".nii")
    make_case(source, "case_00001")
    make_case(source, "case_00001", ending=".nii")  # both: the compressed file is linked
    report = convert_dataset(source, folders)
    assert report.links == {"packed": 1, "hard link": 1}
    packed = gzip.decompress((report.folder / "imagesTr/case_00000_0000.nii.gz").read_bytes())
    assert packed == (source / "case_00000/imaging.nii").read_bytes()
    assert convert_dataset(source, folders).kept == ["case_00000", "case_00001"]


def test_kits21_and_repository_folders(tmp_path, folders):
    root = tmp_path / "kits21"
    make_case(root / "kits21" / "data", "case_00000", mask="aggregated_MAJ_seg")
    report = convert_dataset(root, folders)
    assert report.converted == ["case_00000"]


def test_kits19_test_cases_and_missing_cysts(tmp_path, folders):
    source = tmp_path / "kits19"
    make_case(source / "data", "case_00000", cyst=False)
    make_case(source / "data", "case_00210", cyst=False)
    (source / "data/case_00210/segmentation.nii.gz").unlink()
    report = convert_dataset(source, folders)
    assert report.converted == ["case_00000"] and report.bad == {}
    assert report.unselected == {"case_00210": "KiTS19 test case, no mask published"}
    assert any("--drop-cyst" in note for note in report.notes)


def test_facts_are_recorded(source, folders):
    make_case(source, "case_00500")
    report = convert_dataset(source, folders)
    cases = json.loads((report.folder / "conversion.json").read_text())["cases"]
    assert cases["case_00000"]["phase"] == "arterial" and cases["case_00500"]["phase"] == "nephrogenic"
    assert cases["case_00000"]["shape"] == list(SHAPE)
    assert cases["case_00000"]["spacing"] == pytest.approx([3.0, 0.8, 0.8])
    assert cases["case_00000"]["label_voxels"] == {"1": 4 * 7 * 6 - 8 - 2, "2": 8, "3": 2}
    assert cases["case_00000"]["hu"] == [-1000, 1000]


def test_processes_give_the_same(source, folders):
    first = convert_dataset(source, folders)
    second = convert_dataset(source, folders, dataset_id=230, jobs=2)
    assert {k: v[1] for k, v in snapshot(first.folder).items()} == {k: v[1] for k, v in snapshot(second.folder).items()}


def test_killed_and_started_again_gives_the_same(tmp_path, folders):
    source = tmp_path / "kits"
    random = np.random.default_rng(0)
    for number in range(5):
        label = np.kron(label_array(), np.ones((8, 16, 16), dtype=np.uint8))
        save(source / f"case_0000{number}/imaging.nii.gz", random.integers(-200, 300, label.shape).astype(np.int16))
        save(source / f"case_0000{number}/segmentation.nii.gz", label)
    whole = convert_dataset(source, folders, dataset_id=230, drop_cyst=True)
    command = [sys.executable, "-c", "from kits_cascade.cli.app import main; main()", "convert", str(source)]
    command += ["--drop-cyst", "-j", "1", "--nnunet-dir", str(folders.raw.parent)]
    target = folders.raw / "Dataset220_KiTS"
    for wanted in (1, 3):  # killed while this file is being written, or the next one read
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(list((target / "imagesTr").glob("*"))) < wanted:
            time.sleep(0.002)
        process.kill()
        process.wait()
    assert not (target / "dataset.json").exists()
    report = convert_dataset(source, folders, drop_cyst=True)
    assert report.total == 5 and report.exit_code == 0
    before, after = snapshot(whole.folder), snapshot(target)
    assert {k: v[1] for k, v in before.items()} == {k: v[1] for k, v in after.items()}
