"""Intervals and probabilities, compared with their definitions."""

import math

import numpy as np
import pytest
import scipy.stats

from rankckpt_jax import evaluation


def test_intervals_are_quantiles_of_resampled_rankings():
    rng = np.random.default_rng(0)
    a = rng.uniform(0.3, 0.9, 12)
    s = a + rng.normal(0, 0.1, 12)
    intervals = evaluation.intervals(s, a, num_samples=4000)
    taus = []
    for _ in range(1000):
        rows = rng.integers(0, 12, 12)
        taus.append(scipy.stats.kendalltau(s[rows], a[rows]).statistic)
    low, high = np.quantile(taus, [0.025, 0.975])
    # The quantiles of a thousand resamples vary by a few hundredths.
    assert intervals["kendall"].low == pytest.approx(low, abs=0.05)
    assert intervals["kendall"].high == pytest.approx(high, abs=0.05)
    assert intervals["rel@1"].high <= 1


def test_intervals_widen_with_the_noise_of_the_scores():
    a = np.arange(12) / 12
    narrow = evaluation.intervals(a, a, num_samples=200)["kendall"]
    wide = evaluation.intervals(a, a, [0.5] * 12, num_samples=200)["kendall"]
    assert narrow == pytest.approx((1, 1))
    assert wide.low < 0.6


def test_intervals_cover_the_true_value_at_their_level():
    rng = np.random.default_rng(2)
    correlation, n = 0.7, 30
    # Kendall's tau of a bivariate normal distribution.
    truth = 2 / math.pi * math.asin(correlation)
    covered = 0
    for seed in range(100):
        s = rng.normal(size=n)
        a = correlation * s + math.sqrt(1 - correlation**2) * rng.normal(size=n)
        low, high = evaluation.intervals(s, a, num_samples=200, seed=seed)["kendall"]
        covered += low <= truth <= high
    assert 0.85 <= covered / 100 <= 1


def test_intervals_match_mappings_by_name():
    s, a = {"a": 1.0, "b": 2.0, "c": 0.0}, {"c": 0.1, "a": 0.3, "b": 0.2}
    spreads = {"b": 0.5, "c": 0.1, "a": 0.2}
    by_name = evaluation.intervals(s, a, spreads, num_samples=100)
    in_order = evaluation.intervals(
        [1, 2, 0], [0.3, 0.2, 0.1], [0.2, 0.5, 0.1], num_samples=100
    )
    assert by_name == in_order


def test_probability_best_of_two_is_the_normal_distribution_function():
    gap, spread = 0.3, 0.2
    result = evaluation.probability_best(
        [1.0, 1.0 + gap], [0.5, 0.6], [spread] * 2, num_samples=40_000
    )
    expected = 0.5 * (1 + math.erf(gap / (spread * math.sqrt(2)) / math.sqrt(2)))
    assert result == pytest.approx(expected, abs=0.01)


def test_probability_best_includes_the_noise_of_the_test_set():
    assert evaluation.probability_best([1, 2], [0.5, 0.6]) == 1
    noisy = evaluation.probability_best([1, 2], [0.50, 0.51], num_test=100)
    assert 0.5 < noisy < 0.7
    assert evaluation.probability_best([2, 1], [0.5, 0.6]) == 0
    assert evaluation.probability_best([1, 1], [0.5, 0.6]) == 0.5
    assert math.isnan(evaluation.probability_best([], []))
