"""What holds of any ranking, drawn at random: ties, orders, maps and SciPy's word."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from rankckpt_jax import evaluation

BY_RANKS = ("kendall", "spearman", "weighted_kendall")
BOUNDS = {"pearson": (-1, 1), **dict.fromkeys(BY_RANKS, (-1, 1))}
TOP = ("recall@1", "recall@3", "rel@1", "rel@3")
MAPS = {
    "line": lambda x: 3 * x - 7,
    "cube": lambda x: x**3,
    "exponential": lambda x: np.exp(x / 8),
    "bend": lambda x: np.where(x < 0, x, 100 * x),
}
# Few different values, so that ties are common; whole, so that a map keeps them apart.
_pairs = st.lists(
    st.tuples(st.integers(-9, 9), st.integers(0, 12)), min_size=2, max_size=14
)
few = settings(max_examples=60, deadline=None)


def _evaluate(pairs):
    scores, levels = np.array(pairs, float).T
    return scores, levels / 12, evaluation.score_ranking(scores, levels / 12)


def _same(found, expected, keys):
    for key in keys:
        assert found[key] == pytest.approx(expected[key], abs=1e-9, nan_ok=True), key


@few
@given(pairs=_pairs, name=st.sampled_from(sorted(MAPS)))
def test_rising_maps_of_the_scores_change_no_statistic_of_ranks(pairs, name):
    scores, accuracies, expected = _evaluate(pairs)
    found = evaluation.score_ranking(MAPS[name](scores), accuracies)
    _same(found, expected, (*TOP, *BY_RANKS))
    if name == "line":
        _same(found, expected, ["pearson"])


@few
@given(pairs=_pairs, name=st.sampled_from(sorted(MAPS)))
def test_rising_maps_of_the_accuracies_change_no_correlation_of_ranks(pairs, name):
    scores, accuracies, expected = _evaluate(pairs)
    mapped = MAPS[name](12 * accuracies)
    found = evaluation.score_ranking(scores, mapped - mapped.min() + 1)
    _same(found, expected, ("recall@1", "recall@3", *BY_RANKS))


@few
@given(pairs=_pairs, data=st.data())
def test_the_order_of_checkpoints_does_not_matter(pairs, data):
    _, _, expected = _evaluate(pairs)
    _, _, found = _evaluate(data.draw(st.permutations(pairs)))
    _same(found, expected, expected)


@few
@given(pairs=_pairs)
def test_the_opposite_scores_have_the_opposite_correlations(pairs):
    scores, accuracies, expected = _evaluate(pairs)
    found = evaluation.score_ranking(-scores, accuracies)
    for key in ("pearson", "kendall", "spearman"):
        assert found[key] == pytest.approx(-expected[key], abs=1e-9, nan_ok=True)


@few
@given(pairs=_pairs)
def test_everything_is_in_its_bounds(pairs):
    _, accuracies, found = _evaluate(pairs)
    for key, (low, high) in BOUNDS.items():
        value = found[key]
        assert math.isnan(value) or low - 1e-9 <= value <= high + 1e-9
    assert 0 <= found["recall@1"] <= found["recall@3"] <= 1
    if accuracies.max() > 0:
        assert found["rel@1"] <= found["rel@3"] + 1e-12
        assert found["recall@1"] - 1e-12 <= found["rel@1"] <= 1 + 1e-12
    if len(pairs) <= 3:
        assert found["recall@3"] == 1


@few
@given(pairs=_pairs)
def test_scipy_says_the_same(pairs):
    scores, accuracies, found = _evaluate(pairs)
    if np.ptp(scores) == 0 or np.ptp(accuracies) == 0:
        assert all(math.isnan(found[key]) for key in BOUNDS)
        return
    expected = {
        "pearson": scipy.stats.pearsonr(scores, accuracies),
        "kendall": scipy.stats.kendalltau(scores, accuracies, variant="b"),
        "spearman": scipy.stats.spearmanr(scores, accuracies),
        "weighted_kendall": scipy.stats.weightedtau(scores, accuracies),
    }
    for key, result in expected.items():
        assert found[key] == pytest.approx(result.statistic, abs=1e-9), key


@few
@given(pairs=_pairs)
def test_a_random_order_is_never_worse_than_the_worst_or_better_than_the_best(pairs):
    _, accuracies, _ = _evaluate(pairs)
    chance = evaluation.random_ranking(accuracies)
    best = evaluation.score_ranking(accuracies, accuracies)
    worst = evaluation.score_ranking(-accuracies, accuracies)
    for key in TOP:
        if not math.isnan(chance[key]):
            assert worst[key] - 1e-9 <= chance[key] <= best[key] + 1e-9, key
