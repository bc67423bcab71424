"""Statistics whose answers are known by hand."""

import csv
import json

import matplotlib.image
import nibabel as nib
import numpy as np
import pytest

from kits_cascade.data.stats import HU_LOW, case_stats, collect_stats, diameter_mm
from kits_cascade.errors import DatasetError
from kits_cascade.report.stats_figures import write_figures
from kits_cascade.report.stats_tables import hu_summary, summary, write_tables

KITS_AFFINE = np.array([[0, 0, -0.5, 0], [0, -0.5, 0, 0], [-2.0, 0, 0, 0], [0, 0, 0, 1]])


def save(path, array, affine):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def make_case(folder, name, order="kits", image=True):
    """8 slices of 20x20; kidney 4x6x6 in slices 2-5 with two tumours and a cyst in it."""
    label = np.zeros((8, 20, 20), dtype=np.uint8)
    label[2:6, 5:11, 5:11] = 1
    label[2, 5, 5:9] = 2
    label[5, 10, 9:11] = 2
    label[4, 6:8, 6] = 3
    hu = np.full(label.shape, -1000, dtype=np.int16)
    for value, level in ((1, 150), (2, 80), (3, 5)):
        hu[label == value] = level
    hu[0, 0, 0], hu[0, 0, 1] = 3071, -3000
    if order == "kits":  # stored z, y, x, each reversed: canonical order runs the other way
        label, hu, affine = label[::-1, ::-1, ::-1], hu[::-1, ::-1, ::-1], KITS_AFFINE
    else:
        label, hu, affine = label.transpose(2, 1, 0), hu.transpose(2, 1, 0), np.diag([0.5, 0.5, 2.0, 1])
    save(folder / name / "segmentation.nii.gz", label, affine)
    if image:
        save(folder / name / "imaging.nii.gz", hu, affine)


def read(path):
    with path.open() as stream:
        return list(csv.DictReader(stream))


@pytest.fixture
def folder(tmp_path):
    make_case(tmp_path / "kits", "case_00000")
    make_case(tmp_path / "kits", "case_00500", order="ras")
    return tmp_path / "kits"


def test_counts_by_hand_in_both_axis_orders(folder):
    report = collect_stats(folder)
    for case in report.cases:
        assert case.shape == (8, 20, 20)
        assert case.spacing == (2.0, 0.5, 0.5)
        assert case.voxels.tolist() == [3200 - 144, 144 - 8, 6, 2]
        assert case.slices[:, 2].tolist() == [0, 0, 4, 0, 0, 2, 0, 0]
        assert case.slices[:, 3].tolist() == [0, 0, 0, 0, 2, 0, 0, 0]
        assert case.slices.sum(axis=1).tolist() == [400] * 8
        assert sorted(case.lesions) == [("cyst", 2), ("tumor", 2), ("tumor", 4)]
        assert case.hu_range == (-3000, 3071)
        assert case.histogram.sum() == 3200
        assert case.histogram[150 - HU_LOW].tolist() == [0, 136, 0, 0]
        assert case.histogram[80 - HU_LOW].tolist() == [0, 0, 6, 0]
        assert case.histogram[5 - HU_LOW].tolist() == [0, 0, 0, 2]
        assert case.histogram[-1000 - HU_LOW].tolist() == [3200 - 144 - 2, 0, 0, 0]
        assert case.histogram[0].tolist() == [1, 0, 0, 0]  # -3000, counted at the end
    assert [case.phase for case in report.cases] == ["arterial", "nephrogenic"]


def test_tables(folder, tmp_path):
    out = tmp_path / "out"
    written = write_tables(collect_stats(folder, jobs=2), out)
    assert sorted(path.name for path in written) == sorted(path.name for path in out.iterdir())
    cases = read(out / "cases.csv")
    assert cases[0]["case"] == "case_00000" and cases[0]["slices"] == "8" and cases[0]["spacing_z_mm"] == "2.0"
    assert cases[0]["tumors"] == "2" and cases[0]["cysts"] == "1"
    assert float(cases[0]["tumor_ml"]) == pytest.approx(6 * 0.5 / 1000)
    assert float(cases[0]["kidney_share"]) == pytest.approx(136 / 3200)
    foreground = [150] * 136 + [80] * 6 + [5] * 2
    assert float(cases[0]["foreground_hu_mean"]) == pytest.approx(np.mean(foreground), abs=1e-3)
    assert float(cases[0]["foreground_hu_std"]) == pytest.approx(np.std(foreground), abs=1e-3)
    slices = read(out / "slices.csv")
    assert len(slices) == 16
    assert sum(int(row["tumor_pixels"]) for row in slices) == 12
    assert all(sum(float(row[f"{k}_share"]) for k in ("background", "kidney", "tumor", "cyst")) for row in slices)
    lesions = read(out / "lesions.csv")
    assert [(row["case"], row["kind"], row["voxels"]) for row in lesions[:3]] == [
        ("case_00000", "tumor", "4"),
        ("case_00000", "tumor", "2"),
        ("case_00000", "cyst", "2"),
    ]
    histogram = read(out / "hu_histogram.csv")
    assert sum(int(row["kidney"]) for row in histogram) == 272
    (row,) = [row for row in histogram if int(row["hu_from"]) <= 150 < int(row["hu_below"])]
    assert row["kidney"] == "272"
    whole = json.loads((out / "summary.json").read_text())
    assert whole["cases"] == 2 and whole["phases"] == {"arterial": 1, "nephrogenic": 1}
    assert whole["lesions"]["tumor"]["count"] == 4
    assert whole["slices_with"] == {"kidney": 8, "tumor": 4, "cyst": 2}


