"""Consensus orders, compared with brute force."""

import itertools

import numpy as np
import pytest
import scipy.stats

from rankckpt_jax import evaluation
from rankckpt_jax.errors import InputError


def _scores(num_measures, n, levels=1000, seed=0):
    random = np.random.default_rng(seed)
    values = random.integers(levels, size=(num_measures, n))
    return {
        f"m{i}": {f"c{j}": float(v) for j, v in enumerate(row)}
        for i, row in enumerate(values)
    }


def test_mean_rank_matches_scipy_and_keeps_ties():
    scores = _scores(3, 8, levels=4)
    table = np.array([list(s.values()) for s in scores.values()])
    expected = scipy.stats.rankdata(table, axis=1).mean(0)
    result = evaluation.mean_rank(scores)
    assert list(result.values()) == pytest.approx(expected)
    assert len(set(result.values())) == len(np.unique(np.round(expected, 9)))


def test_consensus_uses_checkpoints_of_all_measures():
    scores = {"one": {"x": 1, "y": 2, "z": 3}, "two": {"z": 5, "x": 1}}
    assert evaluation.mean_rank(scores) == {"x": 1, "z": 2}
    assert evaluation.kemeny(scores) == {"x": 1, "z": 2}


@pytest.mark.parametrize("levels", [3, 1000])
@pytest.mark.parametrize("seed", range(3))
def test_kemeny_has_the_least_distance_of_all_orders(seed, levels):
    scores = _scores(4, 6, levels, seed)
    tables = [np.array(list(s.values())) for s in scores.values()]
    i, j = np.triu_indices(6, 1)

    def distance(ranks):
        return sum(
            np.sum(np.sign(ranks[i] - ranks[j]) * np.sign(s[i] - s[j]) < 0)
            for s in tables
        )

    best = min(distance(np.array(o)) for o in itertools.permutations(range(6)))
    result = evaluation.kemeny(scores)
    assert sorted(result.values()) == [1, 2, 3, 4, 5, 6]
    assert distance(np.array(list(result.values()))) == best


def test_kemeny_of_a_majority_without_cycles_is_its_order():
    scores = _scores(5, 25)
    order = {f"c{j}": float(j) for j in range(25)}
    result = evaluation.kemeny({**scores, **{f"same{i}": order for i in range(6)}})
    assert result == {name: rank + 1 for name, rank in order.items()}


def test_consensus_rejects_no_measures_and_kemeny_large_pools():
    with pytest.raises(InputError, match="needs measures"):
        evaluation.mean_rank({})
    with pytest.raises(InputError, match="Too many checkpoints"):
        evaluation.kemeny(_scores(2, 31))
    assert evaluation.kemeny({"m": {"x": 3.0}}) == {"x": 1}
