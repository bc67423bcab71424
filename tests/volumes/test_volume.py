import gzip
from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import aff2axcodes

from kits_cascade.errors import FileFormatError, GeometryError, KitsCascadeError
from kits_cascade.volumes.nifti import (
    case_name,
    check_finite,
    read_cropped,
    read_header,
    read_labels,
    read_volume,
    write_volume,
)
from kits_cascade.volumes.volume import volume_from_array, volume_from_stored

SHAPE = (4, 5, 6)
ORIENTATIONS = [(p, f) for p in permutations(range(3)) for f in product((1, -1), repeat=3)]


def affine_of(permutation, flips, oblique=False):
    spacing = (0.7, 0.8, 5.0)
    block = np.zeros((3, 3))
    for axis, (world, flip) in enumerate(zip(permutation, flips)):
        block[world, axis] = flip * spacing[axis]
    if oblique:
        angle = 0.2
        block = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]) @ block
    affine = np.eye(4)
    affine[:3, :3] = block
    affine[:3, 3] = (10, -20, 30)
    return affine


@pytest.mark.parametrize(("permutation", "flips"), ORIENTATIONS)
@pytest.mark.parametrize("oblique", [False, True])
def test_every_orientation_reads_canonically_and_goes_back(tmp_path, permutation, flips, oblique):
    stored = np.random.default_rng(0).integers(-1000, 1000, SHAPE).astype(np.int16)
    affine = affine_of(permutation, flips, oblique)
    path = tmp_path / "a.nii.gz"
    nib.save(nib.Nifti1Image(stored, affine), path)
    volume = read_volume(path)
    reference = nib.as_closest_canonical(nib.load(path))
    assert np.array_equal(volume.array, np.asanyarray(reference.dataobj).transpose(2, 1, 0))
    assert np.allclose(volume.affine, reference.affine, atol=1e-5)
    assert np.allclose(volume.spacing, reference.header.get_zooms()[::-1], atol=1e-6)
    write_volume(tmp_path / "b.nii.gz", volume)
    back = nib.load(tmp_path / "b.nii.gz")
    assert np.array_equal(np.asanyarray(back.dataobj), stored)
    assert np.array_equal(back.affine, nib.load(path).affine)
    assert aff2axcodes(back.affine) == aff2axcodes(affine)


@pytest.mark.parametrize(
    ("stored", "expected"), [("u1", "u1"), ("i2", "i2"), ("f8", "f4"), ("f4", "f4"), (">i2", "i2")]
)
def test_types_stay_small(tmp_path, stored, expected):
    array = np.arange(24, dtype=stored).reshape(2, 3, 4)
    nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii")
    assert volume.array.dtype == np.dtype(expected)
    assert np.array_equal(volume.array.transpose(2, 1, 0), array)


def test_scaling_is_applied(tmp_path):
    image = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.eye(4))
    image.header.set_slope_inter(0.5, -3)
    nib.save(image, tmp_path / "a.nii.gz")
    reference = nib.load(tmp_path / "a.nii.gz").get_fdata()
    assert np.allclose(read_volume(tmp_path / "a.nii.gz").array.transpose(2, 1, 0), reference)


def test_header_survives_and_bytes_repeat(tmp_path):
    image = nib.Nifti1Image(np.zeros(SHAPE, np.float64), affine_of((2, 1, 0), (-1, -1, -1)))
    image.header["descrip"] = b"scanner"
    image.set_qform(image.affine, code=1)
    nib.save(image, tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz")
    labels = np.ones(volume.shape, np.uint8)
    for name in ("b.nii.gz", "c.nii.gz"):
        write_volume(tmp_path / name, volume, labels)
    back = nib.load(tmp_path / "b.nii.gz")
    assert back.header.get_data_dtype() == np.uint8
    assert back.header["descrip"] == image.header["descrip"]
    assert (back.header["qform_code"], back.header["sform_code"]) == (1, 2)
    assert (tmp_path / "b.nii.gz").read_bytes() == (tmp_path / "c.nii.gz").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]


def test_a_crop_lies_where_it_was(tmp_path):
    volume = volume_from_stored(np.random.default_rng(1).random(SHAPE), affine_of((2, 0, 1), (-1, 1, -1)))
    part = volume.cropped((slice(1, 4), slice(2, 5), slice(0, 3)))
    for index in ((0, 0, 0), (2, 1, 2)):
        world = part.affine @ [*index[::-1], 1]
        there = np.round(np.linalg.inv(volume.affine) @ world)[:3].astype(int)[::-1]
        assert part.array[index] == volume.array[tuple(there)]


