"""Kendall's tau over some pairs, compared with SciPy and enumeration."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from rankckpt_jax import evaluation
from rankckpt_jax.errors import InputError


def _draw(n, levels=1000, seed=0):
    random = np.random.default_rng(seed)
    return random.integers(levels, size=(2, n)) / levels


@pytest.mark.parametrize("levels", [4, 1000])
def test_resolvable_kendall_enumerates_pairs(levels):
    s, a = _draw(12, levels)
    agree, untied, known = 0, 0, 0
    for i, j in itertools.combinations(range(12), 2):
        mean = (a[i] + a[j]) / 2
        if abs(a[i] - a[j]) > 1.96 * math.sqrt(2 * mean * (1 - mean) / 50):
            known += 1
            untied += s[i] != s[j]
            agree += np.sign((s[i] - s[j]) * (a[i] - a[j]))
    tau, num_pairs, num_all = evaluation.resolvable_kendall(s, a, 50)
    assert (num_pairs, num_all) == (known, 66)
    assert 0 < known < 66
    assert tau == pytest.approx(agree / math.sqrt(known * untied))


def test_resolvable_kendall_of_many_test_images_is_tau_b():
    s, a = _draw(12, 4)
    a = a + np.arange(12) / 100
    tau, num_pairs, num_all = evaluation.resolvable_kendall(s, a, 10**9)
    assert num_pairs == num_all
    assert tau == pytest.approx(scipy.stats.kendalltau(s, a).statistic)
    assert math.isnan(evaluation.resolvable_kendall(s, a, 1).kendall)


@pytest.mark.parametrize(
    ("accuracies", "num_test", "message"),
    [([50.0, 60.0], 9, "not fractions"), ([0.5, 0.6], 0, "test images")],
)
def test_resolvable_kendall_rejects(accuracies, num_test, message):
    with pytest.raises(InputError, match=message):
        evaluation.resolvable_kendall([1, 2], accuracies, num_test)


@pytest.mark.parametrize("levels", [4, 1000])
def test_pooled_kendall_of_one_task_is_somers_d(levels):
    s, a = _draw(12, levels)
    expected = scipy.stats.somersd(a, s).statistic
    assert evaluation.pooled_kendall([s], [a]) == pytest.approx(expected)


def test_pooled_kendall_weighs_tasks_by_pairs():
    perfect, reverse = {"x": 1, "y": 2, "z": 3}, {"x": 2, "y": 1}
    accuracies = {"x": 0.1, "y": 0.2, "z": 0.3}
    tasks = {"one": perfect, "two": reverse}
    known = {"two": {"x": 0.1, "y": 0.2}, "one": accuracies}
    assert evaluation.pooled_kendall(tasks, known) == (3 - 1) / 4
    assert math.isnan(evaluation.pooled_kendall([], []))
    with pytest.raises(InputError, match="different tasks"):
        evaluation.pooled_kendall(tasks, {"one": accuracies})


def test_within_groups_pools_pairs_and_leaves_out_families():
    s, a = _draw(16)
    groups = ["a"] * 8 + ["b"] * 5 + ["c"] * 3
    families = [i // 2 for i in range(16)]

    def pooled(kept):
        rows = [[i for i in kept if groups[i] == g] for g in "abc"]
        return evaluation.pooled_kendall([s[r] for r in rows], [a[r] for r in rows])

    result = evaluation.within_groups(s, a, groups, families)
    assert result.by_group.keys() == {"a", "b"}
    assert result.by_group["b"] == (
        5,
        pytest.approx(scipy.stats.kendalltau(s[8:13], a[8:13]).statistic),
    )
    assert result.num_pairs == 28 + 10 + 3
    assert result.pooled == pytest.approx(pooled(range(16)))
    without = [pooled([i for i in range(16) if i // 2 != f]) for f in range(8)]
    error = math.sqrt(7 / 8 * np.sum((without - np.mean(without)) ** 2))
    expected = scipy.stats.t.interval(0.95, 7, result.pooled, error)
    assert result.interval == pytest.approx(np.clip(expected, -1, 1))


def test_within_groups_of_a_score_that_only_tells_groups_apart_is_zero():
    a = dict(zip("abcdefgh", np.arange(8) / 8, strict=True))
    groups = {name: name >= "e" for name in a}
    result = evaluation.within_groups(
        {n: float(g) for n, g in groups.items()}, a, groups
    )
    assert result.pooled == 0
    assert (
        evaluation.score_ranking([float(g) for g in groups.values()], list(a.values()))[
            "kendall"
        ]
        > 0.7
    )


def test_size_groups_are_tertiles_and_keep_equal_sizes_together():
    sizes = dict(zip("abcdefg", [7, 1, 3, 5, 2, 6, 4], strict=True))
    groups = evaluation.size_groups(sizes)
    assert groups == {"b": 0, "e": 0, "c": 0, "g": 1, "d": 1, "f": 2, "a": 2}
    equal = evaluation.size_groups({"a": 1, "b": 1, "c": 1, "d": 9})
    assert equal == {"a": 0, "b": 0, "c": 0, "d": 2}
