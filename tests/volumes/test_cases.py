import gzip
import importlib
import os
import sys
from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from kits_cascade.errors import CaseError, UsageError
from kits_cascade.imports import without
from kits_cascade.runs.manifest import RunManifest
from kits_cascade.volumes import cases
from kits_cascade.volumes.cases import load_case, result_path, write_result
from kits_cascade.volumes.find import find_inputs

SHAPE = (6, 7, 8)
AFFINE = np.array([[-0.8, 0, 0, 10], [0, -0.7, 0, 20], [0, 0, 2.5, -30], [0, 0, 0, 1.0]])


def ct(shape=SHAPE, seed=0):
    return np.random.default_rng(seed).integers(-1000, 1000, shape).astype(np.int16)


def nifti(path, array=None, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(ct() if array is None else array, affine), path)
    return path


def names(folder):
    return [(case.name, case.kind, bool(case.problem)) for case in find_inputs(folder)]


def load_only(path):
    return load_case(find_inputs(path)[0])


def test_all_kinds_of_files_are_found_by_name(tmp_path):
    for name in ("x_0000.nii.gz", "y.nii", "Müller, Jörg 3.nii.gz", "case_00000.nii.gz", "._x.nii.gz", "p_0001.nii.gz"):
        nifti(tmp_path / name) if name[0] != "." else (tmp_path / name).touch()
    for name in ("a.mha", "b.nrrd", "notes.txt", "c.json"):
        (tmp_path / name).touch()
    assert names(tmp_path) == [
        ("Müller, Jörg 3", "nifti", False),
        ("a", "itk", False),
        ("b", "itk", False),
        ("case_00000", "nifti", False),
        ("p_0001", "nifti", False),  # a numbered patient, since there is no p_0000
        ("x", "nifti", False),
        ("y", "nifti", False),
    ]


def test_one_file_and_kits_folders(tmp_path):
    image = nifti(tmp_path / "data" / "case_00003" / "imaging.nii.gz")
    nifti(image.with_name("segmentation.nii.gz"))
    nifti(tmp_path / "data" / "case_00004" / "segmentation.nii.gz")
    nifti(tmp_path / "data" / "out" / "case_00003.nii.gz")
    (tmp_path / "data" / "out" / "run.json").touch()
    expected = [("case_00003", "kits", False)]
    assert names(image) == expected
    assert names(image.parent) == expected
    assert names(tmp_path / "data") == [*expected, ("case_00004", "kits", True)]
    assert names(tmp_path) == [*expected, ("case_00004", "kits", True)]  # the folder above, as a download lies
    with pytest.raises(CaseError, match=r"case_00004: imaging.nii.gz is missing"):
        load_only_named(tmp_path, "case_00004")


def load_only_named(folder, name):
    return load_case(next(case for case in find_inputs(folder) if case.name == name))


def test_same_names_and_channels_are_named_and_the_rest_goes_on(tmp_path):
    for name in ("x.nii", "x.nii.gz", "good.nii.gz", "c_0000.nii.gz", "c_0001.nii.gz"):
        nifti(tmp_path / name)
    assert names(tmp_path) == [("c", "nifti", True), ("good", "nifti", False), ("x", "nifti", True)]
    with pytest.raises(CaseError, match=r"2 files go by this name: x.nii, x.nii.gz"):
        load_only_named(tmp_path, "x")
    with pytest.raises(CaseError, match=r"channels of one case.*rename"):
        load_only_named(tmp_path, "c")


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "single dicom"])
def test_nothing_to_do_is_an_error_that_says_what_is_taken(tmp_path, kind):
    source = tmp_path / {"text": "a.txt", "single dicom": "a.dcm"}.get(kind, "folder")
    if kind == "empty":
        source.mkdir()
    elif kind != "missing":
        source.touch()
    with pytest.raises(UsageError, match="folder"):
        find_inputs(source)


