"""From standardized values to accuracies."""

import math

import numpy as np
import pytest

from rankckpt_jax.prediction import level
from rankckpt_jax.prediction.belief import Belief
from rankckpt_jax.prediction.candidates import Candidate
from rankckpt_jax.prediction.relations import Relations, Sum

MEAN = np.array([0.8, 0.1, -0.3])
COVARIANCE = np.array([[0.5, 0.2, 0.0], [0.2, 0.6, 0.1], [0.0, 0.1, 0.4]])
BELIEF = Belief(MEAN, COVARIANCE, {})


def test_update_matches_the_information_form_of_the_normal_posterior():
    sigma, prior = 0.7, level.Normal(1.0, 0.5)
    measured, num_test = {0: 0.8, 2: 0.7}, 400
    posterior = level.update(
        BELIEF, level.Normal(math.log(sigma), 0.0), prior, measured, num_test
    )
    # Precisions add up: prior and observations logit(a_i) = mu + sigma y_i + noise.
    a = np.array([0.8, 0.7])
    precision = np.zeros((4, 4))
    precision[:3, :3] = np.linalg.inv(COVARIANCE)
    precision[3, 3] = 1 / 0.5**2
    information = precision @ np.append(MEAN, 1.0)
    design = np.array([[sigma, 0, 0, 1], [0, 0, sigma, 1]])
    weight = num_test * a * (1 - a)
    precision += design.T @ (weight[:, None] * design)
    information += design.T @ (weight * np.log(a / (1 - a)))
    np.testing.assert_allclose(
        posterior.means[7], np.linalg.solve(precision, information), rtol=1e-9
    )
    # The draws are those of sigma = 0.7 only. Standard errors are about 0.001.
    standardized, logits = posterior.draw(200_000, seed=0)
    level_draws = logits[:, :1] - sigma * standardized[:, :1]
    np.testing.assert_allclose(
        np.cov(np.hstack([standardized, level_draws]).T),
        np.linalg.inv(precision),
        atol=0.006,
    )


def test_update_without_measured_accuracies_keeps_the_belief():
    posterior = level.update(BELIEF, level.Normal(-1.0, 0.5), None, {})
    np.testing.assert_allclose(posterior.standardized, MEAN)
    assert posterior.weights.sum() == pytest.approx(1)


def test_measured_accuracies_are_kept_exactly_without_a_number_of_images():
    posterior = level.update(BELIEF, level.Normal(-1.0, 0.5), None, {0: 0.9, 1: 0.8})
    accuracies = 1 / (1 + np.exp(-posterior.logits))
    np.testing.assert_allclose(accuracies[:2], [0.9, 0.8], atol=1e-6)
    assert accuracies[2] < 0.85


def test_accuracies_that_differ_more_than_expected_raise_the_scale():
    def mean_scale(a, b):
        posterior = level.update(BELIEF, level.Normal(-1.0, 0.5), None, {0: a, 1: b})
        return posterior.weights @ np.log(posterior.scales)

    assert mean_scale(0.9, 0.4) > mean_scale(0.65, 0.6)


def test_draws_have_the_moments_of_the_posterior():
    posterior = level.update(BELIEF, level.Normal(-1.0, 0.5), None, {0: 0.8})
    standardized, logits = posterior.draw(20_000, seed=0)
    # Standard errors are about 0.7 / sqrt(20,000) = 0.005.
    np.testing.assert_allclose(standardized.mean(0), posterior.standardized, atol=0.02)
    np.testing.assert_allclose(logits.mean(0), posterior.logits, atol=0.02)
    np.testing.assert_array_equal(posterior.draw(100, 3)[0], posterior.draw(100, 3)[0])


def test_predict_level_adds_the_recorded_difference_to_the_probe():
    recorded = Sum()
    for difference in (0.2, 0.4, 0.3):
        recorded = recorded.add(difference)
    pool = [Candidate("a", scores={"knn": 0.6}), Candidate("b", scores={"knn": 0.8})]
    found = level.predict_level(Relations(levels={"knn": recorded}), pool)
    mean_probe = (math.log(1.5) + math.log(4)) / 2
    assert found.mean == pytest.approx(mean_probe + 0.3)
    # Two more values with standard deviation 0.5 are added to the three.
    variance = (0.02 + 2 * 0.25) / 5
    assert found.deviation == pytest.approx(math.sqrt(variance * (1 + 1 / 5)))


def test_predict_level_needs_three_tasks_and_half_of_the_pool():
    three = Relations(levels={"knn": Sum(3.0, 0.9, 0.3)})
    pool = [Candidate("a", scores={"knn": 0.6}), Candidate("b"), Candidate("c")]
    assert level.predict_level(three, pool) is None
    assert level.predict_level(three, pool[:2]) is not None
    assert level.predict_level(Relations(levels={"knn": Sum(2.0, 0.6)}), pool) is None


def test_predict_scale_is_that_of_recorded_tasks():
    recorded = Sum()
    for sigma in [0.3, 0.5] * 50:
        recorded = recorded.add(math.log(sigma))
    scale = level.predict_scale(Relations(scale=recorded))
    assert math.exp(scale.mean) == pytest.approx(math.sqrt(0.15), rel=0.02)
    assert scale.deviation == pytest.approx(math.log(5 / 3) / 2, rel=0.1)
