"""The noise ceiling, compared with published tables and a simulation."""

import math

import numpy as np
import pytest
import scipy.stats

from rankckpt_jax import evaluation
from rankckpt_jax.errors import InputError


@pytest.mark.parametrize(
    ("agreement", "one", "two"),
    [
        (0.5, 0.636, 0.728),
        (0.6, 0.712, 0.789),
        (0.7, 0.786, 0.846),
        (0.8, 0.858, 0.899),
        (0.9, 0.929, 0.950),
    ],
)
def test_kendall_ceiling_of_known_values(agreement, one, two):
    # The values have three digits.
    assert evaluation.kendall_ceiling(agreement) == pytest.approx(one, abs=6e-4)
    assert evaluation.kendall_ceiling(agreement, 2) == pytest.approx(two, abs=6e-4)


def test_ceilings_at_the_ends():
    assert evaluation.pearson_ceiling(1.0, 3) == evaluation.kendall_ceiling(1.0) == 1
    assert evaluation.pearson_ceiling(-0.2) == evaluation.kendall_ceiling(-0.2, 2) == 0
    assert math.isnan(evaluation.kendall_ceiling(math.nan))
    assert evaluation.pearson_ceiling(0.5, 2) == pytest.approx(math.sqrt(1 / 1.5))


@pytest.mark.parametrize("num_runs", [2, 3])
def test_noise_ceiling_is_reached_by_a_score_without_noise(num_runs):
    random = np.random.default_rng(0)
    truth = random.normal(size=3000)
    runs = [truth + 0.6 * random.normal(size=3000) for _ in range(num_runs)]
    ceiling = evaluation.noise_ceiling(runs)
    one = evaluation.score_ranking(truth, runs[0])
    mean = evaluation.score_ranking(truth, np.mean(runs, axis=0))
    # The standard error of a correlation of 3000 pairs is below 0.01.
    assert ceiling.kendall_one == pytest.approx(one["kendall"], abs=0.02)
    assert ceiling.kendall_mean == pytest.approx(mean["kendall"], abs=0.02)
    assert ceiling.pearson_one == pytest.approx(one["pearson"], abs=0.02)
    assert ceiling.pearson_mean == pytest.approx(mean["pearson"], abs=0.02)
    # The agreement of the runs with each other is lower.
    assert ceiling.kendall < ceiling.kendall_one - 0.1
    assert ceiling.kendall_one < ceiling.kendall_mean


def test_noise_ceiling_describes_the_agreement_of_two_runs():
    one, two = [0.5, 0.9, 0.7, 0.8, 0.6], [0.4, 0.7, 0.75, 0.8, 0.6]
    ceiling = evaluation.noise_ceiling([one, two])
    assert (ceiling.n, ceiling.num_runs) == (5, 2)
    assert ceiling.kendall == pytest.approx(scipy.stats.kendalltau(one, two).statistic)
    result = scipy.stats.pearsonr(one, two)
    assert ceiling.pearson == pytest.approx(result.statistic)
    expected = result.confidence_interval()
    assert ceiling.pearson_interval == pytest.approx((expected.low, expected.high))
    # The best of the first run has 0.7 of 0.8 in the second; conversely 0.8 of 0.9.
    assert ceiling.rel_1 == pytest.approx((0.7 / 0.8 + 0.8 / 0.9) / 2)
    assert ceiling.recall_1 == 0


def test_noise_ceiling_matches_checkpoints_by_name():
    one, two = {"a": 0.1, "b": 0.4, "c": 0.3}, {"c": 0.5, "b": 0.6, "a": 0.2}
    assert evaluation.noise_ceiling([one, two]).kendall == 1
    assert evaluation.mean_of_runs([one, {**two, "d": 1.0}]) == {
        "a": pytest.approx(0.15),
        "b": pytest.approx(0.5),
        "c": pytest.approx(0.4),
    }


def test_noise_ceiling_rejects_one_run():
    with pytest.raises(InputError, match="several fine-tunings"):
        evaluation.noise_ceiling([[0.1, 0.2]])
