"""The paired permutation test against enumeration, and on noise."""

import itertools

import numpy as np
import pytest
import scipy.stats

from rankckpt_jax import evaluation
from rankckpt_jax.errors import InputError


def test_few_checkpoints_are_enumerated():
    a = np.array([0.1, 0.3, 0.5, 0.6, 0.9])
    s, t = np.array([1, 2, 3, 4, 5.0]), np.array([50, 20, 30, 10, 40.0])
    found = evaluation.compare([(s, t, a)])
    ranks_s, ranks_t = scipy.stats.rankdata(s), scipy.stats.rankdata(t)
    differences = []
    for swap in itertools.product([False, True], repeat=5):
        one, other = np.where(swap, ranks_t, ranks_s), np.where(swap, ranks_s, ranks_t)
        differences.append(
            scipy.stats.kendalltau(one, a).statistic
            - scipy.stats.kendalltau(other, a).statistic
        )
    assert found.difference == pytest.approx(differences[0])
    reached = np.abs(differences) >= abs(differences[0]) - 1e-9
    assert found.p_value == pytest.approx(reached.mean())


def test_equal_measures_do_not_differ():
    s, a = np.arange(10.0), np.arange(10) / 10
    assert evaluation.compare([(s, 2 * s + 1, a)]) == (0.0, 1.0)


def test_several_tasks_add_evidence():
    rng = np.random.default_rng(0)
    tasks = []
    for _ in range(4):
        a = rng.uniform(size=13)
        tasks.append((a + rng.normal(0, 0.1, 13), rng.normal(size=13), a))
    alone, together = evaluation.compare(tasks[:1]), evaluation.compare(tasks)
    assert together.p_value < 0.01
    assert together.p_value <= alone.p_value


def test_two_kinds_of_noise_seldom_differ():
    rng = np.random.default_rng(3)
    rejected = 0
    for seed in range(100):
        s, t, a = rng.normal(size=(3, 14))
        rejected += evaluation.compare([(s, t, a)], num_samples=300, seed=seed)[1] < 0.1
    assert rejected <= 20


def test_mappings_match_by_name_and_pearson_is_refused():
    s, t, a = [1.0, 2, 3], [3.0, 1, 2], [0.1, 0.2, 0.3]
    names = "xyz"
    by_name = (
        dict(zip(names, s, strict=True)),
        {n: t["xyz".index(n)] for n in "zxy"},
        {n: a["xyz".index(n)] for n in "yzx"},
    )
    assert evaluation.compare([by_name]) == evaluation.compare([(s, t, a)])
    with pytest.raises(InputError, match="pearson"):
        evaluation.compare([(s, t, a)], "pearson")
