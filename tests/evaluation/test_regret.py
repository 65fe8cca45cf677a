"""Regret, compared with its definition by brute force."""

import itertools
import math

import numpy as np
import pytest

from rankckpt_jax import evaluation
from rankckpt_jax.errors import InputError


def _brute_force(s, a, b, k):
    """Return the mean over all orders of the checkpoints that respect the scores."""
    chosen = []
    for order in itertools.permutations(range(len(s))):
        rows = list(order)
        if (np.diff(s[rows]) <= 0).all():
            top = rows[:k]
            highest = max(a[i] for i in top)
            chosen.append(np.mean([b[i] for i in top if a[i] == highest]))
    return b[a == a.max()].mean() - np.mean(chosen)


@pytest.mark.parametrize("k", [1, 2, 3, 9])
@pytest.mark.parametrize("seed", range(4))
def test_regret_matches_brute_force(seed, k):
    random = np.random.default_rng(seed)
    # Few levels, so that scores and accuracies tie.
    s, a = random.integers(3, size=6) / 1.0, random.integers(1, 5, size=6) / 4
    b = random.random(6)
    for remeasured in (None, b):
        measured = a if remeasured is None else b
        result = evaluation.regret(s, a, k, remeasured=remeasured)
        expected = _brute_force(s, a, measured, k)
        expected_random = _brute_force(np.zeros(6), a, measured, k)
        assert result.value == pytest.approx(expected)
        assert result.random == pytest.approx(expected_random)
        if abs(expected_random) > 1e-9:
            assert result.normalized == pytest.approx(expected / expected_random)
        else:
            assert math.isnan(result.normalized)


def test_regret_of_the_perfect_score_and_of_all_checkpoints_is_zero():
    a = [0.4, 0.8, 0.6]
    assert evaluation.regret(a, a).value == 0
    value, random, normalized = evaluation.regret([3, 2, 1], a, 3)
    assert value == random == 0 and math.isnan(normalized)
    assert math.isnan(evaluation.regret([], []).value)


def test_regret_by_a_second_seed_has_no_winners_curse():
    random = np.random.default_rng(0)
    truth = random.uniform(0.5, 0.7, 15)
    by_one, by_two, true = [], [], []
    for _ in range(300):
        score = truth + random.normal(0, 0.05, 15)
        one, two = truth + random.normal(0, 0.03, (2, 15))
        by_one.append(evaluation.regret(score, one).value)
        by_two.append(evaluation.regret(score, one, remeasured=two).value)
        named = truth[np.argmax(one)]
        true.append(named - truth[np.argmax(score)])
    # The standard errors are about 0.003.
    assert np.mean(by_two) == pytest.approx(np.mean(true), abs=0.01)
    assert np.mean(by_one) > np.mean(true) + 0.015


def test_regret_matches_mappings_by_name():
    s, a = {"x": 2, "y": 1}, {"y": 0.9, "x": 0.5}
    assert evaluation.regret(s, a).value == pytest.approx(0.4)
    second = {"y": 0.4, "x": 0.6}
    assert evaluation.regret(s, a, remeasured=second).value == pytest.approx(-0.2)


def test_regret_rejects_no_checkpoints_to_fine_tune():
    with pytest.raises(InputError, match="number of checkpoints"):
        evaluation.regret([1, 2], [0.1, 0.2], 0)
