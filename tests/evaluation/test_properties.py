"""Properties of the metrics for random rankings: invariances, bounds and SciPy."""

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
# Few values, so that ties are common; integers, which every map keeps distinct.
_pairs = st.lists(
    st.tuples(st.integers(-9, 9), st.integers(0, 12)), min_size=2, max_size=14
)
few = settings(max_examples=40, deadline=None)


def _evaluate(pairs):
    scores, levels = np.array(pairs, float).T
    return scores, levels / 12, evaluation.score_ranking(scores, levels / 12)


def _assert_equal(result, expected, keys):
    for key in keys:
        assert result[key] == pytest.approx(expected[key], abs=1e-9, nan_ok=True), key


@few
@given(pairs=_pairs, name=st.sampled_from(sorted(MAPS)))
def test_increasing_maps_of_scores_keep_rank_metrics(pairs, name):
    scores, accuracies, expected = _evaluate(pairs)
    result = evaluation.score_ranking(MAPS[name](scores), accuracies)
    _assert_equal(result, expected, (*TOP, *BY_RANKS))
    if name == "line":
        _assert_equal(result, expected, ["pearson"])


@few
@given(pairs=_pairs, name=st.sampled_from(sorted(MAPS)))
def test_increasing_maps_of_accuracies_keep_rank_correlations(pairs, name):
    scores, accuracies, expected = _evaluate(pairs)
    mapped = MAPS[name](12 * accuracies)
    result = evaluation.score_ranking(scores, mapped - mapped.min() + 1)
    _assert_equal(result, expected, ("recall@1", "recall@3", *BY_RANKS))


@few
@given(pairs=_pairs, data=st.data())
def test_the_order_of_checkpoints_does_not_matter(pairs, data):
    _, _, expected = _evaluate(pairs)
    _, _, result = _evaluate(data.draw(st.permutations(pairs)))
    _assert_equal(result, expected, expected)


@few
@given(pairs=_pairs)
def test_negated_scores_negate_correlations(pairs):
    scores, accuracies, expected = _evaluate(pairs)
    result = evaluation.score_ranking(-scores, accuracies)
    for key in ("pearson", "kendall", "spearman"):
        assert result[key] == pytest.approx(-expected[key], abs=1e-9, nan_ok=True)


@few
@given(pairs=_pairs)
def test_metrics_are_within_bounds(pairs):
    _, accuracies, result = _evaluate(pairs)
    for key, (low, high) in BOUNDS.items():
        value = result[key]
        assert math.isnan(value) or low - 1e-9 <= value <= high + 1e-9
    assert 0 <= result["recall@1"] <= result["recall@3"] <= 1
    if accuracies.max() > 0:
        assert result["rel@1"] <= result["rel@3"] + 1e-12
        assert result["recall@1"] - 1e-12 <= result["rel@1"] <= 1 + 1e-12
    if len(pairs) <= 3:
        assert result["recall@3"] == 1


@few
@given(pairs=_pairs)
def test_correlations_match_scipy(pairs):
    scores, accuracies, result = _evaluate(pairs)
    if np.ptp(scores) == 0 or np.ptp(accuracies) == 0:
        assert all(math.isnan(result[key]) for key in BOUNDS)
        return
    expected = {
        "pearson": scipy.stats.pearsonr(scores, accuracies),
        "kendall": scipy.stats.kendalltau(scores, accuracies, variant="b"),
        "spearman": scipy.stats.spearmanr(scores, accuracies),
        "weighted_kendall": scipy.stats.weightedtau(scores, accuracies),
    }
    for key, reference in expected.items():
        assert result[key] == pytest.approx(reference.statistic, abs=1e-9), key


@few
@given(pairs=_pairs)
def test_random_ranking_is_between_worst_and_best(pairs):
    _, accuracies, _ = _evaluate(pairs)
    random = evaluation.random_ranking(accuracies)
    best = evaluation.score_ranking(accuracies, accuracies)
    worst = evaluation.score_ranking(-accuracies, accuracies)
    for key in TOP:
        if not math.isnan(random[key]):
            assert worst[key] - 1e-9 <= random[key] <= best[key] + 1e-9, key
