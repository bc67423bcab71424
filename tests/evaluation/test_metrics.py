"""Masks to numbers: by hand, by identities, and with empty masks as the challenge rules."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kits_cascade.evaluation.metrics import METRICS, TARGETS, LabelPair, score_arrays
from kits_cascade.labels import REGIONS

SPACING = (2.0, 1.0, 0.5)
label_maps = st.tuples(*[st.integers(1, 6)] * 3).flatmap(
    lambda shape: st.tuples(*[hnp.arrays(np.uint8, shape, elements=st.integers(0, 3))] * 2)
)


def test_two_boxes_by_hand():
    truth, prediction = np.zeros((2, 6, 10, 10), np.uint8)
    truth[1:5, 2:6, 2:6] = 2  # 64 voxels
    prediction[1:5, 2:6, 4:8] = 2  # 64 voxels, 32 shared
    scores = score_arrays(truth, prediction, SPACING)["tumor"]
    assert scores["dice"] == 0.5
    assert scores["iou"] == pytest.approx(1 / 3)
    assert scores["volumetric_similarity"] == 1.0
    assert scores["volume_error_ml"] == 0.0
    assert scores["truth_ml"] == pytest.approx(0.064)
    assert scores["hd"] == pytest.approx(1.0)  # two voxels of 0.5 mm


def test_regions_are_unions_and_classes_are_not():
    truth, prediction = np.zeros((2, 4, 8, 8), np.uint8)
    truth[1:3, 1:7, 1:7] = 1
    truth[1:3, 2:5, 2:5] = 2
    prediction[1:3, 1:7, 1:7] = 1
    prediction[1:3, 2:5, 2:5] = 3
    scores = score_arrays(truth, prediction, SPACING)
    dice = {name: metrics["dice"] for name, metrics in scores.items()}
    assert dice == {"kidney": 1.0, "masses": 1.0, "tumor": 0.0, "kidney_only": 1.0, "cyst": 0.0}


@pytest.mark.parametrize(("truth", "prediction", "expected"), [(0, 0, 1.0), (0, 2, 0.0), (2, 0, 0.0), (2, 2, 1.0)])
def test_empty_masks_as_the_challenge_rules(truth, prediction, expected):
    arrays = [np.full((3, 3, 3), label, np.uint8) for label in (truth, prediction)]
    scores = score_arrays(*arrays, SPACING)
    for region in REGIONS:
        assert scores[region.name]["dice"] == expected
        assert scores[region.name]["surface_dice"] == expected
    assert math.isnan(scores["tumor"]["hd95"]) == (truth == 0 or prediction == 0)


@settings(max_examples=50, deadline=None)
@given(label_maps)
def test_counts_against_plain_numpy(pair):
    truth, prediction = pair
    scores = score_arrays(truth, prediction, SPACING)
    for target in TARGETS:
        a, b = np.isin(truth, target.labels), np.isin(prediction, target.labels)
        union, sizes = (a | b).sum(), a.sum() + b.sum()
        found = scores[target.name]
        assert found["dice"] == pytest.approx(2 * (a & b).sum() / sizes if sizes else 1, abs=1e-12)
        assert found["iou"] == pytest.approx((a & b).sum() / union if union else 1, abs=1e-12)
        volume = math.prod(SPACING) / 1000
        assert found["volume_error_ml"] == pytest.approx((int(b.sum()) - int(a.sum())) * volume, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(label_maps)
def test_perfect_and_symmetric(pair):
    truth, prediction = pair
    for metrics in score_arrays(truth, truth, SPACING).values():
        assert metrics["dice"] == metrics["surface_dice"] == metrics["iou"] == metrics["volumetric_similarity"] == 1.0
        assert metrics["hd"] == 0.0 or math.isnan(metrics["hd"])
    there, back = score_arrays(truth, prediction, SPACING), score_arrays(prediction, truth, SPACING)
    for target in TARGETS:
        for metric in METRICS:
            a, b = there[target.name][metric.name], back[target.name][metric.name]
            if metric.name == "volume_error_ml":
                assert a == -b
            elif metric.name != "truth_ml":
                assert a == pytest.approx(b, abs=1e-9, nan_ok=True)


@settings(max_examples=30, deadline=None)
@given(label_maps)
def test_the_cut_changes_nothing_and_nothing_is_changed(pair):
    truth, prediction = pair
    before = truth.copy(), prediction.copy()
    padded = [np.pad(array, 3) for array in pair]
    near, far = score_arrays(truth, prediction, SPACING), score_arrays(*padded, SPACING)
    for target in TARGETS:
        for metric in METRICS:
            expected = near[target.name][metric.name]
            assert far[target.name][metric.name] == pytest.approx(expected, abs=1e-9, nan_ok=True)
    assert np.array_equal(truth, before[0]) and np.array_equal(prediction, before[1])


def test_a_pair_keeps_only_the_foreground():
    truth = np.zeros((50, 60, 70), np.uint8)
    truth[10:12, 20:23, 30:34] = 1
    assert LabelPair.cut(truth, truth * 0, SPACING).truth.shape == (2, 3, 4)
