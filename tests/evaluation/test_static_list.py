"""Static lists, compared with their definitions."""

import math

import numpy as np
import pytest
import scipy.stats

from rankckpt_jax import evaluation


def test_beyond_static_matches_the_formula_of_kendall():
    s, a, z = np.random.default_rng(0).normal(size=(3, 12))
    sa, sz, za = (
        scipy.stats.kendalltau(*pair).statistic for pair in ((s, a), (s, z), (z, a))
    )
    result = evaluation.beyond_static(s, a, z)
    partial = (sa - sz * za) / math.sqrt((1 - sz**2) * (1 - za**2))
    assert result == pytest.approx((sa, za, sa - za, partial))


def test_beyond_static_of_a_score_with_no_skill_beyond_the_list():
    # The partial tau is the phi coefficient of pairs given the list: a score that adds
    # independent noise to the list has none.
    random = np.random.default_rng(0)
    z = random.normal(size=2000)
    s, a = z + random.normal(size=(2, 2000))
    result = evaluation.beyond_static(s, a, z)
    assert result.kendall > 0.3
    assert result.skill < -0.1
    # Given z, scores and accuracies are independent; tau is not linear, so not exactly.
    assert abs(result.partial) < 0.15


def test_beyond_static_is_undefined_if_the_score_is_the_list():
    a, z = np.random.default_rng(0).normal(size=(2, 9))
    result = evaluation.beyond_static(z, a, 2 * z)
    assert result.skill == 0
    assert math.isnan(result.partial)


def test_mean_rank_elsewhere_leaves_out_the_own_task():
    tasks = {
        "one": {"x": 0.9, "y": 0.5, "z": 0.1},
        "two": {"x": 0.3, "y": 0.2, "z": 0.2},
        "three": {"x": 0.1, "y": 0.2, "w": 0.3, "v": 0.4},
    }
    result = evaluation.mean_rank_elsewhere(tasks)
    # Ranks of x, y, z on two: 3, 1.5, 1.5 of 3; of x and y on three: 1 and 2 of 4.
    assert result["one"] == {
        "x": pytest.approx((2.5 / 3 + 0.5 / 4) / 2),
        "y": pytest.approx((1 / 3 + 1.5 / 4) / 2),
        "z": pytest.approx(1 / 3),
    }
    assert result["three"].keys() == {"x", "y"}
    assert evaluation.mean_rank_elsewhere({"one": {"x": 1.0}}) == {"one": {}}


def test_rank_dispersion_is_one_minus_the_mean_tau_of_tasks():
    tasks = {
        "one": {"a": 0.1, "b": 0.2, "c": 0.3},
        "two": {"c": 0.9, "b": 0.8, "a": 0.7, "d": 0.1},
        "three": {"a": 0.3, "b": 0.2, "c": 0.1},
    }
    # Kendall's tau is 1, -1 and -1.
    assert evaluation.rank_dispersion(tasks) == pytest.approx(1 + 1 / 3)
    same = {"one": tasks["one"], "two": tasks["two"]}
    assert evaluation.rank_dispersion(same) == 0
    assert math.isnan(evaluation.rank_dispersion({"one": tasks["one"]}))
