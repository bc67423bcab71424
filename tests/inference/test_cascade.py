"""The cascade over one volume, with an oracle instead of networks."""

import nibabel as nib
import numpy as np
import pytest

from kits_cascade import Cascade
from kits_cascade.errors import UsageError
from kits_cascade.inference.cascade import CascadeOptions, Speed
from kits_cascade.inference.pipeline import paint, paste, run_cascade
from kits_cascade.inference.roi import FineGrid, mask_on_grid, surroundings
from kits_cascade.labels import CYST, KIDNEY, TUMOR
from kits_cascade.volumes.geometry import Box
from kits_cascade.volumes.roi_boxes import kidney_boxes, merge_boxes
from kits_cascade.volumes.volume import volume_from_array
from tests.inference.oracle import HU, Oracle

SPACING = (4.0, 2.0, 2.0)
RAW = CascadeOptions(postprocess=None)
GRID = FineGrid((0.78125, 0.78125, 0.78125), (128, 96, 96), 0.5)  # 100 mm, 75 mm and 75 mm


class Surrounded(Oracle):
    """Asks for patches of 128 mm, 96 mm and 200 mm: each region then shows a part of the other kidney."""

    grid = FineGrid((2.0, 2.0, 2.0), (64, 48, 100), 0.5)


BOTH = pytest.mark.parametrize("kind", [Oracle, Surrounded])  # the box alone is shown, or what lies around it, too


def ball(shape, centre, radius_mm, spacing=SPACING):
    grid = np.ogrid[tuple(slice(n) for n in shape)]
    return sum(((a - c) * s) ** 2 for a, c, s in zip(grid, centre, spacing)) <= radius_mm**2


def two_kidneys(shape=(40, 60, 120)):
    labels = np.zeros(shape, np.uint8)
    labels[ball(shape, (20, 30, 25), 24)] = KIDNEY
    labels[ball(shape, (20, 30, 95), 24)] = KIDNEY
    labels[ball(shape, (24, 30, 17), 10)] = TUMOR
    labels[ball(shape, (16, 36, 95), 8)] = CYST
    return labels


def test_the_truth_comes_back_and_each_kidney_has_a_region_of_its_own():
    labels = two_kidneys()
    oracle, stages = Oracle(), []
    result = run_cascade(HU[labels], SPACING, oracle, RAW, stages.append)
    np.testing.assert_array_equal(result.labels, labels)
    assert len(result.boxes) == 2
    assert not result.boxes[0].intersects(result.boxes[1])
    assert [call[0] for call in oracle.calls] == ["coarse", "kidney", "masses", "kidney", "masses"]
    assert stages == ["coarse", "kidney", "masses", "kidney", "masses"]
    assert set(result.seconds) == {"coarse", "kidney", "masses", "network"}
    # 20 mm around each kidney, give or take a coarse voxel; the scan ends before that along z and on the outside.
    first, second = result.boxes
    for box, truth in ((first, Box.around(labels[..., :60])), (second, Box.around(labels[..., 60:]))):
        assert all(9 <= a - b <= 12 for a, b in zip(truth.start[1:2], box.start[1:2], strict=True))
        assert all(9 <= b - a <= 12 for a, b in zip(truth.stop[1:2], box.stop[1:2], strict=True))
        assert all(4 <= a - b <= 6 for a, b in zip(truth.start[:1], box.start[:1], strict=True))
    assert first.start[2] in (2, 3)
    assert 46 <= first.stop[2] <= 50


def test_the_fine_stages_are_told_where_the_coarse_one_saw_something():
    oracle = Oracle()
    labels = two_kidneys()
    run_cascade(HU[labels], SPACING, oracle, RAW)
    _, box, near = oracle.calls[1]
    assert near.shape == box.shape
    np.testing.assert_array_equal(near[:, 1:-1:2, 1:-1:2], box.crop(labels)[:, 1:-1:2, 1:-1:2] > 0)


def test_kidneys_that_lie_close_share_a_region():
    labels = np.zeros((30, 60, 80), np.uint8)
    labels[ball(labels.shape, (15, 30, 25), 20)] = KIDNEY
    labels[ball(labels.shape, (15, 30, 50), 20)] = KIDNEY
    result = run_cascade(HU[labels], SPACING, Oracle(), RAW)
    assert len(result.boxes) == 1
    np.testing.assert_array_equal(result.labels, labels)


