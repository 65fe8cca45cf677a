"""The paired permutation test: enumeration, equal measures and noise."""

import itertools

import numpy as np
import pytest
import scipy.stats

from rankckpt_jax import evaluation


def test_compare_enumerates_few_checkpoints():
    a = np.array([0.1, 0.3, 0.5, 0.6, 0.9])
    s, t = np.array([1, 2, 3, 4, 5.0]), np.array([50, 20, 30, 10, 40.0])
    result = evaluation.compare(s, t, a)
    ranks_s, ranks_t = scipy.stats.rankdata(s), scipy.stats.rankdata(t)
    differences = []
    for swap in itertools.product([False, True], repeat=5):
        one, other = np.where(swap, ranks_t, ranks_s), np.where(swap, ranks_s, ranks_t)
        differences.append(
            scipy.stats.kendalltau(one, a).statistic
            - scipy.stats.kendalltau(other, a).statistic
        )
    assert result.difference == pytest.approx(differences[0])
    reached = np.abs(differences) >= abs(differences[0]) - 1e-9
    assert result.p_value == pytest.approx(reached.mean())


def test_compare_of_equal_measures_has_no_difference():
    s, a = np.arange(10.0), np.arange(10) / 10
    assert evaluation.compare(s, 2 * s + 1, a) == (0.0, 1.0)


def test_compare_rejects_noise_at_the_level_of_the_test():
    rng = np.random.default_rng(3)
    rejected = 0
    for seed in range(100):
        s, t, a = rng.normal(size=(3, 14))
        rejected += evaluation.compare(s, t, a, num_samples=300, seed=seed)[1] < 0.1
    assert rejected <= 20


def test_compare_matches_mappings_by_name():
    s, t, a = [1.0, 2, 3], [3.0, 1, 2], [0.1, 0.2, 0.3]
    by_name = (
        dict(zip("xyz", s, strict=True)),
        {n: t["xyz".index(n)] for n in "zxy"},
        {n: a["xyz".index(n)] for n in "yzx"},
    )
    assert evaluation.compare(*by_name) == evaluation.compare(s, t, a)
