"""The metrics, compared with SciPy, hand calculations and brute force."""

import itertools
import math
import warnings

import numpy as np
import pytest
import scipy.stats

from rankckpt_jax import evaluation
from rankckpt_jax.errors import InputError

KEYS = {
    "recall@1",
    "recall@3",
    "rel@1",
    "rel@3",
    "pearson",
    "kendall",
    "spearman",
    "weighted_kendall",
}
CORRELATIONS = ("pearson", "kendall", "spearman", "weighted_kendall")


def test_score_ranking_of_a_hand_calculated_case():
    # Best-scored first: accuracies 0.8, 0.9, 0.6, 0.5; one of six pairs is inverted.
    result = evaluation.score_ranking([-0.4, -0.9, -0.5, -1.3], [0.8, 0.6, 0.9, 0.5])
    assert result.keys() == KEYS
    assert all(type(value) is float for value in result.values())
    assert result["recall@1"] == 0.0
    assert result["recall@3"] == 1.0
    assert result["rel@1"] == pytest.approx(8 / 9)
    assert result["rel@3"] == 1.0
    assert result["kendall"] == pytest.approx((5 - 1) / 6)
    assert result["spearman"] == pytest.approx(1 - 6 * 2 / (4 * 15))


def test_score_ranking_computes_tau_b_for_ties():
    # P = 4 pairs agree, Q = 0, S = 1 tied in the scores, A = 1 in the accuracies.
    result = evaluation.score_ranking([1, 1, 2, 3], [0.1, 0.2, 0.3, 0.3])
    assert result["kendall"] == pytest.approx(4 / math.sqrt(5 * 5))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("levels", [3, 1000])
def test_score_ranking_matches_scipy(seed, levels):
    rng = np.random.default_rng(seed)
    s = rng.integers(levels, size=16) / levels
    a = rng.integers(levels, size=16) / levels
    result = evaluation.score_ranking(s, a)
    assert result["pearson"] == scipy.stats.pearsonr(s, a).statistic
    assert result["kendall"] == scipy.stats.kendalltau(s, a, variant="b").statistic
    assert result["spearman"] == scipy.stats.spearmanr(s, a).statistic
    assert result["weighted_kendall"] == scipy.stats.weightedtau(s, a).statistic


@pytest.mark.parametrize("seed", range(4))
def test_score_ranking_averages_over_ways_to_break_ties(seed):
    rng = np.random.default_rng(seed)
    s, a = rng.integers(3, size=6), rng.integers(1, 4, size=6) / 4
    result = evaluation.score_ranking(s, a)
    orders = [
        order
        for order in itertools.permutations(range(6))
        if (np.diff(s[list(order)]) <= 0).all()
    ]
    for k in (1, 3):
        tops = [a[list(order[:k])].max() for order in orders]
        recall = np.mean([top == a.max() for top in tops])
        assert result[f"recall@{k}"] == pytest.approx(recall)
        assert result[f"rel@{k}"] == pytest.approx(np.mean(tops) / a.max())


def test_score_ranking_does_not_depend_on_the_order():
    s, a = np.array([2, 2, 1, 2, 0.0]), np.array([0.2, 0.9, 0.4, 0.5, 0.9])
    expected = evaluation.score_ranking(s, a)
    for order in itertools.permutations(range(5)):
        actual = evaluation.score_ranking(s[list(order)], a[list(order)])
        assert actual == pytest.approx(expected)


def test_score_ranking_accepts_any_of_several_best():
    assert evaluation.score_ranking([3, 2, 1], [0.5, 0.9, 0.9])["recall@1"] == 0
    assert evaluation.score_ranking([1, 2, 3], [0.5, 0.9, 0.9])["recall@1"] == 1


def test_score_ranking_of_constant_scores_is_a_random_draw():
    result = evaluation.score_ranking([7.0] * 4, [0.2, 0.4, 0.6, 0.8])
    assert result["recall@1"] == pytest.approx(1 / 4)
    assert result["recall@3"] == pytest.approx(3 / 4)
    assert result["rel@1"] == pytest.approx(0.5 / 0.8)
    assert all(math.isnan(result[name]) for name in CORRELATIONS)


@pytest.mark.parametrize(
    ("scores", "accuracies"),
    [([1, 2, 3], [0.5] * 3), ([1.0] * 3, [0.1, 0.2, 0.3]), ([1], [0.5])],
)
def test_score_ranking_returns_nan_without_warnings(scores, accuracies):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = evaluation.score_ranking(scores, accuracies)
    assert all(math.isnan(result[name]) for name in CORRELATIONS)


