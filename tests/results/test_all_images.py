"""The interval of the score of all images, from a subset and its halves."""

import numpy as np
import pytest
from scipy import stats

from rankckpt_jax import measures
from rankckpt_jax.measures.statistics import sampling
from rankckpt_jax.results import all_images


def make_task(seed, count=600):
    """Return features of two networks and labels of three classes."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    common = np.eye(3, 6)[labels] + random.normal(size=(count, 6)) / 2
    noise = [random.normal(size=(count, 6)) for _ in range(2)]
    return [(common + n / 2).astype(np.float32) for n in noise], labels


def coverage(measure, draws=12, tasks=5, share=0.5):
    """Return the coverage of the difference, and of the score, on all images."""
    covered = []
    for task in range(tasks):
        networks, labels = make_task(task)
        inputs = [measures.prepare(x, labels) for x in networks]
        truth = [measures.compute_prepared(measure, x).score for x in inputs]
        count = int(share * len(labels))
        for draw in range(draws):
            rows = np.sort(sampling.stratified_order(labels, draw, 5)[:count])
            found = [
                measures.compute_prepared(measure, x.take(rows), num_bootstrap=8)
                for x in inputs
            ]
            scores = np.array([result.score for result in found])
            halves = np.array([result.details["half_scores"] for result in found])
            difference = scores[0] - scores[1], halves[0] - halves[1]
            for given, expected in (
                (difference, truth[0] - truth[1]),
                ((scores[0], halves[0]), truth[0]),
            ):
                low, high = all_images.interval(*given, count, len(labels), 0.025)
                covered.append(low <= expected <= high)
    return np.reshape(covered, (-1, 2)).mean(axis=0)


@pytest.mark.parametrize("measure", ["knn", "gbc"])
def test_interval_covers_the_score_of_all_images(measure):
    # 60 dependent draws of a nominal 95 %: a bootstrap of kNN's queries covers the
    # score in two thirds of them.
    assert (coverage(measure) > 0.85).all()


def test_interval_of_a_mean_equals_that_of_its_formula():
    random = np.random.default_rng(0)
    values = random.normal(size=400)
    sample = values[:100]
    halves = [
        sample[sampling.half([np.arange(100)], random)].mean() for _ in range(4000)
    ]
    low, high = all_images.interval(sample.mean(), halves, 100, 400, 0.025)
    # Cochran 1977, equation 2.20. The deviation of 4,000 halves is known to 1 %.
    error = np.sqrt(1 - 100 / 400) * sample.std(ddof=1) / 10
    assert high - low == pytest.approx(2 * stats.norm.ppf(0.975) * error, rel=0.05)


def test_interval_grows_by_at_most_the_last_growth_per_doubling():
    halves = 0.5 + 1e-9 * np.arange(8)
    low, high = all_images.interval(0.6, halves, 100, 800, 0.025)
    assert (low, high) == pytest.approx((0.6, 0.6 + 3 * 0.1))
    low, high = all_images.interval(0.4, halves, 100, 800, 0.025)
    assert (low, high) == pytest.approx((0.4 - 3 * 0.1, 0.4))


def test_start_variance_is_the_rest_of_the_variance():
    halves = (1.0, 2.0, 3.0)
    assert all_images.start_variance(np.sqrt(5.0), halves) == pytest.approx(4)
    assert all_images.start_variance(0.5, halves) == 0
