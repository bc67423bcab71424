"""The stage datasets: the rule voxel by voxel, and all that can go wrong on the way."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from kits_cascade.data.datasets import select_stages
from kits_cascade.data.derive import derive_stages
from kits_cascade.errors import DatasetError, UsageError
from kits_cascade.files import TEMPORARY_MARK, read_json
from kits_cascade.volumes.geometry import Box
from kits_cascade.volumes.nifti import read_volume, write_volume
from kits_cascade.volumes.roi_boxes import roi_box
from kits_cascade.volumes.volume import volume_from_array

from .small import make_source, stored, tree, write_source_json

NAMES = {221: "Dataset221_KidneyCoarse", 222: "Dataset222_KidneyFine", 223: "Dataset223_MassesTumor"}


def raw(folders, number):
    return folders.raw / NAMES[number]


def at_source(derived, source, values):
    """The source's values at the derived image's voxels, found by world coordinates, in the derived axis order."""
    to_source = np.linalg.inv(source.affine) @ derived.affine
    matrix, start = np.rint(to_source[:3, :3]).astype(int), np.rint(to_source[:3, 3]).astype(int)
    np.testing.assert_allclose(to_source[:3, :3], matrix, atol=1e-4)  # same voxel size, axes perhaps in another order
    np.testing.assert_allclose(to_source[:3, 3], start, atol=1e-2)  # whole voxels
    slices, order = [], []
    for axis in range(3):
        (column,) = np.flatnonzero(matrix[axis])
        first, step = start[axis], matrix[axis, column]
        last = first + step * (derived.shape[column] - 1)
        assert min(first, last) >= 0 and max(first, last) < source.shape[axis]
        slices.append(slice(first, last + step if last + step >= 0 else None, step))
        order.append(column)
    return values[tuple(slices)].transpose(np.argsort(order))


RULES = {221: lambda truth: truth > 0, 222: lambda truth: truth > 0, 223: lambda truth: (truth == 3) + 2 * (truth == 2)}


def check_case(folders, name):
    """Every voxel of a case in all three datasets, with nibabel and numpy only."""
    source = nib.load(folders.raw / "Dataset220_KiTS" / "labelsTr" / f"{name}.nii.gz")
    truth = np.asarray(source.dataobj)
    image = np.asarray(nib.load(folders.raw / "Dataset220_KiTS" / "imagesTr" / f"{name}_0000.nii.gz").dataobj)
    labelled = {221: np.count_nonzero(truth), 223: np.count_nonzero(truth > 1)}
    labelled[222] = labelled[221]
    for number, rule in RULES.items():
        label = nib.load(raw(folders, number) / "labelsTr" / f"{name}.nii.gz")
        got = np.asarray(label.dataobj)
        assert label.get_data_dtype() == np.uint8
        assert np.array_equal(got, rule(at_source(label, source, truth))), f"{name} {number}"
        assert np.count_nonzero(got) == labelled[number]  # nothing is lost outside the box
        files = sorted((raw(folders, number) / "imagesTr").glob(f"{name}_*"))
        assert len(files) == (2 if number == 223 else 1)
        if number == 221 and files[0].samefile(folders.raw / "Dataset220_KiTS" / "imagesTr" / files[0].name):
            continue  # the very same file
        for file, wanted in zip(files, (image, truth)):
            channel = nib.load(file)
            assert np.allclose(channel.affine, label.affine, atol=1e-4)
            expected = at_source(channel, source, wanted)
            assert np.array_equal(np.asarray(channel.dataobj), expected if wanted is image else expected > 0)


def test_every_voxel_follows_the_rule_in_all_orientations(tmp_path):
    folders = make_source(tmp_path, 6)
    report = derive_stages(folders, jobs=1, margin_mm=6)
    assert report.derived and not report.failed and not report.notes
    for name in report.derived:
        check_case(folders, name)


def test_real_masks_follow_the_rule(tmp_path, kits23):
    """Two masks here, all in the slow test. The mask serves as its own CT: the crop is checked with it."""
    derive_masks(tmp_path, sorted((kits23 / "masks").iterdir())[::20])


@pytest.mark.slow
def test_all_real_masks_follow_the_rule(tmp_path, kits23):
    derive_masks(tmp_path, sorted((kits23 / "masks").iterdir()))


def derive_masks(tmp_path, masks):
    folders = make_source(tmp_path, 0, names=[])
    folder = folders.raw / "Dataset220_KiTS"
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for mask in masks:
        file = mask / "segmentation.nii.gz"
        (folder / "imagesTr" / f"{mask.name}_0000.nii.gz").symlink_to(file)
        (folder / "labelsTr" / f"{mask.name}.nii.gz").symlink_to(file)
    write_source_json(folder, len(masks))
    report = derive_stages(folders)
    assert len(report.derived) == len(masks)
    for mask in masks:
        check_case(folders, mask.name)


def test_margin_and_jitter(tmp_path):
    folders = make_source(tmp_path, 3)
    derive_stages(folders, jobs=1, margin_mm=8, stages=["222"])
    cases = read_json(raw(folders, 222) / "roi.json")["cases"]
    boxes = []
    for name, record in cases.items():
        labels = read_volume(folders.raw / "Dataset220_KiTS" / "labelsTr" / f"{name}.nii.gz")
        tight, box = Box.around(labels.array), Box.from_json(record["box"])
        assert record["shape"] == list(labels.shape)
        np.testing.assert_allclose(record["affine"], labels.affine)
        np.testing.assert_allclose(record["stored_affine"], labels.stored.affine)
        for axis, size in enumerate(labels.spacing):
            low = (tight.start[axis] - box.start[axis]) * size
            high = (box.stop[axis] - tight.stop[axis]) * size
            # 8 mm, rounded up to a voxel, moved by at most 4 mm (half the margin), unless the scan ends before.
            assert 8 - 4 - size <= low <= 8 + 4 + 2 * size or box.start[axis] == 0
            assert 8 - 4 - size <= high <= 8 + 4 + 2 * size or box.stop[axis] == labels.shape[axis]
        boxes.append([a - b for a, b in zip(tight.start, box.start)])
    assert len({tuple(b) for b in boxes}) > 1


def test_a_case_has_the_same_box_whatever_the_other_cases_are(tmp_path):
    one = make_source(tmp_path / "one", names=["case_00000"])
    more = make_source(tmp_path / "more", names=["case_00000", "a case with spaces é"])
    for folders in (one, more):
        derive_stages(folders, jobs=1, stages=["222"])
    records = [read_json(raw(folders, 222) / "roi.json")["cases"] for folders in (one, more)]
    assert records[0]["case_00000"] == records[1]["case_00000"]
    assert "a case with spaces é" in records[1]


def test_second_run_does_nothing_and_any_number_of_workers_gives_the_same(tmp_path):
    first, second = make_source(tmp_path / "a"), make_source(tmp_path / "b")
    derive_stages(first, jobs=1)
    derive_stages(second, jobs=2)
    assert tree(first.raw) == tree(second.raw)
    assert tree(first.preprocessed) == tree(second.preprocessed)
    times = {path: path.stat().st_mtime_ns for path in first.raw.rglob("*.nii.gz")}
    report = derive_stages(first, jobs=1)
    assert not report.derived and len(report.unchanged) == 4
    assert times == {path: path.stat().st_mtime_ns for path in first.raw.rglob("*.nii.gz")}


def test_changed_options_are_said_and_nothing_is_mixed(tmp_path):
    folders = make_source(tmp_path)
    derive_stages(folders, jobs=1)
    before = tree(folders.raw)
    with pytest.raises(DatasetError, match=r"margin_mm: 20.0 there, 12 now.*--overwrite"):
        derive_stages(folders, jobs=1, margin_mm=12)
    assert tree(folders.raw) == before
    report = derive_stages(folders, jobs=1, margin_mm=12, overwrite=True)
    assert len(report.derived) == 4
    fresh = make_source(tmp_path / "fresh")
    derive_stages(fresh, jobs=1, margin_mm=12)
    assert tree(folders.raw) == tree(fresh.raw)


def test_changed_added_and_removed_cases(tmp_path):
    folders = make_source(tmp_path, 3)
    derive_stages(folders, jobs=1)
    source = folders.raw / "Dataset220_KiTS"
    label = read_volume(source / "labelsTr" / "case_00001.nii.gz")
    write_volume(source / "labelsTr" / "case_00001.nii.gz", label, np.where(label.array == 3, 1, label.array))
    for part in ("imagesTr", "labelsTr"):
        next((source / part).glob("case_00002*")).unlink()
    report = derive_stages(folders, jobs=1)
    assert report.derived == ["case_00001"] and report.unchanged == ["case_00000"]
    assert "split was made anew" in " ".join(report.notes)
    for number in NAMES:
        assert read_json(raw(folders, number) / "dataset.json")["numTraining"] == 2
        assert not list(raw(folders, number).rglob("case_00002*"))
    check_case(folders, "case_00001")


def test_taken_ids_and_foreign_folders_are_left_alone(tmp_path):
    folders = make_source(tmp_path, 2)
    (folders.preprocessed / "Dataset223_AMOS2022").mkdir()
    with pytest.raises(DatasetError, match=r"id 223 is taken by .*Dataset223_AMOS2022.*masses=323"):
        derive_stages(folders, jobs=1)
    assert not (folders.raw / NAMES[221]).exists()
    report = derive_stages(folders, jobs=1, stages={"coarse": 221, "masses": 323})
    assert [path.name for path in report.folders.values()] == ["Dataset221_KidneyCoarse", "Dataset323_MassesTumor"]
    foreign = folders.raw / NAMES[222] / "labelsTr"
    foreign.mkdir(parents=True)
    (foreign / "mine.nii.gz").write_bytes(b"precious")
    with pytest.raises(DatasetError, match="was not made by derive-stages"):
        derive_stages(folders, jobs=1, stages=["222"], overwrite=True)
    assert (foreign / "mine.nii.gz").read_bytes() == b"precious"


def test_bad_cases_are_reported_and_left_out(tmp_path):
    folders = make_source(tmp_path, 5)
    source = folders.raw / "Dataset220_KiTS"
    truncated = source / "imagesTr" / "case_00000_0000.nii.gz"
    truncated.write_bytes(truncated.read_bytes()[:-3000])
    label = source / "labelsTr" / "case_00001.nii.gz"
    volume = read_volume(label)
    write_volume(label, volume, np.zeros_like(volume.array))
    write_volume(source / "labelsTr" / "case_00002.nii.gz", volume)  # of another shape and place
    (source / "labelsTr" / "case_00003.nii.gz").unlink()
    report = derive_stages(folders, jobs=1)
    assert report.derived == ["case_00004"]
    reasons = [report.failed[f"case_{number:05d}"] for number in range(4)]
    for reason, words in zip(reasons, ("truncated", "no kidney", "must share one grid", "no such file")):
        assert words in reason
    for number in NAMES:
        assert read_json(raw(folders, number) / "dataset.json")["numTraining"] == 1
        assert {path.name[:10] for path in raw(folders, number).rglob("*.nii.gz")} == {"case_00004"}


def test_no_usable_case_is_an_error(tmp_path):
    folders = make_source(tmp_path, 1)
    (folders.raw / "Dataset220_KiTS" / "labelsTr" / "case_00000.nii.gz").write_bytes(b"no gzip")
    with pytest.raises(DatasetError, match="none of 1 cases could be derived"):
        derive_stages(folders, jobs=1)


def test_missing_source_says_how_to_make_it(tmp_path):
    folders = make_source(tmp_path, 1)
    with pytest.raises(DatasetError, match=r"no dataset 219.*kits-cascade convert"):
        derive_stages(folders, source_id=219)


@pytest.fixture
def predictions(tmp_path):
    """Folders, and coarse predictions of two cases with a speck far away."""
    folders = make_source(tmp_path, 2)
    coarse = tmp_path / "coarse"
    for name in ("case_00000", "case_00001"):
        labels = read_volume(folders.raw / "Dataset220_KiTS" / "labelsTr" / f"{name}.nii.gz")
        mask = np.zeros(labels.shape, np.uint8)
        mask[14:20, 16:22, 6:12] = 1
        mask[38, 0:2, 0] = 1  # a speck, below what a kidney can be
        write_volume(coarse / f"{name}.nii.gz", labels, mask)
    return folders, coarse


def test_roi_from_coarse_predictions(predictions):
    folders, coarse = predictions
    report = derive_stages(folders, jobs=1, margin_mm=6, coarse_predictions=coarse, stages=["222", "223"])
    for name in report.derived:
        mask = read_volume(coarse / f"{name}.nii.gz")
        mask.array[38] = 0
        record = read_json(raw(folders, 222) / "roi.json")["cases"][name]
        assert Box.from_json(record["box"]) == roi_box(mask.array, mask.spacing, 6)
        assert record["box_from"] == "coarse prediction"
        assert record["label_voxels_outside"] > 0
    assert "lie outside the predicted ROI" in report.notes[0]


def test_missing_and_empty_and_foreign_predictions(predictions):
    folders, coarse = predictions
    (coarse / "case_00001.nii.gz").rename(coarse / "kept.nii.gz")
    with pytest.raises(DatasetError, match="no prediction for 1 of 2 cases: case_00001"):
        derive_stages(folders, jobs=1, coarse_predictions=coarse)
    with pytest.raises(UsageError, match="not a folder"):
        derive_stages(folders, jobs=1, coarse_predictions=coarse / "kept.nii.gz")
    kept = read_volume(coarse / "kept.nii.gz")
    write_volume(coarse / "case_00001.nii.gz", kept, np.zeros_like(kept.array))
    wrong = volume_from_array(np.ones((5, 5, 5), np.uint8), spacing=(3.0, 3.0, 3.0))
    write_volume(coarse / "case_00000.nii.gz", wrong)
    report = derive_stages(folders, jobs=1, coarse_predictions=coarse, stages=["222"])
    assert "does not lie on the grid" in report.failed["case_00000"]
    assert report.notes == ["case_00001: the coarse prediction is empty; the ROI comes from the labels"]


def test_kidney_channel_from_out_of_fold_predictions_of_the_crop(predictions, tmp_path):
    """222's validation output lies on the crop's grid; it is placed by its affine, into a box of another size, too."""
    folders, _ = predictions
    derive_stages(folders, jobs=1, margin_mm=4, stages=["222"])
    splits = read_json(folders.raw / "Dataset220_KiTS" / "splits_final.json")
    fold_of = {name: number for number in (1, 0) for name in splits[number]["val"]}
    model = tmp_path / "model"
    for name, fold in fold_of.items():
        crop = read_volume(raw(folders, 222) / "labelsTr" / f"{name}.nii.gz")
        predicted = np.roll(crop.array, 1, axis=1)
        write_volume(model / f"fold_{fold}" / "validation" / f"{name}.nii.gz", crop, predicted)
        # What a fold says of a case that it was trained with must not be taken.
        write_volume(model / f"fold_{1 - fold}" / "validation" / f"{name}.nii.gz", crop, np.zeros_like(crop.array))
    derive_stages(folders, jobs=1, margin_mm=10, stages=["223"], kidney_predictions=model)
    for name, fold in fold_of.items():
        channel = nib.load(raw(folders, 223) / "imagesTr" / f"{name}_0001.nii.gz")
        assert channel.get_data_dtype() == np.uint8
        predicted = nib.load(model / f"fold_{fold}" / "validation" / f"{name}.nii.gz")
        wanted = np.argwhere(np.asarray(predicted.dataobj)) @ predicted.affine[:3, :3].T + predicted.affine[:3, 3]
        got = np.argwhere(np.asarray(channel.dataobj)) @ channel.affine[:3, :3].T + channel.affine[:3, 3]
        np.testing.assert_allclose(got[np.lexsort(got.T)], wanted[np.lexsort(wanted.T)], atol=1e-3)
    assert read_json(raw(folders, 223) / "dataset.json")["channel_names"] == {"0": "CT", "1": "noNorm"}


def test_images_of_221_take_no_second_place_on_the_disk(tmp_path):
    folders = make_source(tmp_path, 1)
    derive_stages(folders, jobs=1)
    source = folders.raw / "Dataset220_KiTS" / "imagesTr" / "case_00000_0000.nii.gz"
    assert (raw(folders, 221) / "imagesTr" / source.name).samefile(source)
    pair = [raw(folders, number) / "imagesTr" / source.name for number in (222, 223)]
    assert pair[0].samefile(pair[1])


def test_selecting_stages():
    assert [stage.dataset_id for stage in select_stages(["223", "221"])] == [221, 223]
    assert [stage.dataset_id for stage in select_stages([321, 322, 323])] == [321, 322, 323]
    assert select_stages(["kidney=500"])[0].dataset == "Dataset500_KidneyFine"
    for wrong in (["224"], [], ["kidney=x"], ["kidney=0"], {"kidney": 5, "masses": 5}):
        with pytest.raises(UsageError):
            select_stages(wrong)


# What the command does, with the time that a case takes drawn out, so that kills hit all of its steps.
KILLED = """
import sys, time
from pathlib import Path
from kits_cascade import files
from kits_cascade.data.derive import derive_stages
from kits_cascade.nnunet_folders import open_folders
if __name__ == "__main__":
    derive_stages(open_folders(Path(sys.argv[1])), jobs=2)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_killed_at_random_moments_the_result_is_the_same(tmp_path):
    script = tmp_path / "derive.py"
    script.write_text(KILLED)
    shape = (128, 144, 160)
    undisturbed, killed = (make_source(tmp_path / name, 8, shape=shape) for name in ("a", "b"))
    began = time.monotonic()
    subprocess.run([sys.executable, script, tmp_path / "a"], check=True)
    usual = time.monotonic() - began
    chance = random.Random(7)
    hits = 0
    while hits < 10:
        process = subprocess.Popen([sys.executable, script, tmp_path / "b"])
        try:
            process.wait(chance.uniform(0.3, 0.8) * usual)
            shutil.rmtree(killed.raw / NAMES[chance.choice((221, 222, 223))])  # it was done: something to do again
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            hits += 1
    subprocess.run([sys.executable, script, tmp_path / "b"], check=True)
    assert tree(killed.raw) == tree(undisturbed.raw)
    assert tree(killed.preprocessed) == tree(undisturbed.preprocessed)
    assert not [path for path in tmp_path.rglob("*") if TEMPORARY_MARK in path.name]


