"""Fidelity, compared with SciPy and with the values of one random draw."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from rankckpt_jax import evaluation


def _draw():
    """Return ten scores and accuracies whose statistics were computed elsewhere."""
    random = np.random.default_rng(0)
    s = random.normal(size=10)
    return s, s + random.normal(size=10)


def test_gap_fidelity_is_the_correlation_of_absolute_gaps():
    s, a = _draw()
    pairs = list(itertools.combinations(range(10), 2))
    gaps = [(abs(s[i] - s[j]), abs(a[i] - a[j])) for i, j in pairs]
    expected = scipy.stats.pearsonr(*zip(*gaps, strict=True)).statistic
    assert evaluation.gap_fidelity(s, a) == pytest.approx(expected)
    assert round(expected, 3) == 0.111


def test_correlation_of_signed_gaps_is_pearson():
    s, a = _draw()
    gaps = [(x - y).ravel() for x, y in ((s[:, None], s), (a[:, None], a))]
    # This is why gap_fidelity has absolute gaps.
    assert np.corrcoef(*gaps)[0, 1] == pytest.approx(
        evaluation.score_ranking(s, a)["pearson"]
    )


def test_gap_fidelity_ignores_order_scale_and_sign():
    s, a = _draw()
    expected = evaluation.gap_fidelity(s, a)
    order = np.random.default_rng(1).permutation(10)
    assert evaluation.gap_fidelity(s[order], a[order]) == pytest.approx(expected)
    assert evaluation.gap_fidelity(5 - 3 * s, a) == pytest.approx(expected)
    assert evaluation.gap_fidelity(a, a) == pytest.approx(1)
    assert math.isnan(evaluation.gap_fidelity([1, 1, 1], [1, 2, 3]))
    assert math.isnan(evaluation.gap_fidelity([1], [2]))


def test_calibrate_gaps_counts_pairs():
    # The score gaps are 1, 2 | 3, 4 | 6, 7; the pair with gap 4 is inverted.
    s, a = [0.0, 1, 3, 7], [0.1, 0.2, 0.8, 0.6]
    low, middle, high = evaluation.calibrate_gaps(s, a)
    assert low == (2, 1.5, pytest.approx((0.1 + 0.6) / 2), 1)
    assert middle == (2, 3.5, pytest.approx((0.7 + 0.2) / 2), 0.5)
    assert high == (2, 6.5, pytest.approx((0.4 + 0.5) / 2), 1)


def test_calibrate_gaps_of_ties_does_not_depend_on_the_order():
    random = np.random.default_rng(0)
    s, a = random.integers(3, size=9), random.integers(4, size=9)
    expected = evaluation.calibrate_gaps(s, a)
    assert sum(b.num_pairs for b in expected) == 36
    order = random.permutation(9)
    for one, other in zip(
        evaluation.calibrate_gaps(s[order], a[order]), expected, strict=True
    ):
        assert one == pytest.approx(other, nan_ok=True)
    empty = evaluation.calibrate_gaps([1], [1])
    assert [b.num_pairs for b in empty] == [0, 0, 0]