def test_score_ranking_of_nearly_constant_scores_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = evaluation.score_ranking([1, 1 + 1e-15, 1 + 2e-15], [0.1, 0.2, 0.3])
    assert result["kendall"] == pytest.approx(1)


def test_score_ranking_takes_all_checkpoints_if_k_exceeds_n():
    result = evaluation.score_ranking([2, 1], [0.2, 0.8])
    assert result["recall@1"] == 0
    assert result["rel@1"] == 0.25
    assert result["recall@3"] == result["rel@3"] == 1


def test_score_ranking_of_one_checkpoint_and_of_none():
    one = evaluation.score_ranking([0.3], [0.9])
    assert one["recall@1"] == one["rel@1"] == one["rel@3"] == 1
    none = evaluation.score_ranking([], [])
    assert none.keys() == KEYS
    assert all(math.isnan(value) for value in none.values())


def test_score_ranking_rel_is_nan_without_a_positive_accuracy():
    result = evaluation.score_ranking([1, 2], [0.0, 0.0])
    assert math.isnan(result["rel@1"])
    assert math.isnan(result["rel@3"])
    assert result["recall@1"] == 1


def test_score_ranking_accepts_percentages():
    s, a = [1.0, 4.0, 2.0, 3.0], np.array([0.41, 0.87, 0.9, 0.3])
    percentages = evaluation.score_ranking(s, 100 * a)
    assert percentages == pytest.approx(evaluation.score_ranking(s, a))


def test_score_ranking_matches_mappings_by_name():
    by_name = evaluation.score_ranking(
        {"a": 1.0, "b": 2.0, "c": 3.0}, {"c": 0.3, "a": 0.5, "b": 0.4}
    )
    assert by_name == evaluation.score_ranking([1, 2, 3], [0.5, 0.4, 0.3])
    assert by_name["kendall"] == pytest.approx(-1)


def test_score_ranking_accepts_jax_arrays():
    jnp = pytest.importorskip("jax.numpy")
    result = evaluation.score_ranking(jnp.array([1.0, 2.0]), jnp.array([0.5, 0.75]))
    assert result["kendall"] == 1


@pytest.mark.parametrize(
    ("scores", "accuracies", "message"),
    [
        ({"a": 1.0}, {"b": 0.5}, r"different checkpoints[\s\S]*\['a', 'b'\]"),
        ({"a": 1.0}, [0.5], "cannot be matched"),
        ([1, 2], [0.5], "2 scores and 1 accuracies"),
        ([1, math.nan], [0.5, 0.6], "nan at index 1"),
        ([1, 2], [0.5, math.inf], "Accuracies are not all finite"),
        ([1, None], [0.5, 0.6], "not all finite"),
        ([1, "x"], [0.5, 0.6], "Scores are not all numbers"),
        ([[1, 2]], [[0.5, 0.6]], r"shape \(1, 2\)"),
    ],
)
def test_score_ranking_raises_for_unusable_input(scores, accuracies, message):
    with pytest.raises(InputError, match=message):
        evaluation.score_ranking(scores, accuracies)


def test_mean_over_tasks_ignores_undefined_values():
    tasks = {
        "one": evaluation.score_ranking([1, 2, 3], [0.1, 0.3, 0.2]),
        "two": evaluation.score_ranking([1, 1, 1], [0.1, 0.3, 0.2]),
    }
    mean = evaluation.mean_over_tasks(tasks)
    assert mean["kendall"] == tasks["one"]["kendall"]
    assert mean["recall@1"] == pytest.approx((0 + 1 / 3) / 2)
    assert evaluation.mean_over_tasks({}) == {}


def test_num_tied():
    assert evaluation.num_tied([0.1, 0.2, 0.2, 0.1, 0.3]) == 4
    assert evaluation.num_tied([]) == 0


def test_score_ranking_avoids_the_traps_of_scipys_weighted_tau():
    random = np.random.default_rng(0)
    s = random.normal(size=10)
    a = s + random.normal(size=10)

    def weighted(s, a):
        return evaluation.score_ranking(s, a)["weighted_kendall"]

    # The mean of the ranks by s (0.4846) and by a (0.5165), in any order of the rows.
    assert weighted(s, a) == pytest.approx((0.4846 + 0.5165) / 2, abs=1e-4)
    assert weighted(s, a) == pytest.approx(weighted(a, s))
    assert weighted(s, a) == pytest.approx(weighted(s[::-1], a[::-1]))
    # It is not symmetric under negation: the top weighs more than the bottom.
    assert weighted(-s, -a) == pytest.approx(0.1242, abs=1e-4)
    with pytest.raises(InputError, match="finite"):
        weighted([1, np.nan, 3], [1, 2, 3])
