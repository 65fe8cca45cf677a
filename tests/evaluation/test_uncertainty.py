"""Intervals and probabilities against what they are by definition."""

import math

import numpy as np
import pytest

from rankckpt_jax import evaluation
from rankckpt_jax.errors import InputError


def test_an_interval_is_the_quantiles_of_resampled_rankings():
    rng = np.random.default_rng(0)
    a = rng.uniform(0.3, 0.9, 12)
    s = a + rng.normal(0, 0.1, 12)
    found = evaluation.intervals(s, a, num_samples=4000)
    taus = []
    for _ in range(4000):
        rows = rng.integers(0, 12, 12)
        taus.append(evaluation.score_ranking(s[rows], a[rows])["kendall"])
    low, high = np.quantile(taus, [0.025, 0.975])
    # Two draws of 4000 resamples: quantiles of them differ by a few hundredths.
    assert found["kendall"].low == pytest.approx(low, abs=0.04)
    assert found["kendall"].high == pytest.approx(high, abs=0.04)
    assert found["rel@1"].high <= 1


def test_without_spread_only_the_checkpoints_vary():
    s, a = [1.0, 2.0, 3.0, 4.0], [0.1, 0.3, 0.2, 0.4]
    still = evaluation.intervals(s, a, [0.0] * 4, over=("spread",), num_samples=50)
    value = evaluation.score_ranking(s, a)["kendall"]
    assert still["kendall"] == pytest.approx((value, value))
    moved = evaluation.intervals(s, a, [5.0] * 4, over=("spread",), num_samples=500)
    assert moved["kendall"].low < value < moved["kendall"].high + 1e-9


def test_an_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(2)
    correlation, n = 0.7, 30
    truth = 2 / math.pi * math.asin(correlation)  # Kendall's tau of a bivariate normal.
    covered = 0
    for seed in range(200):
        s = rng.normal(size=n)
        a = correlation * s + math.sqrt(1 - correlation**2) * rng.normal(size=n)
        found = evaluation.intervals(s, a, num_samples=200, seed=seed)["kendall"]
        covered += found.low <= truth <= found.high
    assert 0.85 <= covered / 200 <= 1


def test_probability_best_of_two_is_the_normal_distribution_function():
    gap, spread = 0.3, 0.2
    found = evaluation.probability_best(
        [1.0, 1.0 + gap], [0.5, 0.6], [spread] * 2, num_samples=40_000
    )
    expected = 0.5 * (1 + math.erf(gap / (spread * math.sqrt(2)) / math.sqrt(2)))
    assert found == pytest.approx(expected, abs=0.01)


def test_probability_best_counts_the_test_sets_own_noise():
    sure = evaluation.probability_best([1, 2], [0.5, 0.6])
    assert sure == 1
    unsure = evaluation.probability_best([1, 2], [0.50, 0.51], num_test=100)
    assert 0.5 < unsure < 0.7
    assert evaluation.probability_best([2, 1], [0.5, 0.6]) == 0
    assert evaluation.probability_best([1, 1], [0.5, 0.6]) == 0.5
    assert math.isnan(evaluation.probability_best([], []))


def test_first_probabilities_sum_to_one():
    found = evaluation.first_probabilities([0.0, 1.0, 1.0], [0.1, 0.1, 0.1])
    assert found.sum() == pytest.approx(1)
    assert found[1] == pytest.approx(0.5, abs=0.05) and found[0] < 0.01


def test_mappings_match_by_name():
    s, a = {"a": 1.0, "b": 2.0, "c": 0.0}, {"c": 0.1, "a": 0.3, "b": 0.2}
    d = {"b": 0.5, "c": 0.1, "a": 0.2}
    by_name = evaluation.intervals(s, a, d, num_samples=100)
    in_order = evaluation.intervals(
        [1, 2, 0], [0.3, 0.2, 0.1], [0.2, 0.5, 0.1], num_samples=100
    )
    assert by_name == in_order


def test_what_is_resampled_must_be_known():
    with pytest.raises(InputError, match="spreads"):
        evaluation.intervals([1, 2], [0.1, 0.2], over=("spreads",))