@BOTH
def test_a_kidney_at_the_border_of_its_box_gets_a_larger_one_once(kind):
    labels = np.zeros((40, 60, 100), np.uint8)
    labels[5:35, 20:40, 10:90] = KIDNEY
    oracle = kind(lost=lambda mask: mask & (np.arange(mask.shape[2]) < 25))  # the coarse stage misses half of it
    result = run_cascade(HU[labels], SPACING, oracle, RAW)
    assert [call[0] for call in oracle.calls] == ["coarse", "kidney", "kidney", "masses"]
    second = oracle.calls[2]
    assert result.boxes[0].stop[2] == 70  # what the coarse stage saw ends at 50; twice 20 mm are 20
    assert second[1] == result.crops[0]
    assert (result.crops == result.boxes) == (kind is Oracle)
    assert second[2] is None  # nothing is left out in the second look
    assert any("grown" in note for note in result.notes)
    assert any("also of the grown one" in warning for warning in result.warnings)
    np.testing.assert_array_equal(result.labels, np.where(np.arange(100) < result.boxes[0].stop[2], labels, 0))


@BOTH
def test_a_kidney_that_runs_away_is_cut_at_its_first_box(kind):
    labels = np.zeros((60, 100, 100), np.uint8)
    labels[25:35, 45:55, 10:32] = KIDNEY
    labels[5:55, 10:90, 32:100] = KIDNEY  # what a network might see in an organ that the kidney touches
    oracle = kind(lost=lambda mask: mask & (np.arange(mask.shape[2]) < 12))
    result = run_cascade(HU[labels], SPACING, oracle, RAW)
    assert [call[0] for call in oracle.calls] == ["coarse", "kidney", "kidney", "masses"]
    assert result.crops[0] == oracle.calls[1][1]
    assert (result.crops == result.boxes) == (kind is Oracle)
    assert not result.notes
    assert any("cut at the first box" in warning for warning in result.warnings)
    inside = np.zeros_like(labels)
    result.boxes[0].paste(inside, result.boxes[0].crop(labels))
    np.testing.assert_array_equal(result.labels, inside)


@BOTH
def test_an_organ_that_reaches_into_the_box_is_no_kidney(kind):
    labels = np.zeros((40, 60, 100), np.uint8)
    kidney = ball(labels.shape, (20, 30, 30), 20)
    labels[kidney] = KIDNEY
    labels[15:25, 25:35, 46:100] = KIDNEY  # what a network might take for one; the coarse stage does not see it
    oracle = kind(lost=lambda mask: mask & (np.arange(mask.shape[2]) < 23))
    result = run_cascade(HU[labels], SPACING, oracle, RAW)
    assert [call[0] for call in oracle.calls] == ["coarse", "kidney", "masses"]
    assert result.boxes[0].stop[2] > 46  # it was in the box
    np.testing.assert_array_equal(result.labels[..., :46] > 0, kidney[..., :46])


def test_a_kidney_cut_by_the_scan_is_no_reason_to_grow():
    labels = np.zeros((20, 60, 60), np.uint8)
    labels[:15, 20:40, 20:40] = KIDNEY
    oracle = Oracle()
    result = run_cascade(HU[labels], SPACING, oracle, RAW)
    assert len(oracle.calls) == 3
    assert not result.notes
    assert not result.warnings


def test_no_kidney_is_an_empty_result_or_a_look_everywhere():
    labels = two_kidneys()
    nothing = Oracle(lost=np.zeros_like)
    result = run_cascade(HU[labels], SPACING, nothing, RAW)
    assert not result.labels.any()
    assert "found no kidney" in result.warnings[0]
    result = run_cascade(HU[labels], SPACING, nothing, CascadeOptions(postprocess=None, on_empty="full"))
    np.testing.assert_array_equal(result.labels, labels)
    assert result.boxes == [Box.full(labels.shape)]
    assert result.warnings


def test_postprocessing_is_applied_and_its_notes_kept():
    labels = two_kidneys()
    labels[2:4, 5:7, 58:62] = CYST  # away from both kidneys; the coarse stage sees it as well
    result = run_cascade(HU[labels], SPACING, Oracle(), CascadeOptions(keep_stages=True))
    assert not result.labels[:5, :10, 50:70].any()
    assert result.unprocessed[2:4, 5:7, 58:62].all()
    assert result.notes
    assert "postprocess" in result.seconds


def test_paint_order():
    kidney, masses, tumor = (np.array(v, bool) for v in ([1, 1, 1, 0, 0, 0], [0, 1, 1, 1, 0, 0], [0, 0, 1, 0, 1, 0]))
    assert paint(kidney, masses, tumor).tolist() == [KIDNEY, CYST, TUMOR, CYST, TUMOR, 0]


def test_overlapping_regions_keep_what_is_painted_later():
    into = np.array([[[0, KIDNEY, CYST, TUMOR, TUMOR, KIDNEY]]], np.uint8)
    paste(into, Box.full(into.shape), np.array([[[KIDNEY, CYST, TUMOR, CYST, KIDNEY, 0]]], np.uint8))
    assert into.tolist() == [[[KIDNEY, CYST, TUMOR, TUMOR, TUMOR, KIDNEY]]]


