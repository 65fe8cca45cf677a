"""Searches that stop trainings early, on curves that never cross and curves that do."""

import numpy as np
import pytest

from tests.benchmarks.planning_curves import POINTS, Search

STEPS = np.arange(1, POINTS + 1) / POINTS


def make_search(heights, speeds=None):
    speeds = speeds or dict.fromkeys(heights, 3.0)
    curves = {
        (name, rate): height * (1 - np.exp(-speeds[name] * STEPS)) * share
        for name, height in heights.items()
        for rate, share in (("0.01", 0.9), ("0.001", 1.0))
    }
    return Search(curves, dict.fromkeys(heights, 1.0))


@pytest.mark.parametrize("budget", [2.0, 8.0])
def test_searches_find_the_best_of_curves_that_never_cross(budget):
    search = make_search({name: 0.5 + 0.05 * i for i, name in enumerate("abcdef")})
    assert search.halve(budget, list("fedcba")) == ["f"]
    assert search.optimize(8.0) == ["f"]


def test_halving_loses_a_slow_learner_that_wins():
    search = make_search(
        {"fast": 0.6, "slow": 0.9, "other": 0.4}, {"fast": 9, "slow": 0.8, "other": 9}
    )
    assert search.curves["slow", "0.001"][-1] > search.curves["fast", "0.001"][-1] - 0.2
    assert search.halve(3.0, ["fast", "slow", "other"]) == ["fast"]


def test_budget_limits_how_many_checkpoints_start():
    search = make_search({"a": 0.5, "b": 0.7, "c": 0.9})
    assert search.halve(0.1, list("abc")) == ["a"]
    # Two trials for the first round, one for the others.
    _, one = search._rounds("a")
    assert one == pytest.approx((2 * 1 + 1 + 2 + 6) / (2 * POINTS))
    assert search.halve(one * 3, list("abc")) == ["c"]
    assert len(search.halve(1.0, None)) == 20