def broken(folder, kind):
    path = folder / "é bad.nii.gz"
    nifti(path, np.random.default_rng(0).random((20, 20, 20)))
    content = path.read_bytes()
    special = {"nan": np.nan, "inf": np.inf}
    arrays = {"4-D": np.zeros((4, 4, 4, 2), np.float32), "2-D": np.zeros((9, 9), np.float32)}
    arrays["one slice"] = np.zeros((9, 9, 1), np.float32)
    if kind == "truncated":
        path.write_bytes(content[:-900])
    elif kind == "text":
        path.write_text("hello")
    elif kind in arrays:
        nifti(path, arrays[kind])
    elif kind in special:
        array = np.zeros(SHAPE, np.float32)
        array[2, 3, 4] = special[kind]
        nifti(path, array)
    elif kind == "huge spacing":
        nifti(path, affine=np.diag([700.0, 700, 700, 1]))
    elif kind == "zero spacing":
        data = bytearray(gzip.decompress(content))
        data[80:84] = np.float32(0).tobytes()
        path.write_bytes(gzip.compress(bytes(data)))
    elif kind == "more voxels than memory":
        data = bytearray(gzip.decompress(content))
        data[42:48] = np.array([32767] * 3, np.int16).tobytes()
        path.write_bytes(gzip.compress(bytes(data)))
    elif kind == "text named .mha":
        path.unlink()
        (folder / "é bad.mha").write_text("hello")
    elif kind == "colour .mha":
        path.unlink()
        image = SimpleITK.Image([5, 5, 5], SimpleITK.sitkVectorUInt8, 3)
        SimpleITK.WriteImage(image, str(folder / "é bad.mha"))
    return path


REASONS = {
    "truncated": "truncated",
    "text": "not a valid gzip",
    "4-D": "4-D image of shape",
    "2-D": "2-D image of shape",
    "one slice": "a single slice",
    "nan": "1 voxels are NaN or infinite",
    "inf": "1 voxels are NaN or infinite",
    "huge spacing": "700 x 700 x 700 mm",
    "zero spacing": "voxel size",
    "more voxels than memory": "memory|truncated",
    "text named .mha": "cannot be read",
    "colour .mha": "3 values per voxel",
}


@pytest.mark.parametrize("kind", REASONS)
def test_what_is_bad_is_said_in_one_line(tmp_path, kind):
    broken(tmp_path, kind)
    with pytest.raises(CaseError, match=REASONS[kind]) as caught:
        load_only(tmp_path)
    assert caught.value.case == "é bad"
    assert "\n" not in caught.value.reason
    assert str(tmp_path) not in caught.value.reason


def test_a_file_without_permission_or_gone_is_named(tmp_path):
    path = nifti(tmp_path / "a.nii.gz")
    case = find_inputs(tmp_path)[0]
    path.unlink()
    with pytest.raises(CaseError, match="no such file"):
        load_case(case)


def test_values_that_need_a_word(tmp_path):
    nifti(tmp_path / "air.nii.gz", np.full(SHAPE, -1000, np.int16))
    nifti(tmp_path / "flat.nii.gz", np.zeros(SHAPE, np.int16))
    nifti(tmp_path / "raw.nii.gz", (ct() + 1024).clip(0).astype(np.uint16))
    nifti(tmp_path / "small.nii.gz", ct((40, 40, 40)))
    loaded = {case.name: load_case(case) for case in find_inputs(tmp_path)}
    assert {name: case.air_only for name, case in loaded.items()} == {
        "air": True,
        "flat": True,
        "raw": False,
        "small": False,
    }
    assert "air only" in loaded["air"].warnings[0]
    assert "Hounsfield" in loaded["raw"].warnings[0]
    assert not loaded["small"].warnings


def labels_of(volume):
    labels = np.zeros(volume.shape, np.uint8)
    labels[0, 1, 2], labels[-1, 0, 0], labels[2, 2, 2] = 1, 2, 3
    return labels


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mha", ".mhd", ".nrrd"])
def test_result_in_shape_place_and_format_of_the_input(tmp_path, ending):
    path = tmp_path / f"Zoë 1{ending}"
    image = SimpleITK.GetImageFromArray(ct())
    image.SetSpacing((0.7, 0.8, 2.5))
    image.SetOrigin((10.5, -20.25, 33))
    # Oblique, axes permuted, one flipped.
    image.SetDirection((0, 0.6, -0.8, 0, 0.8, 0.6, -1, 0, 0))
    SimpleITK.WriteImage(image, str(path))
    loaded = load_only(tmp_path)
    labels = labels_of(loaded.volume)
    out = write_result(loaded, labels, tmp_path / "out")
    assert out.name == "Zoë 1" + {".mhd": ".mha"}.get(ending, ending)
    assert [p.name for p in out.parent.iterdir()] == [out.name]
    back = SimpleITK.ReadImage(str(out))
    assert back.GetSize() == image.GetSize()
    for get in ("GetSpacing", "GetOrigin", "GetDirection"):
        there = getattr(SimpleITK.ReadImage(str(path)), get)()
        assert np.allclose(getattr(back, get)(), there, atol=1e-6 if "nii" in ending else 0)
    assert back.GetPixelID() == SimpleITK.sitkUInt8
    for label in (1, 2, 3):
        here = loaded.volume.affine @ [*np.argwhere(labels == label)[0][::-1], 1]
        index = np.argwhere(SimpleITK.GetArrayFromImage(back) == label)[0][::-1]
        there = back.TransformIndexToPhysicalPoint([int(i) for i in index])
        assert np.allclose(here[:3] * [-1, -1, 1], there, atol=1e-4)


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_itk_in_all_orientations_is_one_volume(tmp_path, order):
    reference = nifti(tmp_path / "reference.nii.gz")
    base = load_only(reference).volume
    for flips in product((False, True), repeat=3):
        image = SimpleITK.Flip(SimpleITK.PermuteAxes(SimpleITK.ReadImage(str(reference)), order), flips, False)
        SimpleITK.WriteImage(image, str(tmp_path / "x.mha"))
        volume = load_only(tmp_path / "x.mha").volume
        assert np.array_equal(volume.array, base.array)
        assert np.allclose(volume.affine, base.affine, atol=1e-4)


