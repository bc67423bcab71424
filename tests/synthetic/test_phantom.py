import nibabel as nib
import numpy as np
import pytest

from kits_cascade.errors import DatasetError
from kits_cascade.labels import CYST, KIDNEY, TUMOR
from kits_cascade.synthetic import phantom
from kits_cascade.synthetic.painter import PaintOptions, Sources, paint_case
from kits_cascade.synthetic.phantom_sources import write_sources
from kits_cascade.volumes.components import components
from kits_cascade.volumes.nifti import read_volume, write_volume


@pytest.fixture(scope="module")
def cases():
    return [phantom.make_case(0, index, in_plane_mm=3.0, slice_mm=5.0) for index in range(6)]


def test_every_variant_is_what_it_says(cases):
    found = [phantom.describe(case) for case in cases]
    assert [f["variant"] for f in found] == list(phantom.VARIANTS)
    assert all(f["tumors"] >= 1 for f in found)
    assert found[1]["kidneys"] == found[3]["kidneys"] == 1
    assert found[2]["cysts"] == 0
    # A horseshoe crosses the middle of the body.
    horseshoe = cases[3].labels.array
    assert horseshoe[:, :, horseshoe.shape[2] // 2].any()


def test_small_tumor_has_a_few_hundred_voxels_at_scanner_resolution():
    case = phantom.make_case(0, 4)
    millilitres = (case.labels.array == TUMOR).sum() * case.labels.voxel_mm3 / 1000
    assert 1 < millilitres < 8


def test_attenuation_is_that_of_a_scan(cases):
    for case in cases:
        image, labels = case.image.array, case.labels.array
        core = np.zeros_like(labels, bool)
        core[1:-1] = (labels[1:-1] == labels[:-2]) & (labels[1:-1] == labels[2:])
        assert image.dtype == np.int16
        assert image.min() >= -1024
        assert 120 < np.median(image[core & (labels == KIDNEY)]) < 220
        assert 20 < np.median(image[core & (labels == TUMOR)]) < 120
        if (core & (labels == CYST)).sum() > 20:
            assert -20 < np.median(image[core & (labels == CYST)]) < 60
        assert (image < -900).mean() > 0.2  # air around the body


def test_same_seed_same_bytes(tmp_path):
    for name in ("a", "b"):
        phantom.write_cases(tmp_path / name, 1, seed=3, in_plane_mm=4.0, slice_mm=5.0)
    for file in ("imaging.nii.gz", "segmentation.nii.gz"):
        first, second = ((tmp_path / name / "case_00000" / file).read_bytes() for name in ("a", "b"))
        assert first == second
    other = phantom.make_case(4, 0, in_plane_mm=4.0, slice_mm=5.0).image.array
    assert not np.array_equal(other, phantom.make_case(3, 0, in_plane_mm=4.0, slice_mm=5.0).image.array)


def test_stored_as_kits_stores(tmp_path):
    (folder,) = phantom.write_cases(tmp_path, 1, in_plane_mm=4.0, slice_mm=5.0)
    image = nib.load(folder / "imaging.nii.gz")
    assert image.shape[0] < image.shape[1] == image.shape[2]
    assert np.allclose(image.affine[:3, :3], [[0, 0, -4], [0, -4, 0], [-5, 0, 0]])
    assert np.allclose(image.header.get_zooms(), (5, 4, 4))


def test_ct_around_a_mask(tmp_path):
    case = phantom.make_case(1, 0, in_plane_mm=4.0, slice_mm=5.0)
    write_volume(tmp_path / "masks" / "case_00007" / "segmentation.nii.gz", case.labels)
    (folder,) = phantom.write_from_masks(tmp_path / "out", tmp_path / "masks", seed=5)
    image, labels = read_volume(folder / "imaging.nii.gz"), read_volume(folder / "segmentation.nii.gz")
    assert np.array_equal(labels.array, case.labels.array)
    assert np.array_equal(image.affine, case.labels.affine)
    assert np.median(image.array[labels.array == KIDNEY]) > 100
    around = components(image.array > -300)
    assert around.voxels.max() > 10 * (labels.array > 0).sum()  # a body, not kidneys in the air
    assert np.array_equal(image.array, phantom.paint_ct(case.labels, seed=5).array)


def test_a_folder_without_masks_is_an_error(tmp_path):
    with pytest.raises(DatasetError, match="KiTS layout"):
        phantom.write_from_masks(tmp_path / "out", tmp_path)


def test_on_a_real_mask(kits23, tmp_path):
    (folder,) = phantom.write_from_masks(tmp_path, kits23 / "masks", limit=1)
    image, labels = read_volume(folder / "imaging.nii.gz"), read_volume(folder / "segmentation.nii.gz")
    assert image.shape == labels.shape
    assert 100 < np.median(image.array[labels.array == KIDNEY]) < 230


def test_made_up_sources_can_be_painted(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bodies, masks = write_sources(tmp_path, 1, seed=2)
    case = paint_case(Sources.find(bodies, masks), 0, 0, PaintOptions((6.0, 6.0, 6.0), view="abdomen"))
    assert set(np.unique(case.labels)) >= {0, KIDNEY, TUMOR}
    left, right = (case.labels[:, :, part] for part in np.array_split(np.arange(case.labels.shape[2]), 2))
    assert left.any()
    assert right.any()
