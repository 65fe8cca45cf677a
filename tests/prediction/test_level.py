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


def exact(*accuracies):
    return {i: level.observe(a, None) for i, a in enumerate(accuracies)}


def test_update_matches_the_information_form_of_the_normal_posterior():
    sigma, prior = 0.7, level.Normal(1.0, 0.5)
    num_test = 400
    observed = {0: level.observe(0.8, num_test), 2: level.observe(0.7, num_test)}
    posterior = level.update(
        BELIEF, level.Normal(math.log(sigma), 0.0), prior, observed
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
    posterior = level.update(BELIEF, level.Normal(-1.0, 0.5), None, exact(0.9, 0.8))
    accuracies = 1 / (1 + np.exp(-posterior.logits))
    np.testing.assert_allclose(accuracies[:2], [0.9, 0.8], atol=1e-6)
    assert accuracies[2] < 0.85


def test_accuracies_that_differ_more_than_expected_raise_the_scale():
    def mean_scale(a, b):
        posterior = level.update(BELIEF, level.Normal(-1.0, 0.5), None, exact(a, b))
        return posterior.weights @ np.log(posterior.scales)

    assert mean_scale(0.9, 0.4) > mean_scale(0.65, 0.6)


def test_foresee_matches_the_posterior_of_the_rise():
    """The rise of a task is normal, and checkpoints with both values tell of it."""
    early = {"a": 0.5, "b": 0.6, "c": 0.7}
    early = {name: level.observe(a, 100) for name, a in early.items()}
    measured = {"a": level.observe(0.7, 400), "b": level.observe(0.75, 400)}
    own, prior = level._OWN_RISE_DEVIATION**2, level._RISE_DEVIATION**2
    logit = {"a": (0.0, math.log(7 / 3)), "b": (math.log(1.5), math.log(3))}
    noise = {"a": 1 / 25 + 1 / (400 * 0.21), "b": 1 / 24 + 1 / (400 * 0.1875)}
    values = np.array([last - first for first, last in logit.values()])
    covariance = prior + np.diag([own + noise[name] for name in "ab"])
    gain = np.linalg.solve(covariance, np.full(2, prior))
    rise = level._RISE + gain @ (values - level._RISE)
    variance = prior - gain.sum() * prior
    found = level.foresee(measured, early)
    assert found.keys() == {"c"}
    # Accuracies are moved by half an image, which changes their logits by 1 %.
    assert found["c"].mean == pytest.approx(math.log(7 / 3) + rise, abs=0.02)
    expected = math.sqrt(own + 1 / 21 + variance)
    assert found["c"].deviation == pytest.approx(expected, rel=0.01)


def test_foresee_uses_the_usual_rise_as_long_as_nothing_is_measured():
    early = {"a": level.observe(0.5, 100)}
    found = level.foresee({}, early)
    assert found["a"].mean == pytest.approx(level._RISE)
    assert found["a"].deviation > early["a"].deviation + 0.1
    assert level.foresee({"a": level.observe(0.6, 100)}, early) == {}


def test_draws_have_the_moments_of_the_posterior():
    posterior = level.update(BELIEF, level.Normal(-1.0, 0.5), None, exact(0.8))
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