def test_temporary_files_of_killed_runs_are_swept(tmp_path):
    folders = make_source(tmp_path, 1)
    derive_stages(folders, jobs=1)
    stray = raw(folders, 222) / "imagesTr" / f"{TEMPORARY_MARK}999999999-x-case_00000_0000.nii.gz"
    stray.write_bytes(b"half")
    derive_stages(folders, jobs=1)
    assert not stray.exists()


def test_stored_reaches_the_source_as_it_was_made():
    """The test's own maker of orientations is right: world coordinates do not depend on them."""
    array = np.arange(24).reshape(2, 3, 4)
    worlds = [stored(array, codes) for codes in ("RAS", "LPS", "SPL")]
    for volume in worlds:
        np.testing.assert_array_equal(volume.array, array.transpose(2, 1, 0))


def test_roi_file_is_plain_json(tmp_path):
    folders = make_source(tmp_path, 1)
    derive_stages(folders, jobs=1, margin_mm=0)
    record = json.loads((raw(folders, 223) / "roi.json").read_text())["cases"]["case_00000"]
    labels = read_volume(folders.raw / "Dataset220_KiTS" / "labelsTr" / "case_00000.nii.gz")
    assert Box.from_json(record["box"]) == Box.around(labels.array)  # no margin: no jitter that could cut into it
    assert record["tumor_mm3"] == pytest.approx(64 * 4.5)
    assert Path(raw(folders, 221) / "roi.json").is_file()
