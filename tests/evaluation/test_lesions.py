"""Lesions found, missed and made up: by hand."""

import numpy as np
import pytest

from kits_cascade.evaluation.lesions import band_title, score_lesions, sphere_diameter, summarise_lesions
from kits_cascade.evaluation.metrics import LabelPair

SPACING = (2.0, 1.0, 1.0)


def pair(truth, prediction):
    return LabelPair.cut(truth, prediction, SPACING)


def block(labels, label, x, size=4):
    labels[2 : 2 + size, 2 : 2 + size, x : x + size] = label


@pytest.fixture
def maps():
    return np.zeros((2, 10, 12, 60), np.uint8)


def verdicts(truth, prediction):
    return sorted((le.kind, le.source, le.verdict) for le in score_lesions(pair(truth, prediction)))


def test_found_missed_and_false(maps):
    truth, prediction = maps
    block(truth, 2, 2)
    block(prediction, 2, 3)  # overlaps
    block(truth, 2, 12)  # missed
    block(prediction, 3, 22)  # made up
    assert verdicts(truth, prediction) == [
        ("cyst", "prediction", "false alarm"),
        ("tumor", "prediction", "correct"),
        ("tumor", "truth", "detected"),
        ("tumor", "truth", "missed"),
    ]


def test_a_split_lesion_is_found_and_its_parts_are_right(maps):
    truth, prediction = maps
    truth[2:8, 2:8, 2:30] = 2
    prediction[2:8, 2:8, 2:10] = prediction[2:8, 2:8, 20:28] = 2
    assert verdicts(truth, prediction) == [("tumor", "prediction", "correct")] * 2 + [("tumor", "truth", "detected")]


def test_two_lesions_joined_are_both_found(maps):
    truth, prediction = maps
    block(truth, 3, 2)
    block(truth, 3, 10)
    prediction[2:6, 2:6, 2:14] = 3
    assert verdicts(truth, prediction) == [("cyst", "prediction", "correct")] + [("cyst", "truth", "detected")] * 2


def test_a_touch_is_not_enough(maps):
    truth, prediction = maps
    truth[0:10, 0:10, 0:10] = 2
    prediction[9, 9, 9:20] = 2  # one voxel of 1000, one of 11
    assert ("tumor", "truth", "missed") in verdicts(truth, prediction)
    assert ("tumor", "prediction", "false alarm") in verdicts(truth, prediction)


def test_the_wrong_class_is_missed_but_seen(maps):
    truth, prediction = maps
    block(truth, 2, 2)
    block(prediction, 3, 2)
    found = score_lesions(pair(truth, prediction))
    assert all(le.confused and not le.matched for le in found)
    summary = summarise_lesions([found])
    assert summary["tumor"]["all"]["missed_but_seen_as_other_class"] == 1
    assert summary["cyst"]["all"]["false_alarms"] == 1


def test_size_is_that_of_the_sphere(maps):
    truth, prediction = maps
    block(truth, 2, 2, size=5)
    lesion = score_lesions(pair(truth, prediction))[0]
    assert lesion.volume_ml == pytest.approx(0.25)
    assert lesion.diameter_mm == pytest.approx(sphere_diameter(250)) == pytest.approx(7.816, abs=1e-3)


def test_bands_add_up(maps):
    truth, prediction = maps
    block(truth, 2, 2, size=2)
    block(truth, 2, 20, size=6)
    block(prediction, 2, 20, size=6)
    block(prediction, 2, 40, size=3)
    summary = summarise_lesions([score_lesions(pair(truth, prediction)), ()])["tumor"]
    for key in ("truth", "detected", "missed", "predicted", "false_alarms"):
        assert summary["all"][key] == sum(band[key] for band in summary["bands"].values())
    assert summary["all"]["false_alarms_per_case"] == 0.5
    assert summary["all"]["cases_with_false_alarm"]["value"] == 0.5
    assert summary["bands"]["10-20 mm"]["detected"] == 0
    assert summary["bands"]["5-10 mm"]["detected"] == 1


def test_no_lesions():
    nothing = np.ones((3, 3, 3), np.uint8)
    assert score_lesions(pair(nothing, nothing)) == ()
    assert summarise_lesions([()])["tumor"]["all"]["sensitivity"]["value"] is None


def test_titles():
    assert [band_title(b) for b in ((0, 5), (5, 10), (70, float("inf")))] == ["under 5 mm", "5-10 mm", "over 70 mm"]
