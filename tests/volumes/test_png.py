"""Slices as PNG files and back: every axis, every storage order, with and without resizing."""

import csv

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from kits_cascade.cli.app import app
from kits_cascade.errors import DatasetError, UsageError
from kits_cascade.volumes.nifti import read_labels, read_volume, write_volume
from kits_cascade.volumes.png_assembly import assemble_slices
from kits_cascade.volumes.png_export import export_slices
from kits_cascade.volumes.png_slices import AXES, SliceOptions
from tests.data.small import ORIENTATIONS, case_arrays, stored


@pytest.fixture
def source(tmp_path):
    for index, codes in enumerate(ORIENTATIONS[:3]):
        image, labels = case_arrays(index)
        folder = tmp_path / "kits" / f"case_{index:05d}"
        write_volume(folder / "imaging.nii.gz", stored(image, codes))
        write_volume(folder / "segmentation.nii.gz", stored(labels, codes))
    return tmp_path / "kits"


def rows(folder):
    with (folder / "slices.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("labelled", [True, False])
def test_masks_come_back_voxel_for_voxel(source, tmp_path, axis, labelled):
    export, back = tmp_path / "png", tmp_path / "back"
    report = export_slices(source, export, SliceOptions(axis, crop=True, labelled=labelled))
    assert not report.bad and len(report.written) == 3
    assert not assemble_slices(export / "masks", export, back).bad
    for name in report.written:
        truth, again = read_labels(source / name / "segmentation.nii.gz"), read_labels(back / f"{name}.nii.gz")
        assert np.array_equal(truth.array, again.array)
        assert truth.stored.shape == again.stored.shape
        assert np.allclose(truth.stored.affine, again.stored.affine)


def test_resized_masks_come_back_nearly(source, tmp_path):
    export, back = tmp_path / "png", tmp_path / "back"
    export_slices(source, export, SliceOptions(size=96))
    assemble_slices(export / "masks", export, back)
    for path in back.glob("*.nii.gz"):
        truth = read_labels(source / path.name.removesuffix(".nii.gz") / "segmentation.nii.gz").array
        assert (read_labels(path).array != truth).mean() < 0.002


def test_window_gamma_and_how_a_slice_hangs(source, tmp_path):
    options = SliceOptions(window=(0, 100), gamma=2.0)
    export_slices(source, tmp_path / "png", options)
    volume = read_volume(source / "case_00000" / "imaging.nii.gz")
    grey = np.asarray(Image.open(tmp_path / "png/images/case_00000_axial_0015.png")).astype(int)
    expected = np.clip(volume.array[15].astype(float) / 100, 0, 1) ** 2 * 255
    # Canonical y and x run to the front and to the right: the first row is the front, the first column the right.
    assert np.abs(grey - expected[::-1, ::-1]).max() <= 0.51


def test_the_manifest_says_where_a_slice_is(source, tmp_path):
    export_slices(source, tmp_path / "png", SliceOptions("sagittal", size=64))
    table = rows(tmp_path / "png")
    assert len(table) == 3 * 36
    first = table[6]
    assert (first["case"], first["slice"], first["rows"], first["columns"]) == ("case_00000", "6", "64", "64")
    assert float(first["row_mm"]) == pytest.approx(2.0 * 40 / 64, rel=1e-5)
    assert float(first["column_mm"]) == pytest.approx(1.5 * 44 / 64, rel=1e-5)
    assert float(first["slice_mm"]) == pytest.approx(1.5)
    mask = np.asarray(Image.open(tmp_path / "png" / first["mask"]))
    assert int(first["tumor"]) == (mask == 2).sum() > 0
    assert (tmp_path / "png" / first["image"]).is_file()


def test_a_second_run_keeps_what_is_there_and_other_options_are_refused(source, tmp_path):
    export_slices(source, tmp_path / "png", SliceOptions())
    (tmp_path / "png/cases/case_00001.json").unlink()  # as if it had been stopped there
    again = export_slices(source, tmp_path / "png", SliceOptions())
    assert list(again.written) == ["case_00001"] and again.kept == ["case_00000", "case_00002"]
    assert len(rows(tmp_path / "png")) == 3 * 40
    with pytest.raises(UsageError, match="other options"):
        export_slices(source, tmp_path / "png", SliceOptions(gamma=2))


def test_a_bad_case_does_not_stop_the_others(source, tmp_path):
    (source / "case_00001/imaging.nii.gz").write_bytes(b"no")
    report = export_slices(source, tmp_path / "png", SliceOptions())
    assert list(report.bad) == ["case_00001"] and len(report.written) == 2


def test_images_without_masks(source, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    (source / "case_00000/imaging.nii.gz").rename(folder / "patient.nii.gz")
    assert export_slices(folder, tmp_path / "png", SliceOptions()).written == {"patient": 40}
    assert rows(tmp_path / "png")[0]["mask"] == ""


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "1 of 40 slices are missing"),
        (lambda path: path.write_bytes(b"no"), "not a readable PNG"),
        (lambda path: Image.new("L", (9, 9)).save(path), "9x9 pixels; the slice was exported with 44x36"),
        (lambda path: Image.new("RGB", (36, 44)).save(path), "kind RGB"),
        (lambda path: Image.new("L", (36, 44), 255).save(path), "value 255"),
    ],
)
def test_masks_that_do_not_fit_are_named(source, tmp_path, spoil, message):
    export_slices(source, tmp_path / "png", SliceOptions())
    spoil(tmp_path / "png/masks/case_00001_axial_0012.png")
    report = assemble_slices(tmp_path / "png/masks", tmp_path / "png", tmp_path / "back")
    assert message in report.bad["case_00001"] and "case_00001_axial_0012.png" in report.bad["case_00001"]
    assert len(report.written) == 2


def test_wrong_folders_and_options(source, tmp_path):
    with pytest.raises(DatasetError, match=r"no slices\.json"):
        assemble_slices(source, tmp_path, tmp_path / "back")
    export_slices(source, tmp_path / "png", SliceOptions())
    with pytest.raises(DatasetError, match="no PNG file"):
        assemble_slices(tmp_path / "nowhere", tmp_path / "png", tmp_path / "back")
    for wrong in ({"axis": "oblique"}, {"window": (5.0, 5.0)}, {"gamma": 0.0}, {"size": 2}):
        with pytest.raises(UsageError):
            SliceOptions(**wrong)


def test_the_command(source, tmp_path):
    def call(*arguments):
        return CliRunner().invoke(app, [str(a) for a in ("slices", *arguments, "-j", 1)])

    out = call(source, "-o", tmp_path / "png", "--cases", "0-1", "--window", -100, 300, "--axis", "coronal")
    assert out.exit_code == 0, out.output
    assert "2 cases, listed in slices.csv (88 slices), 0 kept" in out.output
    back = call(tmp_path / "png/masks", "--assemble", tmp_path / "png", "-o", tmp_path / "back")
    assert back.exit_code == 0 and "2 label maps" in back.output
