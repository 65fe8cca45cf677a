"""Intervals, compared with their definitions and by their coverage."""

import math

import numpy as np
import pytest
import scipy.stats

from rankckpt_jax import evaluation
from rankckpt_jax.errors import InputError

TAU = 0.5
CORRELATION = math.sin(math.pi * TAU / 2)
"""Of a bivariate normal distribution with Kendall's tau TAU."""

SCIPY = {
    "pearson": scipy.stats.pearsonr,
    "kendall": scipy.stats.kendalltau,
    "spearman": scipy.stats.spearmanr,
    "weighted_kendall": scipy.stats.weightedtau,
}


def _draw(random, n):
    s = random.normal(size=n)
    return s, CORRELATION * s + math.sqrt(1 - CORRELATION**2) * random.normal(size=n)


@pytest.mark.parametrize("metric", evaluation.CORRELATIONS)
def test_intervals_match_scipy_without_one_checkpoint(metric):
    s, a = _draw(np.random.default_rng(0), 12)
    value = SCIPY[metric](s, a).statistic
    without = [
        SCIPY[metric](np.delete(s, i), np.delete(a, i)).statistic for i in range(12)
    ]
    error = math.sqrt(11 / 12 * np.sum((without - np.mean(without)) ** 2))
    low, high = scipy.stats.t.interval(0.95, 11, value, error)
    assert evaluation.intervals(s, a)[metric] == pytest.approx(
        (max(-1, low), min(1, high))
    )


def test_intervals_leave_out_whole_families():
    s, a = _draw(np.random.default_rng(1), 14)
    families = np.arange(14) % 7
    without = [
        scipy.stats.kendalltau(s[families != f], a[families != f]).statistic
        for f in range(7)
    ]
    error = math.sqrt(6 / 7 * np.sum((without - np.mean(without)) ** 2))
    value = scipy.stats.kendalltau(s, a).statistic
    low, high = scipy.stats.t.interval(0.95, 6, value, error)
    result = evaluation.intervals(s, a, families, metrics=["kendall"])
    assert result == {"kendall": pytest.approx((max(-1, low), min(1, high)))}


@pytest.mark.parametrize(("n", "width"), [(12, 0.84), (24, 0.48)])
def test_intervals_cover_the_true_tau(n, width):
    random = np.random.default_rng(n)
    found = [
        evaluation.intervals(*_draw(random, n), metrics=["kendall"])["kendall"]
        for _ in range(300)
    ]
    # The standard deviation of a share of 300 is 1.3 %; the reference has 94 and 95.5.
    assert 0.91 <= np.mean([low <= TAU <= high for low, high in found]) <= 0.98
    # Clipping to [-1, 1] shortens a few of them.
    assert np.mean([high - low for low, high in found]) == pytest.approx(width, 0.1)


def test_intervals_over_families_cover_the_true_tau_of_relatives():
    random = np.random.default_rng(5)
    families = np.repeat(np.arange(6), 4)
    share, truth = 0.6, TAU
    covered = {"families": 0, "checkpoints": 0}
    for _ in range(200):
        common, own = random.normal(size=(2, 6)), random.normal(size=(2, 24))
        s, e = math.sqrt(share) * common[:, families] + math.sqrt(1 - share) * own
        a = CORRELATION * s + math.sqrt(1 - CORRELATION**2) * e
        for name, units in (("families", families), ("checkpoints", None)):
            low, high = evaluation.intervals(s, a, units, metrics=["kendall"])[
                "kendall"
            ]
            covered[name] += low <= truth <= high
    # Leaving out single relatives gives intervals that are too narrow.
    assert covered["families"] / 200 > 0.9 > 0.885 > covered["checkpoints"] / 200


def test_intervals_are_undefined_for_few_units_and_perfect_orders():
    s, a = _draw(np.random.default_rng(0), 10)
    few = evaluation.intervals(s[:5], a[:5])["kendall"]
    families = evaluation.intervals(s, a, [0, 1, 2, 3, 4] * 2)["kendall"]
    perfect = evaluation.intervals(a, a)["kendall"]
    constant = evaluation.intervals(np.ones(10), a)["kendall"]
    assert all(math.isnan(i.low) for i in (few, families, perfect, constant))


def test_intervals_match_mappings_by_name():
    s, a = _draw(np.random.default_rng(3), 8)
    names = list("abcdefgh")
    families = [0, 1, 2, 3, 4, 5, 6, 6]
    by_name = evaluation.intervals(
        dict(zip(names, s, strict=True)),
        dict(reversed(list(zip(names, a, strict=True)))),
        dict(reversed(list(zip(names, families, strict=True)))),
    )
    assert by_name == evaluation.intervals(s, a, families)


@pytest.mark.parametrize(
    ("scores", "families", "message"),
    [
        ({"a": 1.0, "b": 2.0}, {"a": 0}, "Checkpoints have no family"),
        ([1.0, 2.0], {"a": 0}, "cannot be matched"),
        ([1.0, 2.0], ["x"], "differ in number"),
    ],
)
def test_intervals_reject_missing_families(scores, families, message):
    with pytest.raises(InputError, match=message):
        evaluation.intervals(scores, scores, families)


def test_interval_over_tasks_matches_scipy():
    values = [0.0, 1, 1, 0, 1, 1, 0, 1, 1, 0.5]
    expected = scipy.stats.bootstrap(
        [values],
        np.mean,
        n_resamples=9999,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    # Means of resamples are multiples of 0.05.
    assert evaluation.interval_over_tasks(values) == pytest.approx(
        (expected.low, expected.high), abs=0.051
    )
    with_unknown = {str(i): v for i, v in enumerate([*values, math.nan])}
    assert evaluation.interval_over_tasks(with_unknown) == (
        evaluation.interval_over_tasks(values)
    )
    assert math.isnan(evaluation.interval_over_tasks(values[:5]).low)


@pytest.mark.parametrize(("successes", "trials"), [(0, 4), (3, 9), (9, 9), (17, 28)])
def test_wilson_interval_matches_scipy(successes, trials):
    expected = scipy.stats.binomtest(successes, trials).proportion_ci(method="wilson")
    assert evaluation.wilson_interval(successes, trials) == pytest.approx(
        (expected.low, expected.high), abs=1e-9
    )
    assert math.isnan(evaluation.wilson_interval(0, 0).low)


def test_fisher_interval_matches_scipy():
    s, a = _draw(np.random.default_rng(0), 20)
    result = scipy.stats.pearsonr(s, a)
    expected = result.confidence_interval()
    assert evaluation.fisher_interval(result.statistic, 20) == pytest.approx(
        (expected.low, expected.high)
    )
    assert math.isnan(evaluation.fisher_interval(0.5, 3).low)
    assert math.isnan(evaluation.fisher_interval(1.0, 9).low)
