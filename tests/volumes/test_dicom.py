import warnings

import numpy as np
import pytest
import SimpleITK

from kits_cascade.errors import CaseError
from kits_cascade.volumes.cases import load_case, write_result
from kits_cascade.volumes.find import find_inputs

UID = "1.2.826.0.1.3680043.2.1125."
AXIAL = (1, 0, 0, 0, 1, 0)


def values(count=6, seed=0):
    return np.random.default_rng(seed).integers(-1000, 1000, (count, 8, 9)).astype(np.int16)


def tags(**given):
    base = {
        "0008|0060": "CT",
        "0008|0008": "ORIGINAL\\PRIMARY\\AXIAL",
        "0020|000d": UID + "1",
        "0020|000e": UID + "2",
        "0008|103e": "arteriell 5 mm",
        "0020|0011": "3",
        "0028|1052": "-1024",
        "0028|1053": "1",
    }
    names = {"modality": "0008|0060", "kind": "0008|0008", "series": "0020|000e", "text": "0008|103e"}
    names |= {"intercept": "0028|1052", "slope": "0028|1053"}
    return base | {names[key]: value for key, value in given.items()}


def write_slice(path, plane, position, orientation=AXIAL, pixel=(0.7, 0.8), **given):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(plane)
    image.SetSpacing(pixel)
    placed = {
        "0020|0032": "\\".join(f"{v:.6f}" for v in position),
        "0020|0037": "\\".join(f"{v:.8f}" for v in orientation),
    }
    for key, value in (tags(**given) | placed).items():
        image.SetMetaData(key, value)
    writer = SimpleITK.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetImageIO("GDCMImageIO")
    writer.SetFileName(str(path))
    writer.Execute(image)


def write_series(folder, array=None, step=(0.0, 0.0, 2.5), skip=(), ending=".dcm", reverse=False, **given):
    array = values() if array is None else array
    for index, plane in enumerate(array):
        if index in skip:
            continue
        position = np.array([-10.0, -20, 100]) + index * np.array(step)
        number = len(array) - index if reverse else index
        write_slice(folder / f"IM{number:03d}{ending}", plane, position, **given)
    return folder


def load_only(folder):
    cases = find_inputs(folder)
    assert len(cases) == 1
    return load_case(cases[0])


def reason(folder):
    with pytest.raises(CaseError) as caught:
        load_only(folder)
    assert "\n" not in caught.value.reason
    return caught.value.reason


@pytest.mark.parametrize("ending", [".dcm", "", ".IMA"])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_series_becomes_a_volume_in_its_place(tmp_path, ending, reverse):
    folder = write_series(tmp_path / "Zoë Müller", ending=ending, reverse=reverse)
    (folder / "DICOMDIR").touch()
    (folder / "readme.txt").write_text("x")
    loaded = load_only(folder)
    assert loaded.case.name == "Zoë Müller"
    volume = loaded.volume
    assert volume.array.dtype == np.int16
    assert np.allclose(volume.spacing, (2.5, 0.8, 0.7))
    # LPS to RAS: x and y turn round.
    assert np.array_equal(volume.array, values()[:, ::-1, ::-1])
    corner = volume.affine @ [8, 7, 0, 1]
    assert np.allclose(corner[:3], (10, 20, 100))


def test_the_result_lies_on_the_grid_of_the_series(tmp_path):
    folder = write_series(tmp_path / "p1")
    loaded = load_only(folder)
    out = write_result(loaded, (loaded.volume.array > 0).astype(np.uint8), tmp_path / "out")
    assert out.name == "p1.nii.gz"
    back = SimpleITK.ReadImage(str(out))
    series = SimpleITK.ReadImage(sorted(str(path) for path in folder.iterdir()))
    assert np.array_equal(SimpleITK.GetArrayFromImage(back), values() > 0)
    for get in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert np.allclose(getattr(back, get)(), getattr(series, get)(), atol=1e-5)


def test_folders_of_series(tmp_path):
    write_series(tmp_path / "b" / "study" / "series 2")
    write_series(tmp_path / "a")
    (tmp_path / "empty").mkdir()
    cases = find_inputs(tmp_path)
    assert [(case.name, bool(case.problem)) for case in cases] == [
        ("a", False),
        ("b_study_series 2", False),
        ("empty", True),
    ]
    assert load_case(cases[1]).volume.shape == (6, 8, 9)


def test_series_beside_images_and_above_other_series(tmp_path):
    write_series(tmp_path)
    write_series(tmp_path / "a")
    write_series(tmp_path / "a" / "b")
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values()), str(tmp_path / "x.nii.gz"))
    assert [case.name for case in find_inputs(tmp_path)] == sorted([tmp_path.name, "a", "a_b", "x"])


