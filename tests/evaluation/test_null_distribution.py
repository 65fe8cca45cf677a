"""Random orders, compared with enumeration and known distributions."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from rankckpt_jax import evaluation
from rankckpt_jax.evaluation import batch


def test_random_ranking_is_the_mean_over_all_orders():
    a = [0.2, 0.9, 0.4, 0.5]
    results = [evaluation.score_ranking(s, a) for s in itertools.permutations(range(4))]
    expected = evaluation.random_ranking(a)
    for name in expected.keys() - {"weighted_kendall"}:
        mean = np.mean([result[name] for result in results])
        assert expected[name] == pytest.approx(mean, abs=1e-12)
    assert expected["weighted_kendall"] == 0
    assert math.isnan(evaluation.random_ranking([0.5, 0.5])["kendall"])


def test_p_values_of_a_perfect_order_count_orders():
    a = np.arange(5) / 10
    p = evaluation.p_values(a, a, num_samples=20_000)
    # One order of 120 is perfect; one of 5 has the best first.
    assert p["kendall"] == pytest.approx(1 / 120, rel=0.3)
    assert p["recall@1"] == pytest.approx(1 / 5, rel=0.1)


def test_p_values_of_noise_are_uniform_and_never_zero():
    rng = np.random.default_rng(1)
    s, a = rng.normal(size=(2, 150, 12))
    p = [
        evaluation.p_values(x, abs(y), num_samples=100)["kendall"]
        for x, y in zip(s, a, strict=True)
    ]
    assert min(p) >= 1 / 101
    # A test at 10 % rejects noise in about 10 % of cases.
    assert np.mean(np.array(p) <= 0.1) == pytest.approx(0.1, abs=0.05)


def test_p_values_of_constant_scores_are_nan():
    p = evaluation.p_values([1, 1, 1], [0.1, 0.2, 0.3], num_samples=50)
    assert math.isnan(p["kendall"]) and p["recall@1"] <= 1


@pytest.mark.parametrize(("n", "expected"), [(16, 0.185), (12, 0.221), (13, 0.210)])
def test_kendall_null_deviation_of_neucrab_groups(n, expected):
    assert round(evaluation.kendall_null_deviation(n), 3) == expected


def test_kendall_null_deviation_matches_all_orders():
    taus = [
        scipy.stats.kendalltau(range(5), order).statistic
        for order in itertools.permutations(range(5))
    ]
    assert evaluation.kendall_null_deviation(5) == pytest.approx(np.std(taus))
    assert math.isnan(evaluation.kendall_null_deviation(1))


@pytest.mark.parametrize(
    ("tau", "n", "expected"),
    [
        (0.8, 6, True),
        (-0.8, 6, True),
        (0.6, 6, False),
        (1.0, 4, False),
        (math.nan, 20, False),
    ],
)
def test_is_significant(tau, n, expected):
    assert evaluation.is_significant(tau, n) == expected


def test_p_value_over_tasks_matches_scipy():
    random = np.random.default_rng(0)
    s, a = random.normal(size=(2, 9)) + np.linspace(0, 1.5, 9)
    expected = scipy.stats.permutation_test(
        (s,),
        lambda x: scipy.stats.kendalltau(x, a).statistic,
        permutation_type="pairings",
        alternative="greater",
        n_resamples=2000,
        rng=np.random.default_rng(0),
    ).pvalue
    names = "abcdefghi"
    task = dict(zip(names, s, strict=True)), dict(zip(names, a, strict=True))
    p = evaluation.p_value_over_tasks({"t": task[0]}, {"t": task[1]})
    # The standard error of 2000 permutations is below 0.01.
    assert p == pytest.approx(expected, abs=0.02)
    constant = {"t": dict.fromkeys(names, 1.0)}
    assert math.isnan(evaluation.p_value_over_tasks(constant, {"t": task[1]}))


def test_p_value_over_tasks_within_families_asks_for_more():
    random = np.random.default_rng(0)
    families = {f"{f}{i}": f for f in "abcd" for i in range(4)}
    level = {name: 10.0 * ord(family) for name, family in families.items()}
    scores, accuracies = (
        {
            task: {name: value + random.normal() for name, value in level.items()}
            for task in "xyz"
        }
        for _ in range(2)
    )
    # The score only tells families apart.
    assert evaluation.p_value_over_tasks(scores, accuracies) < 0.001
    assert evaluation.p_value_over_tasks(scores, accuracies, families) > 0.05
    alone = {name: name for name in families}
    assert evaluation.p_value_over_tasks(scores, accuracies, alone) == 1


@pytest.mark.parametrize(
    ("n", "deviation", "quantile"),
    [(10, 0.290, 0.496), (16, 0.233, 0.411), (24, 0.197, 0.333)],
)
def test_weighted_kendall_of_random_orders_spreads_more_than_kendall(
    n, deviation, quantile
):
    random = np.random.default_rng(n)
    s, a = random.normal(size=(2, 4000, n))
    values = batch.weighted_kendall(s, a)
    # The standard errors of 4000 draws are about 1 % and 0.01.
    assert np.std(values) == pytest.approx(deviation, rel=0.04)
    assert np.quantile(values, 0.95) == pytest.approx(quantile, abs=0.025)
    assert np.std(values) > evaluation.kendall_null_deviation(n)
    assert np.mean(values) == pytest.approx(0, abs=0.015)