def test_results_never_lie_among_the_inputs(tmp_path):
    nifti(tmp_path / "a_0000.nii.gz")
    loaded = load_only(tmp_path)
    with pytest.raises(UsageError, match="the folder of the inputs"):
        write_result(loaded, labels_of(loaded.volume), tmp_path)
    assert result_path(loaded.case, tmp_path / "out") == tmp_path / "out" / "a.nii.gz"


def test_a_name_that_is_no_text(tmp_path):
    path = nifti(tmp_path / "a.nii.gz")
    path.rename(os.fsdecode(os.fsencode(tmp_path) + b"/M\xfcller.nii.gz"))
    nifti(tmp_path / "two\nlines.nii.gz")
    nifti(tmp_path / "good.nii.gz")
    cases = find_inputs(tmp_path)
    assert [(case.name, bool(case.problem)) for case in cases] == [
        ("M?ller", True),
        ("good", False),
        ("two?lines", True),
    ]
    out = tmp_path / "out"
    RunManifest(out).failed(cases[0].name, cases[0].path, cases[0].problem)
    assert "rename it" in (out / "run.json").read_text(encoding="utf-8")


def test_nothing_that_may_be_a_case_is_passed_over(tmp_path):
    nifti(tmp_path / "good.nii.gz")
    (tmp_path / "link.nii.gz").symlink_to(tmp_path / "gone.nii.gz")
    for name in ("OLD.NII.GZ", "pair.hdr", "pair.img"):
        (tmp_path / name).touch()
    assert names(tmp_path) == [
        ("OLD.NII.GZ", "nifti", True),
        ("good", "nifti", False),
        ("link", "nifti", False),
        ("pair.hdr", "nifti", True),
        ("pair.img", "nifti", True),
    ]
    with pytest.raises(CaseError, match=r"link: no such file"):
        load_only_named(tmp_path, "link")
    with pytest.raises(CaseError, match=r"not read here .*convert"):
        load_only_named(tmp_path, "pair.hdr")


def test_ten_times_the_files_are_ten_times_the_work(tmp_path, monkeypatch):
    """Counted, not timed: how often a path is looked up."""
    count, kind = 0, type(tmp_path)
    original = kind.__hash__

    def counted(path):
        nonlocal count
        count += 1
        return original(path)

    monkeypatch.setattr(kind, "__hash__", counted)
    found = []
    for number in (20, 200):
        folder = tmp_path / str(number)
        folder.mkdir()
        for case in range(number):
            (folder / f"{case:03d}_0000.nii.gz").touch()
        count = 0
        assert len(find_inputs(folder)) == number
        found.append(count)
    assert found[1] < 20 * max(found[0], 1)


def test_a_case_that_was_begun_is_read_once(tmp_path, monkeypatch):
    for name in ("a", "b"):
        nifti(tmp_path / f"{name}.nii.gz")
    first, second = find_inputs(tmp_path)
    cases.begin_loading(first)
    read, asked = cases.read_volume, []
    monkeypatch.setattr(cases, "read_volume", lambda path: asked.append(path) or read(path))
    begun = cases._begun[first]
    assert begun.wait(60)
    assert load_case(first) is begun.result()
    np.testing.assert_array_equal(load_case(first).volume.array, begun.result().volume.array)
    assert len(asked) == 1
    cases.begin_loading(first)
    load_case(second)
    assert not cases._begun  # what nobody asked for does not stay in memory


def test_what_is_wrong_with_a_case_that_was_begun_is_said_when_it_is_asked_for(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(b"no scan")
    (case,) = find_inputs(tmp_path)
    cases.begin_loading(case)
    with pytest.raises(CaseError, match="not a valid gzip file"):
        load_case(case)


def test_a_module_can_be_left_out_of_an_import():
    with without("wave"), pytest.raises(ImportError):
        importlib.import_module("wave")
    assert importlib.import_module("wave") is sys.modules["wave"]
    with without("wave"):
        assert importlib.import_module("wave")