def test_percentiles_of_a_histogram():
    histogram = np.zeros(6144, dtype=np.int64)
    histogram[np.arange(0, 1000) - HU_LOW] = 1
    found = hu_summary(histogram)
    assert found["mean"] == 499.5 and found["p50"] == 499 and found["p0.5"] == 4 and found["p99.5"] == 994


def test_diameter_of_a_ball():
    assert diameter_mm(4 / 3 * np.pi * 10**3 / 1000) == pytest.approx(20)


def test_pictures_can_be_opened_and_show_something(folder, tmp_path):
    written = write_figures(collect_stats(folder), tmp_path / "out")
    assert {path.name for path in written} == {
        "slices.png",
        "spacings.png",
        "hu_histogram.png",
        "class_proportions.png",
        "class_proportions_per_slice.png",
        "lesion_sizes.png",
    }
    for path in written:
        pixels = matplotlib.image.imread(path)
        assert pixels.shape[0] > 400 and pixels[..., :3].std() > 0.02


def test_same_input_same_tables(folder, tmp_path):
    for name in ("a", "b"):
        write_tables(collect_stats(folder), tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_masks_alone_give_all_but_hu(tmp_path):
    make_case(tmp_path / "kits", "case_00000", image=False)
    report = collect_stats(tmp_path / "kits")
    assert report.without_image == 1 and report.cases[0].voxels[2] == 6
    names = [path.name for path in (*write_tables(report, tmp_path / "o"), *write_figures(report, tmp_path / "o"))]
    assert "hu_histogram.csv" not in names and "hu_histogram.png" not in names and "slices.png" in names


def test_no_lesions_at_all(tmp_path):
    label = np.zeros((4, 6, 6), dtype=np.uint8)
    label[1:3, 2:4, 2:4] = 1
    save(tmp_path / "kits/a/segmentation.nii", label, np.eye(4))
    report = collect_stats(tmp_path / "kits")
    write_tables(report, tmp_path / "out")
    write_figures(report, tmp_path / "out")
    assert summary(report)["lesions"]["tumor"] == {"count": 0, "volume_ml": {}}


def test_bad_cases_are_left_out_and_named(folder, tmp_path):
    (folder / "case_00000/imaging.nii.gz").write_bytes(b"nothing")
    report = collect_stats(folder)
    assert list(report.bad) == ["case_00000"] and [case.name for case in report.cases] == ["case_00500"]
    assert report.exit_code == 1
    (folder / "case_00500/segmentation.nii.gz").write_bytes(b"nothing")
    with pytest.raises(DatasetError, match="no case could be read"):
        collect_stats(folder)


def test_raw_dataset_gives_the_same(folder, tmp_path):
    raw = tmp_path / "Dataset220_KiTS"
    for part in ("imagesTr", "labelsTr"):
        (raw / part).mkdir(parents=True)
    for case in ("case_00000", "case_00500"):
        (raw / f"imagesTr/{case}_0000.nii.gz").symlink_to(folder / case / "imaging.nii.gz")
        (raw / f"labelsTr/{case}.nii.gz").symlink_to(folder / case / "segmentation.nii.gz")
    assert summary(collect_stats(raw)) == summary(collect_stats(folder))


def test_real_mask_agrees_with_its_published_counts(kits23):
    from kits_cascade.volumes.kits import KitsCase

    rows = {row["case"]: row for row in read(kits23 / "geometry.csv")}
    path = min((kits23 / "masks").glob("*/segmentation.nii.gz"), key=lambda p: p.stat().st_size)
    row, found = rows[path.parent.name], case_stats(KitsCase(path.parent.name, None, path))
    assert found.voxels[1:].tolist() == [int(row[f"{kind}_voxels"]) for kind in ("kidney", "tumor", "cyst")]
    assert found.shape == tuple(int(row[f"n{axis}"]) for axis in range(3))
