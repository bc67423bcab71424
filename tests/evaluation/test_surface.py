"""Surfaces against an independent brute-force version, against the challenge's package, and by hand."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kits_cascade.evaluation.surface import Surface, SurfaceDistances, neighbour_codes, surfel_areas

spacings = st.tuples(*[st.floats(0.3, 6.0)] * 3)
shapes = st.tuples(*[st.integers(1, 7)] * 3)


@st.composite
def mask_pairs(draw):
    shape = draw(shapes)
    masks = [draw(hnp.arrays(bool, shape)) for _ in range(2)]
    for mask in masks:
        mask[tuple(draw(st.integers(0, n - 1)) for n in shape)] = True  # never empty
    return *masks, draw(spacings)


def package():
    """The challenge's package; it names what newer numpy and scipy have dropped only where masks are empty."""
    return pytest.importorskip("surface_distance")


def brute_surface(mask, spacing):
    """(point in mm, area) of each surface element, corner by corner, with areas from the package's own table."""
    table = package().lookup_tables.create_table_neighbour_code_to_surface_area(spacing)
    elements = []
    for corner in itertools.product(*(range(n + 1) for n in mask.shape)):
        code = 0
        for bit, offset in zip((128, 64, 32, 16, 8, 4, 2, 1), itertools.product((-1, 0), repeat=3)):
            voxel = tuple(c + o for c, o in zip(corner, offset))
            if all(0 <= v < n for v, n in zip(voxel, mask.shape)) and mask[voxel]:
                code |= bit
        if code not in (0, 255):
            elements.append((tuple(c * s for c, s in zip(corner, spacing)), table[code]))
    return elements


def brute_distances(elements, others):
    points, targets = (np.array([point for point, _ in side]) for side in (elements, others))
    return np.sqrt(((points[:, None] - targets[None]) ** 2).sum(axis=2)).min(axis=1)


@settings(max_examples=60, deadline=None)
@given(mask_pairs(), st.floats(0.1, 5))
def test_all_distances_agree_with_brute_force(case, tolerance):
    truth, prediction, spacing = case
    a, b = brute_surface(truth, spacing), brute_surface(prediction, spacing)
    there, back = brute_distances(a, b), brute_distances(b, a)
    areas_a, areas_b = (np.array([area for _, area in side]) for side in (a, b))
    found = SurfaceDistances.between(truth, prediction, spacing)
    np.testing.assert_allclose(found.truth_to_prediction, there, rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.prediction_to_truth, back, rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.truth_areas, areas_a, rtol=0, atol=1e-9)
    assert found.hausdorff() == pytest.approx(max(there.max(), back.max()), abs=1e-9)
    assert found.mean() == pytest.approx((there @ areas_a + back @ areas_b) / (areas_a.sum() + areas_b.sum()), abs=1e-9)
    if np.abs(np.concatenate([there, back]) - tolerance).min() > 1e-9:  # rounding decides the rest
        near = areas_a[there <= tolerance].sum() + areas_b[back <= tolerance].sum()
        assert found.dice(tolerance) == pytest.approx(near / (areas_a.sum() + areas_b.sum()), abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(mask_pairs())
def test_the_same_as_the_challenges_package(case):
    truth, prediction, spacing = case
    official = package().compute_surface_distances(truth, prediction, spacing)
    found = SurfaceDistances.between(truth, prediction, spacing)
    np.testing.assert_allclose(np.sort(found.truth_to_prediction), official["distances_gt_to_pred"], atol=1e-9)
    for tolerance in (0.51, 1.03, 2.2):
        expected = package().compute_surface_dice_at_tolerance(official, tolerance)
        assert found.dice(tolerance) == pytest.approx(expected, abs=1e-9)
    for percent in (50, 95, 100):
        # Where a step of the distribution meets the percentile to the last bit, rounding decides for either side of it.
        low, high = (package().compute_robust_hausdorff(official, percent + e) for e in (-1e-7, 1e-7))
        assert low - 1e-9 <= found.hausdorff(percent) <= high + 1e-9


def test_the_same_where_a_step_meets_the_percentile():
    truth = np.array([[[1, 1], [0, 0], [1, 0]]], bool)
    prediction = np.array([[[0, 0], [1, 0], [0, 0]]], bool)
    spacing = (2.0, 4.33565198300271, 1.25)
    found = SurfaceDistances.between(truth, prediction, spacing)
    assert found.hausdorff(50) in (pytest.approx(1.25), pytest.approx(spacing[1]))
    assert found.hausdorff(49.9) == pytest.approx(1.25)
    assert found.hausdorff(50.1) == pytest.approx(spacing[1])


@settings(max_examples=40, deadline=None)
@given(mask_pairs())
def test_identities(case):
    truth, prediction, spacing = case
    same = SurfaceDistances.between(truth, truth, spacing)
    assert (same.dice(0.0), same.hausdorff(), same.mean()) == (1.0, 0.0, 0.0)
    there, back = (SurfaceDistances.between(a, b, spacing) for a, b in ((truth, prediction), (prediction, truth)))
    assert there.dice(1.1) == pytest.approx(back.dice(1.1), abs=1e-12)
    assert there.hausdorff() == back.hausdorff()
    assert there.mean() == pytest.approx(back.mean(), abs=1e-12)
    flipped = SurfaceDistances.between(truth[::-1, :, ::-1], prediction[::-1, :, ::-1], spacing)
    assert flipped.dice(1.1) == pytest.approx(there.dice(1.1), abs=1e-9)
    turned = SurfaceDistances.between(
        truth.transpose(2, 0, 1), prediction.transpose(2, 0, 1), (spacing[2], spacing[0], spacing[1])
    )
    assert turned.mean() == pytest.approx(there.mean(), abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(spacings)
def test_areas_are_those_of_the_package(spacing):
    expected = package().lookup_tables.create_table_neighbour_code_to_surface_area(spacing)
    np.testing.assert_allclose(surfel_areas(spacing), expected, rtol=1e-12, atol=1e-12)


def test_a_single_voxel():
    # Eight corners, each cut off by a triangle whose normal is (1/8, 1/8, 1/8) faces.
    surface = Surface.of(np.ones((1, 1, 1), bool), (1.0, 1.0, 1.0))
    assert len(surface.points) == 8
    assert surface.area == pytest.approx(np.sqrt(3))


def test_a_plate_far_larger_than_thick_has_twice_its_face():
    surface = Surface.of(np.ones((1, 300, 300), bool), (2.0, 1.0, 1.0))
    assert surface.area == pytest.approx(2 * 300 * 300, rel=0.02)


def test_codes_count_the_bits_in_reading_order():
    mask = np.zeros((2, 2, 2), bool)
    mask[0, 0, 0] = mask[1, 1, 0] = True
    assert neighbour_codes(mask)[1, 1, 1] == 128 + 2


def test_distances_far_beyond_the_near_search():
    truth, prediction = np.zeros((2, 3, 3, 60), bool)
    truth[1, 1, 1] = prediction[1, 1, 51] = True
    found = SurfaceDistances.between(truth, prediction, (5.0, 0.5, 0.7))
    assert found.hausdorff() == pytest.approx(35.0)
    assert found.dice(1.1) == 0.0


def test_nothing_is_infinitely_far():
    full, empty = (Surface.of(mask, (1.0, 1.0, 1.0)) for mask in (np.ones((2, 2, 2), bool), np.zeros((2, 2, 2), bool)))
    assert np.isinf(full.distances_to(empty)).all()
    assert empty.distances_to(full).shape == (0,)