def test_regions_never_cost_more_than_one_box_and_ignore_specks():
    mask = np.zeros((40, 60, 120), bool)
    mask[10:30, 20:40, 10:30] = True
    mask[10:30, 20:40, 90:110] = True
    mask[0, 0, 0] = True  # 16 mm3
    boxes = kidney_boxes(mask, SPACING, 20.0)
    assert boxes == [Box((5, 10, 0), (35, 50, 40)), Box((5, 10, 80), (35, 50, 120))]
    assert kidney_boxes(np.zeros((3, 3, 3), bool), SPACING, 20.0) == []
    only_speck = np.zeros((40, 60, 120), bool)
    only_speck[20, 30, 60] = True
    assert len(kidney_boxes(only_speck, SPACING, 20.0)) == 1


def test_merging_goes_on_until_no_two_meet():
    chain = [Box((0, 0, i), (5, 5, i + 4)) for i in (0, 6, 12)] + [Box((0, 0, 3), (5, 5, 13))]
    assert merge_boxes(chain) == [Box((0, 0, 0), (5, 5, 16))]
    apart = [Box((0, 0, 0), (2, 2, 2)), Box((7, 7, 7), (9, 9, 9))]
    assert merge_boxes(apart) == apart


def test_sampled_takes_the_nearest_voxel():
    mask = np.zeros((2, 2, 2), bool)
    mask[1, 1, 1] = True
    whole = mask_on_grid(mask, Box.full((4, 6, 2)), (4, 6, 2))
    np.testing.assert_array_equal(whole, mask.repeat(2, 0).repeat(3, 1))
    np.testing.assert_array_equal(mask_on_grid(mask, Box((1, 2, 0), (4, 6, 2)), (4, 6, 2)), whole[1:, 2:])


# --- from Python


@pytest.fixture
def cascade():
    return Cascade(predictors=Oracle(), options=RAW)


def test_an_array_with_spacing(cascade):
    labels = two_kidneys()
    prediction = cascade(HU[labels], SPACING)
    np.testing.assert_array_equal(prediction.labels, labels)
    with pytest.raises(UsageError, match="spacing"):
        cascade(HU[labels])
    with pytest.raises(UsageError, match="3-D"):
        cascade(HU[labels][0], SPACING)
    with pytest.raises(UsageError, match="a dict"):
        cascade({})


def test_a_nibabel_image_keeps_its_axes(cascade):
    labels = two_kidneys()
    affine = np.array([[0, 0, -2.0, 7], [0, -2.0, 0, 8], [-4.0, 0, 0, 9], [0, 0, 0, 1]])
    prediction = cascade(nib.Nifti1Image(HU[labels], affine))
    there = prediction.to_nibabel()
    np.testing.assert_array_equal(np.asarray(there.dataobj), labels)
    np.testing.assert_array_equal(there.affine, affine)


def test_a_simpleitk_image_keeps_its_grid(cascade):
    sitk = pytest.importorskip("SimpleITK")
    labels = two_kidneys()
    image = sitk.GetImageFromArray(HU[labels])
    image.SetSpacing(SPACING[::-1])
    image.SetOrigin((5, 6, 7))
    image.SetDirection((0, -1, 0, 1, 0, 0, 0, 0, 1))
    there = cascade(image).to_sitk()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(there), labels)
    assert there.GetSpacing() == image.GetSpacing()
    assert there.GetOrigin() == image.GetOrigin()
    assert there.GetDirection() == image.GetDirection()


def test_a_path_and_saving(cascade, tmp_path):
    labels = two_kidneys()
    nib.save(nib.Nifti1Image(HU[labels], np.diag([*SPACING, 1])), tmp_path / "a ü.nii.gz")
    path = cascade(tmp_path / "a ü.nii.gz").save(tmp_path / "out")
    assert path == tmp_path / "out" / "a ü.nii.gz"
    np.testing.assert_array_equal(np.asarray(nib.load(path).dataobj), labels)
    nib.save(nib.Nifti1Image(HU[labels], np.diag([*SPACING, 1])), tmp_path / "b.nii.gz")
    with pytest.raises(UsageError, match="2 cases"):
        cascade(tmp_path)


def test_air_only_needs_no_network(cascade):
    prediction = cascade(volume_from_array(np.full((10, 20, 20), -1000, np.int16), spacing=SPACING))
    assert not prediction.labels.any()
    assert "air only" in prediction.warnings[0]
    assert not cascade.predictors.calls


def test_fast_means_no_mirroring_and_fewer_tiles():
    assert Speed().changed() == Speed()
    assert Speed().changed(tta=True, fast=True) == Speed(tta=False, tile_step=0.75)
    assert not Speed().changed(tta=False).tta
    assert Speed(tta=False, tile_step=0.7).changed(tta=True) == Speed(tile_step=0.7)


