"""Intervals and tests: Wilson, bootstrap, Wilcoxon with Holm's correction. Seeded: same data, same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from kits_cascade.volumes.volume import Array

SEED: Final = 20230
RESAMPLES: Final = 5000
_CHUNK: Final = 1 << 22


def wilson(successes: int, trials: int) -> dict[str, float | None]:
    """A rate with its 95 % Wilson score interval; all None where there was no trial."""
    if trials == 0:
        return {"value": None, "low": None, "high": None}
    from scipy.stats import binomtest

    interval = binomtest(successes, trials).proportion_ci(method="wilson")
    return {"value": successes / trials, "low": float(interval.low), "high": float(interval.high)}


def bootstrap_means(values: Array, resamples: int = RESAMPLES, seed: int = SEED) -> Array:
    """Means of resamples of the rows of ``values``: (resamples, ...columns)."""
    rng = np.random.default_rng(seed)
    count = len(values)
    step = max(1, _CHUNK // (values.size or 1))
    parts = []
    for begin in range(0, resamples, step):
        rows = rng.integers(count, size=(min(step, resamples - begin), count))
        parts.append(values[rows].mean(axis=1))
    return np.concatenate(parts)


def mean_with_interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean, 95 % bootstrap interval (percentiles), median, spread; undefined values are left out, and counted."""
    array = np.asarray(values, dtype=np.float64)
    known = array[np.isfinite(array)]
    result: dict[str, Any] = {"n": len(known), "undefined": len(array) - len(known)}
    if not len(known):
        return {**result, **dict.fromkeys(("mean", "low", "high", "median", "std", "min", "max"))}
    low, high = np.percentile(bootstrap_means(known), (2.5, 97.5)) if len(known) > 1 else (None, None)
    return {
        **result,
        "mean": float(known.mean()),
        "low": None if low is None else float(low),
        "high": None if high is None else float(high),
        "median": float(np.median(known)),
        "std": float(known.std(ddof=1)) if len(known) > 1 else None,
        "min": float(known.min()),
        "max": float(known.max()),
    }


def wilcoxon_p(first: Array, second: Array) -> float:
    """Two-sided p of Wilcoxon's signed-rank test for paired values; 1 where they never differ."""
    from scipy.stats import wilcoxon

    difference = np.round(np.asarray(first, float) - np.asarray(second, float), 12)
    if not difference.any():
        return 1.0
    # Pratt's way with zeros: cases that both systems solve alike speak for no difference.
    return float(wilcoxon(difference, zero_method="pratt").pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment, in the order given."""
    adjusted, running = [0.0] * len(p_values), 0.0
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted
