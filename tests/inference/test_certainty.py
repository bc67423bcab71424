"""How sure the networks are: maps of it, means, and the curve that says what they are worth."""

from types import SimpleNamespace

import numpy as np
import pytest

from kits_cascade import Cascade
from kits_cascade.inference.certainty import (
    FOLDS,
    MIRRORS,
    Agreement,
    Certainty,
    agreement_dice,
    calibrated,
    certainty_map,
    entropy,
    fit_calibration,
    mean_certainty,
)
from kits_cascade.inference.measure import measure_lesions
from kits_cascade.volumes.geometry import Box
from tests.inference.oracle import HU, Oracle
from tests.inference.test_cascade import two_kidneys


def result_of(*networks, box, crop):
    return SimpleNamespace(boxes=[box], crops=[crop], certainty=[list(networks)], bounds=box)


def test_a_map_lies_where_the_network_has_looked():
    crop, box = Box((0, 0, 0), (8, 8, 8)), Box((2, 2, 2), (6, 6, 6))
    values = np.full((4, 4, 4), 1.0, np.float32)
    values[2, 1, 1] = 0.5  # voxels 4 and 5, 2 and 3, 2 and 3 of the crop
    levels = certainty_map(result_of(Certainty("masses", values, Box.full(crop.shape)), box=box, crop=crop), "masses")
    assert levels.shape == (4, 4, 4)
    assert (levels[2:, :2, :2] == 128).all()
    assert np.count_nonzero(levels == 255) == 64 - 8


def test_the_least_sure_of_two_networks_counts_and_silence_is_no_certainty():
    crop = Box.full((4, 4, 4))
    networks = [Certainty("masses", np.full((2, 2, 2), p, np.float32), crop) for p in (0.6, 0.8)]
    levels = certainty_map(result_of(*networks, box=crop, crop=crop), "masses")
    assert mean_certainty(levels) == pytest.approx(0.6, abs=0.01)
    assert certainty_map(result_of(*networks, box=crop, crop=crop), "kidney") is None
    assert mean_certainty(np.zeros((2, 2, 2), np.uint8)) is None


def test_entropy_is_one_bit_for_a_guess_and_none_for_what_is_sure():
    assert entropy(np.full((3, 3, 3), 255, np.uint8)) == pytest.approx(0, abs=1e-4)
    assert entropy(np.full((3, 3, 3), 127, np.uint8)) == pytest.approx(1, abs=1e-3)
    assert entropy(np.zeros((3, 3, 3), np.uint8)) is None


def test_a_lesion_has_the_mean_of_its_voxels():
    labels = np.ones((6, 12, 12), np.uint8)
    labels[2:4, 2:6, 2:6] = 2
    sure = np.full(labels.shape, 255, np.uint8)
    sure[2, 2:6, 2:6] = 153
    image = np.zeros(labels.shape, np.int16)
    (row,) = measure_lesions(labels, image, (2.0, 1.0, 1.0), np.diag([1, 1, 2, 1]), sure=sure)
    assert row.certainty == pytest.approx(0.8, abs=0.001)
    assert row.confidence is None  # nobody has measured what that is worth
    (row,) = measure_lesions(labels, image, (2.0, 1.0, 1.0), np.diag([1, 1, 2, 1]), sure=sure, curve=(1.0, -1.0))
    assert row.confidence == pytest.approx(calibrated(0.8, (1.0, -1.0)), abs=0.001) and row.confidence < 0.7
    (row,) = measure_lesions(labels, image, (2.0, 1.0, 1.0), np.diag([1, 1, 2, 1]))
    assert row.certainty is row.confidence is None


def test_the_curve_finds_what_a_certainty_is_worth_and_keeps_the_order():
    rng = np.random.default_rng(0)
    raw = rng.uniform(0.5, 0.999, 4000)
    right = rng.random(4000) < raw**4  # too sure of itself
    curve = fit_calibration(raw, right)
    values = [calibrated(p, curve) for p in (0.6, 0.8, 0.95)]
    assert values == sorted(values)
    assert values == pytest.approx([0.6**4, 0.8**4, 0.95**4], abs=0.06)
    assert fit_calibration([0.9, 0.6], [False, True])[0] >= 0  # never upside down


class Divided(Oracle):
    """An oracle of several minds about its kidneys, and of one about the masses."""

    def region(self, image, spacing, box):
        region = super().region(image, spacing, box)
        region.agreements = [Agreement("kidney", FOLDS, 30, 100), Agreement("masses", MIRRORS, 45, 100)]
        return region


def test_answers_that_differ_are_doubted():
    prediction = Cascade(predictors=Divided())(HU[two_kidneys()], spacing=(4.0, 2.0, 2.0))
    (finding,) = [finding for finding in prediction.findings if finding.check.startswith("networks: ")]
    assert finding.check == "networks: answers differ" and finding.severity == "doubt"
    assert "the folds agree on the kidneys by a Dice of 0.60 only" in finding.text
    agreed = prediction.result.agreements
    assert agreement_dice(agreed, "masses", MIRRORS) == pytest.approx(0.9)
    assert agreement_dice(agreed, "kidney", MIRRORS) is None


class Unsure(Oracle):
    """An oracle whose regions say that they guess."""

    def region(self, image, spacing, box):
        region = super().region(image, spacing, box)
        region.certainty = [
            Certainty(stage, np.full((3, 3, 3), 0.55, np.float32), Box.full(image.shape))
            for stage in ("kidney", "masses")
        ]
        return region


def test_networks_that_guess_are_doubted():
    prediction = Cascade(predictors=Unsure())(HU[two_kidneys()], spacing=(4.0, 2.0, 2.0))
    assert "networks: unsure" in {finding.check for finding in prediction.findings}
    prediction = Cascade(predictors=Oracle())(HU[two_kidneys()], spacing=(4.0, 2.0, 2.0))
    assert "networks: unsure" not in {finding.check for finding in prediction.findings}
