"""Paired tests: enumeration, equal measures, SciPy and noise."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from rankckpt_jax import evaluation
from rankckpt_jax.evaluation import comparison


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
    difference, p_value, interval = evaluation.compare(s, 2 * s + 1, a)
    assert (difference, p_value) == (0.0, 1.0)
    assert math.isnan(interval.low)


def test_compare_leaves_the_same_checkpoint_out_of_both():
    s, t, a = np.random.default_rng(0).normal(size=(3, 9))

    def difference(kept):
        one, other = (scipy.stats.kendalltau(x[kept], a[kept])[0] for x in (s, t))
        return one - other

    rows = np.arange(9)
    without = [difference(rows != i) for i in rows]
    error = math.sqrt(8 / 9 * np.sum((without - np.mean(without)) ** 2))
    expected = scipy.stats.t.interval(0.95, 8, difference(rows >= 0), error)
    assert evaluation.compare(s, t, a).interval == pytest.approx(expected)


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
    assert evaluation.compare(*by_name)[:2] == evaluation.compare(s, t, a)[:2]


@pytest.mark.parametrize("num_tasks", [1, 4, 6, 9])
def test_compare_over_tasks_matches_scipy(num_tasks):
    first, second = np.random.default_rng(num_tasks).normal(size=(2, num_tasks))
    second -= 0.5
    result = evaluation.compare_over_tasks(
        dict(enumerate(first)), dict(enumerate(second))
    )
    assert result.difference == pytest.approx(np.mean(first - second))
    assert result.num_tasks == num_tasks
    assert result.is_decidable == (num_tasks >= 6)
    if num_tasks > 1:
        expected = scipy.stats.permutation_test(
            (first, second),
            lambda x, y, axis: np.mean(x - y, axis=axis),
            permutation_type="samples",
            n_resamples=np.inf,
        )
        assert result.p_value == pytest.approx(expected.pvalue)


def test_compare_over_tasks_has_the_least_p_value_if_all_tasks_agree():
    for num_tasks, least in ((4, 0.125), (6, 0.03125), (28, 2.0**-27)):
        ones = dict.fromkeys(range(num_tasks), 1.0)
        zeros = dict.fromkeys(range(num_tasks), 0.0)
        assert evaluation.compare_over_tasks(ones, zeros).p_value == least


def test_compare_over_tasks_of_many_tasks_draws_flips(monkeypatch):
    random = np.random.default_rng(0)
    first = dict(enumerate(random.normal(0.3, 1, 30)))
    zeros = dict.fromkeys(first, 0.0)
    exact = evaluation.compare_over_tasks(first, zeros).p_value
    monkeypatch.setattr(comparison, "_MAX_EXACT_TASKS", 29)
    drawn = evaluation.compare_over_tasks(first, zeros).p_value
    # The standard error of 100,000 flips is at most 0.0016.
    assert 0 < exact != drawn == pytest.approx(exact, abs=0.006)


def test_compare_over_tasks_leaves_out_tasks_without_both_values():
    first = {"a": 0.5, "b": math.nan, "c": 0.4}
    result = evaluation.compare_over_tasks(first, {"a": 0.2, "b": 0.1})
    assert result == (pytest.approx(0.3), 1.0, 1)
    assert math.isnan(evaluation.compare_over_tasks(first, {}).p_value)
    assert evaluation.compare_over_tasks({"a": 1.0}, {"a": 1.0}).p_value == 1


def test_holm_matches_a_hand_calculation():
    # 4 * 0.005, 3 * 0.01, 2 * 0.02, and 1 * 0.03, which is raised to 0.04.
    adjusted = evaluation.holm(
        {"a": 0.01, "b": 0.02, "c": 0.03, "d": 0.005, "e": math.nan}
    )
    assert math.isnan(adjusted.pop("e"))
    assert adjusted == {
        "a": pytest.approx(0.03),
        "b": pytest.approx(0.04),
        "c": pytest.approx(0.04),
        "d": pytest.approx(0.02),
    }
    assert evaluation.holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}