def test_rescaling_slice_by_slice(tmp_path):
    array = values()
    for index, plane in enumerate(array):
        slope = "2" if index == 3 else "1"
        stored = (plane // 2 * 2).astype(np.int16)
        write_slice(tmp_path / f"{index}.dcm", stored, (0, 0, 2.5 * index), slope=slope, intercept="-1024")
    volume = load_only(tmp_path).volume
    assert np.array_equal(volume.array[:, ::-1, ::-1], array // 2 * 2)


def test_coronal_and_oblique_series(tmp_path):
    tilt = np.deg2rad(20)
    column = (0, np.cos(tilt), np.sin(tilt))
    normal = np.cross((1, 0, 0), column)
    write_series(tmp_path / "oblique", step=tuple(3 * normal), orientation=(1, 0, 0, *column))
    write_series(tmp_path / "coronal", step=(0, 3, 0), orientation=(1, 0, 0, 0, 0, -1))
    loaded = {case.name: load_case(case).volume for case in find_inputs(tmp_path)}
    assert np.allclose(loaded["oblique"].spacing, (3, 0.8, 0.7))
    assert loaded["coronal"].shape == (8, 6, 9)
    assert np.allclose(loaded["coronal"].spacing, (0.8, 3, 0.7))
    assert np.array_equal(loaded["coronal"].array[::-1, ::-1, ::-1], values().transpose(1, 0, 2))


def test_a_missing_slice_is_named(tmp_path):
    said = reason(write_series(tmp_path / "a", skip=(2, 3)))
    assert "2 missing slices" in said
    assert "IM001.dcm" in said
    assert "7.50 mm" in said


def test_uneven_distances_are_named(tmp_path):
    for index, z in enumerate((0, 2.5, 5, 7.5, 10.5, 13)):
        write_slice(tmp_path / f"{index}.dcm", values()[index], (0, 0, z))
    assert "uneven slice distances, 2.50 to 3.00 mm" in reason(tmp_path)


def test_rounded_positions_are_even(tmp_path):
    for index, z in enumerate((0, 0.62, 1.25, 1.87, 2.5, 3.12)):
        write_slice(tmp_path / f"{index}.dcm", values()[index], (0, 0, z))
    assert load_only(tmp_path).volume.shape == (6, 8, 9)


def test_gantry_tilt_is_named(tmp_path):
    step = (0, 2.5 * np.tan(np.deg2rad(15)), 2.5)
    assert "gantry tilt of 15.0 degrees" in reason(write_series(tmp_path / "a", step=step))


def test_mixed_series_are_named(tmp_path):
    write_series(tmp_path / "a")
    write_series(tmp_path / "a", ending="v.dcm", series=UID + "9", text="venous")
    said = reason(tmp_path / "a")
    assert "2 series in one folder: '3 arteriell 5 mm' (6 files), '3 venous' (6 files)" in said
    assert "a folder of its own" in said


def test_scouts_and_other_modalities_are_set_aside(tmp_path):
    write_series(tmp_path / "a")
    write_slice(
        tmp_path / "a" / "scout.dcm", values()[0], (0, 0, 0), kind="ORIGINAL\\PRIMARY\\LOCALIZER", series=UID + "7"
    )
    write_slice(tmp_path / "a" / "sr.dcm", values()[0], (0, 0, 0), modality="OT", series=UID + "8", text="dose")
    loaded = load_only(tmp_path / "a")
    assert loaded.volume.shape == (6, 8, 9)
    assert sorted(loaded.warnings) == [
        "set aside: '3 arteriell 5 mm' (1 files, scout view)",
        "set aside: '3 dose' (1 files, OT)",
    ]


def test_what_else_can_be_wrong(tmp_path):
    assert "a single slice" in reason(write_series(tmp_path / "one", values(1)))
    assert "no CT series" in reason(write_series(tmp_path / "mr", modality="MR"))
    write_series(tmp_path / "twice")
    write_series(tmp_path / "twice", ending="b.dcm")
    assert "6 slices lie where another lies" in reason(tmp_path / "twice")
    write_series(tmp_path / "sizes")
    write_slice(tmp_path / "sizes" / "x.dcm", values()[0][:5], (-10, -20, 115))
    assert "different size" in reason(tmp_path / "sizes")
    write_series(tmp_path / "broken")
    whole = (tmp_path / "broken" / "IM002.dcm").read_bytes()
    (tmp_path / "broken" / "IM002.dcm").write_bytes(whole[:200])
    assert "IM002.dcm" in reason(tmp_path / "broken")
    write_series(tmp_path / "cut")
    (tmp_path / "cut" / "IM002.dcm").write_bytes(whole[:-40])
    assert "IM002.dcm is not a readable DICOM image" in reason(tmp_path / "cut")


def test_many_slices_in_one_file(tmp_path):
    pydicom = pytest.importorskip("pydicom", reason="the extra dicom is not installed")
    image = SimpleITK.GetImageFromArray(values())
    image.SetSpacing((0.7, 0.8, 2.5))
    image.SetMetaData("0008|0060", "CT")
    path = tmp_path / "all.dcm"
    SimpleITK.WriteImage(image, str(path))
    volume = load_only(tmp_path).volume
    assert np.array_equal(volume.array, values()[:, ::-1, ::-1])
    assert np.allclose(volume.spacing, (2.5, 0.8, 0.7))
    header = pydicom.dcmread(path)
    del header.PerFrameFunctionalGroupsSequence
    header.save_as(path)
    assert "many slices in one file, whose positions cannot be checked" in reason(tmp_path)


def test_itk_keeps_quiet(tmp_path, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_only(write_series(tmp_path / "a"))
    assert capfd.readouterr() == ("", "")
