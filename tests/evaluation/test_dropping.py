"""The dropping curve, compared with single evaluations of the rest."""

import math

import numpy as np
import pytest
import scipy.stats

from rankckpt_jax import evaluation


def test_dropping_curve_evaluates_the_checkpoints_that_are_left():
    s, one, two, criterion, static = np.random.default_rng(0).normal(size=(5, 10))
    a = (one + two) / 2
    curve = evaluation.dropping_curve(s, a, criterion, static=static, runs=[one, two])
    assert [point.num_dropped for point in curve] == [0, 1, 2, 3, 4]
    for point in curve:
        kept = np.argsort(criterion)[point.num_dropped :]
        assert point.n == len(kept)
        taus = [scipy.stats.kendalltau(x[kept], a[kept])[0] for x in (s, static)]
        assert (point.kendall, point.static) == pytest.approx(taus)
        agreement = scipy.stats.kendalltau(one[kept], two[kept])[0]
        assert point.ceiling == pytest.approx(evaluation.kendall_ceiling(agreement, 2))


def test_dropping_curve_without_controls_has_nan_and_few_checkpoints_no_points():
    s = np.arange(7.0)
    curve = evaluation.dropping_curve(s, s, s)
    assert [point.n for point in curve] == [7, 6]
    assert all(math.isnan(v) for p in curve for v in (p.static, p.ceiling))
    assert evaluation.dropping_curve(s[:5], s[:5], s[:5]) == ()


def test_dropping_curve_falls_if_only_the_easy_ones_are_ordered():
    random = np.random.default_rng(0)
    # Eight weak checkpoints, and eight good ones that the score orders at random.
    a = np.concatenate([np.linspace(0, 0.4, 8), random.uniform(0.8, 0.82, 8)])
    s = np.concatenate([np.linspace(0, 0.4, 8), random.uniform(0.8, 0.9, 8)])
    names = [str(i) for i in range(16)]
    curve = evaluation.dropping_curve(
        *(dict(zip(names, values, strict=True)) for values in (s, a, a))
    )
    assert curve[0].kendall > 0.7 > 0.5 > curve[8].kendall