@pytest.mark.parametrize(("permutation", "flips"), ORIENTATIONS)
def test_reading_a_part_gives_the_part(tmp_path, permutation, flips):
    stored = np.random.default_rng(2).integers(-1000, 1000, SHAPE).astype(np.int16)
    image = nib.Nifti1Image(stored, affine_of(permutation, flips, oblique=True))
    image.header.set_slope_inter(2, -100)
    nib.save(image, tmp_path / "a.nii.gz")
    slices = (slice(1, 3), slice(0, 2), slice(2, 4))
    part, whole = read_cropped(tmp_path / "a.nii.gz", slices), read_volume(tmp_path / "a.nii.gz").cropped(slices)
    assert np.array_equal(part.array, whole.array) and part.array.dtype == whole.array.dtype
    assert np.allclose(part.affine, whole.affine, atol=1e-4) and part.stored.shape == whole.stored.shape


def test_reading_a_part_of_a_truncated_file_is_an_error(tmp_path):
    path = tmp_path / "a.nii.gz"
    nib.save(nib.Nifti1Image(np.random.default_rng(2).random((20, 20, 20)), np.eye(4)), path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(FileFormatError, match="truncated"):
        read_cropped(path, (slice(0, 2), slice(0, 2), slice(0, 2)))


def broken(tmp_path, kind):
    path = tmp_path / "é broken.nii.gz"
    nib.save(nib.Nifti1Image(np.random.default_rng(0).random((20, 20, 20)), np.eye(4)), path)
    content = path.read_bytes()
    image = nib.Nifti1Image(np.zeros((4, 4, 4, 2) if kind == "4d" else (4, 4), np.float32), np.eye(4))
    if kind == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "flipped":
        path.write_bytes(content[:-6] + bytes([content[-6] ^ 255]) + content[-5:])
    elif kind == "text":
        path.write_text("hello")
    elif kind == "gzipped text":
        path.write_bytes(gzip.compress(b"hello " * 200))
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind in {"4d", "2d"}:
        nib.save(image, path)
    elif kind == "missing":
        path.unlink()
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    elif kind == "zero spacing":
        data = bytearray(gzip.decompress(content))
        data[80:84] = np.float32(0).tobytes()
        path.write_bytes(gzip.compress(bytes(data)))
    return path


KINDS = ["truncated", "flipped", "text", "gzipped text", "empty", "4d", "2d", "missing", "folder", "zero spacing"]


@pytest.mark.parametrize("kind", KINDS)
def test_broken_files_are_named(tmp_path, kind):
    path = broken(tmp_path, kind)
    with pytest.raises(KitsCascadeError, match="é broken") as caught:
        read_volume(path)
    assert "\n" not in str(caught.value)


def test_labels_are_whole_numbers(tmp_path):
    nib.save(nib.Nifti1Image(np.full(SHAPE, 2.0), np.eye(4)), tmp_path / "good.nii.gz")
    nib.save(nib.Nifti1Image(np.full(SHAPE, 1.5), np.eye(4)), tmp_path / "bad.nii.gz")
    assert read_labels(tmp_path / "good.nii.gz").array.dtype == np.uint8
    with pytest.raises(FileFormatError, match="whole numbers"):
        read_labels(tmp_path / "bad.nii.gz")


def test_not_finite_is_counted(tmp_path):
    array = np.zeros(SHAPE, np.float32)
    array[0, 0, :2] = np.nan, np.inf
    with pytest.raises(FileFormatError, match="2 voxels"):
        check_finite(volume_from_array(array), tmp_path / "x.nii")
    check_finite(volume_from_array(np.zeros(SHAPE)), tmp_path / "x.nii")


def test_singular_affine_is_an_error():
    with pytest.raises(GeometryError):
        volume_from_stored(np.zeros(SHAPE), np.diag([1.0, 0, 1, 1]))


def test_header_alone(tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6, 1), np.uint8), np.diag([1.0, 2, 3, 1])), tmp_path / "a.nii.gz")
    shape, affine, _ = read_header(tmp_path / "a.nii.gz")
    assert shape == (4, 5, 6)
    assert np.array_equal(affine, np.diag([1.0, 2, 3, 1]))
    assert read_volume(tmp_path / "a.nii.gz").shape == (6, 5, 4)


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("x_0000.nii.gz", "x"),
        ("x.nii", "x"),
        ("Müller 3.mha", "Müller 3"),
        ("a.b.nrrd", "a.b"),
        ("case_00001.nii.gz", "case_00001"),
    ],
)
def test_case_names(tmp_path, name, case):
    assert case_name(tmp_path / name) == case
