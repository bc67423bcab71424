"""Intervals and tests against figures from the literature and from scipy."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from kits_cascade.evaluation.statistics import bootstrap_means, holm, mean_with_interval, wilcoxon_p, wilson


@pytest.mark.parametrize(("k", "n"), [(0, 5), (3, 10), (10, 10), (81, 263)])
def test_wilson_is_scipys(k, n):
    expected = binomtest(k, n).proportion_ci(method="wilson")
    found = wilson(k, n)
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert found["value"] == k / n


def test_wilson_of_nothing():
    assert wilson(0, 0) == {"value": None, "low": None, "high": None}


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_bootstrap_is_seeded_and_about_right():
    values = np.random.default_rng(1).normal(5, 2, 200)
    first, second = mean_with_interval(values), mean_with_interval(values)
    assert first == second
    half = 1.96 * values.std(ddof=1) / math.sqrt(200)
    assert first["low"] == pytest.approx(values.mean() - half, abs=0.05)
    assert first["high"] == pytest.approx(values.mean() + half, abs=0.05)


def test_bootstrap_in_chunks():
    values = np.arange(3000.0)
    assert bootstrap_means(values, resamples=5000).shape == (5000,)


def test_undefined_values_are_counted_not_averaged():
    found = mean_with_interval([1.0, math.nan, 3.0])
    assert (found["mean"], found["n"], found["undefined"]) == (2.0, 2, 1)
    assert mean_with_interval([math.nan])["mean"] is None
    assert mean_with_interval([2.0])["low"] is None


def test_wilcoxon():
    a = np.array([0.9, 0.8, 0.7, 0.95, 0.6, 0.85])
    assert wilcoxon_p(a, a) == 1.0
    assert wilcoxon_p(a, a - np.arange(1, 7) / 100) == pytest.approx(2 / 2**6)  # all six one way, exact
    assert wilcoxon_p(a, a - np.arange(1, 7) / 100) == wilcoxon_p(a - np.arange(1, 7) / 100, a)
