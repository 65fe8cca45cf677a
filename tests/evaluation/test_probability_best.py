"""Probabilities, compared with the normal distribution."""

import math

import pytest

from rankckpt_jax import evaluation


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
