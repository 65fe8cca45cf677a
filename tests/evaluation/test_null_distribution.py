"""Random rankings against exhaustive enumeration and known distributions."""

import itertools
import math

import numpy as np
import pytest

from rankckpt_jax import evaluation


def test_null_distribution_is_that_of_all_orders():
    a = np.array([0.9, 0.7, 0.4, 0.2, 0.1])
    every = [
        evaluation.score_ranking(order, a)
        for order in itertools.permutations(range(len(a)))
    ]
    drawn = evaluation.null_distribution(a, num_samples=20_000)
    for name, values in drawn.items():
        exact = np.array([e[name] for e in every])
        assert np.all(np.diff(values) >= 0)
        # Four standard errors of a mean over 20,000 draws.
        bound = 4 * exact.std() / math.sqrt(20_000) + 1e-12
        assert abs(values.mean() - exact.mean()) < bound
    deviation = evaluation.kendall_null_deviation(len(a))
    assert drawn["kendall"].std() == pytest.approx(deviation, rel=0.03)


def test_p_value_of_a_perfect_order_counts_orders():
    a = np.arange(5) / 10
    p = evaluation.p_values(a, a, num_samples=20_000)
    # One order of 120; the best first in one of 5.
    assert p["kendall"] == pytest.approx(1 / 120, rel=0.3)
    assert p["recall@1"] == pytest.approx(1 / 5, rel=0.1)


def test_p_values_of_noise_are_not_small_and_never_zero():
    rng = np.random.default_rng(1)
    s, a = rng.normal(size=(2, 300, 12))
    found = [
        evaluation.p_values(x, abs(y), num_samples=200)["kendall"]
        for x, y in zip(s, a, strict=True)
    ]
    assert min(found) >= 1 / 201
    # A test at 10 % rejects noise in about 10 % of cases.
    assert np.mean(np.array(found) <= 0.1) == pytest.approx(0.1, abs=0.05)


def test_undefined_stays_undefined():
    p = evaluation.p_values([1, 1, 1], [0.1, 0.2, 0.3], num_samples=50)
    assert math.isnan(p["kendall"]) and p["recall@1"] <= 1