def test_a_box_smaller_than_a_patch_is_shown_with_its_surroundings():
    box = Box((30, 40, 10), (40, 80, 30))
    wider = surroundings(box, SPACING, GRID, (100, 100, 100))
    # 100 mm are 25 voxels of 4 mm, 75 mm are 37.5 of 2 mm: the second edge has that, the third meets the border.
    assert wider == Box((23, 40, 2), (48, 80, 39))
    assert surroundings(box, SPACING, GRID, (100, 100, 35)) == Box((23, 40, 0), (48, 80, 35))
    at_the_end = surroundings(Box((0, 40, 60), (20, 80, 99)), SPACING, GRID, (22, 100, 100))
    assert at_the_end == Box((0, 40, 60), (22, 80, 99))
    assert surroundings(wider, SPACING, GRID, (100, 100, 100)) == wider


@pytest.mark.parametrize("mm", [0.55, 0.61, 0.7, 0.7031, 0.7734, 0.78125, 0.7891, 0.8105, 0.93, 0.9766])
@pytest.mark.parametrize("patch", [64, 96, 112, 128, 160, 192])
@pytest.mark.parametrize("step", [0.5, 0.75])
def test_surroundings_cost_no_tile(mm, patch, step):
    grid, spacing, shape = FineGrid(GRID.spacing, (patch,) * 3, step), (mm, mm, mm), (512, 512, 512)
    for size in (20, 97, 98, 143, 150, 180, 260):
        box = Box((100, 200, 240), (100 + size, 200 + size, 240 + size))
        crop = surroundings(box, spacing, grid, shape)
        assert crop.union(box) == crop
        assert grid.tiles(0, crop.shape[0], spacing) == grid.tiles(0, size, spacing)
        # And no padding where surroundings are to be had, but for what rounding leaves.
        assert grid.voxels(0, crop.shape[0], spacing) >= patch - 1


@pytest.mark.parametrize(
    ("size", "mm", "expected"),
    [
        (143, 0.7734, 150),  # 141.56 -> 142 is one fewer; 150 is the first that loses two: 148.49 -> 148
        (157, 0.7734, 157),  # 155.42 -> 155 loses two
        (110, 0.7734, 110),  # 150 is more than a quarter longer: not worth it
        (140, 0.7891, 150),  # 141.41 -> 141 is one more; 150 is the first that gains two: 151.51 -> 152
        (140, 0.78125, 140),  # nothing to resample
        (140, 0.5, 153),  # within a patch: 153 * 0.64 is 98
    ],
)
def test_an_edge_does_not_lose_or_gain_a_single_voxel(size, mm, expected):
    box = Box((200, 200, 200), (200 + size, 200 + size, 200 + size))
    grid = FineGrid(GRID.spacing, (98,) * 3, 0.75)
    assert surroundings(box, (mm, mm, mm), grid, (600, 600, 600)).shape == (expected,) * 3


def test_regions_stay_apart_though_the_networks_see_what_lies_around_them():
    labels = two_kidneys()
    plain = run_cascade(HU[labels], SPACING, Oracle(), RAW)
    oracle = Surrounded()
    result = run_cascade(HU[labels], SPACING, oracle, CascadeOptions(postprocess=None, save_probabilities=True))
    np.testing.assert_array_equal(result.labels, labels)
    assert result.boxes == plain.boxes
    assert plain.crops == plain.boxes
    assert [crop.shape for crop in result.crops] == [(32, 48, 100), (32, 48, 100)]
    assert result.crops[0].intersects(result.crops[1])
    for crop, call in zip(result.crops, oracle.calls[1::2], strict=True):
        assert call[1] == crop
    # Where the coarse stage saw something is told of the box alone; the kidney mask is of all that is shown.
    first, _ = result.boxes
    (_, crop, near), (_, _, kidney, asked) = oracle.calls[1:3]
    outside = np.ones(crop.shape, bool)
    first.seen_from(crop).crop(outside)[:] = False
    assert near.any()
    assert not near[outside].any()
    assert kidney[outside].any()
    np.testing.assert_array_equal(asked, kidney & ~outside)
    assert not result.notes
    assert [stages["masses"].shape[1:] for stages in result.probabilities] == [crop.shape for crop in result.crops]


def test_a_box_that_grows_keeps_its_surroundings_apart():
    labels = two_kidneys()

    def upper(mask):
        return mask & (np.arange(mask.shape[1]) < 12)[:, None]

    plain, shown = (run_cascade(HU[labels], SPACING, kind(lost=upper), RAW) for kind in (Oracle, Surrounded))
    np.testing.assert_array_equal(plain.labels, labels)
    np.testing.assert_array_equal(shown.labels, labels)
    assert plain.boxes == shown.boxes
    assert all(crop.union(box) == crop != box for box, crop in zip(shown.boxes, shown.crops, strict=True))
    assert plain.notes == shown.notes != []
