"""Which checkpoint is fine-tuned next, and when planning stops."""

import numpy as np
import pytest
import scipy.stats

from rankckpt_jax import prediction
from rankckpt_jax.errors import InputError
from rankckpt_jax.prediction import Early, planning, predictor

SCORES = {"a": 3.0, "b": 2.0, "c": 1.0, "d": 0.5, "e": -1.0}


def predict(measured=None, early=None):
    pool = [prediction.Candidate(n, scores={"nleep": s}) for n, s in SCORES.items()]
    return prediction.predict(
        prediction.fit(), pool, measured, early=early, num_test=500, num_samples=2000
    )


def times(*names, **own):
    return {name: 60.0 for name in names} | own


def test_expected_gain_of_a_normal_accuracy_is_that_of_the_closed_form():
    random = np.random.default_rng(0)
    means, deviation = np.array([0.0, 0.4, -0.3]), 0.5
    values = means + deviation * random.standard_normal((400_000, 3))
    values[:, 0] = 0.1
    gains = predictor.expected_gains(values, [0])
    z = (means[1:] - 0.1) / deviation
    normal = scipy.stats.norm
    expected = deviation * (z * normal.cdf(z) + normal.pdf(z))
    # The standard error of 400,000 draws is below 1e-3.
    np.testing.assert_allclose(gains[1:], expected, atol=3e-3)
    assert gains[0] == 0


def test_first_is_the_best_predicted_checkpoint():
    predicted = predict()
    first = planning.next_step(predicted, times(*SCORES))
    assert first.checkpoint == "a"
    second = planning.next_step(predicted, times("b", "c"))
    assert second.checkpoint == "b"


def test_next_has_the_largest_gain_for_its_time():
    predicted = predict({"a": 0.8})
    gains = {c.checkpoint: c.gain for c in predicted.checkpoints}
    assert gains["a"] == 0
    assert gains["b"] > gains["e"] > 0
    seconds = times("b", "c", "d", "e")
    assert planning.next_step(predicted, seconds).checkpoint == "b"
    ratio = 1.01 * gains["b"] / gains["c"]
    cheaper = seconds | {"b": 60 * ratio}
    assert planning.next_step(predicted, cheaper).checkpoint == "c"


def test_plan_stops_when_it_is_sure_or_complete():
    predicted = predict({"a": 0.9, "b": 0.5, "c": 0.5, "d": 0.5})
    sure = planning.next_step(predicted, times("e"), confidence=0.5)
    assert not sure.checkpoint
    assert "the best is among the 4 fine-tuned ones with a probability" in sure.reason
    unknown = planning.next_step(predict({"a": 0.8}), {"b": 0.0, "e": 0.0})
    assert unknown.checkpoint == "b"
    ended = planning.next_step(predict({"e": 0.2}), {})
    assert ended.reason == "every checkpoint is fine-tuned"


def test_plan_stops_if_only_the_noise_of_the_measured_ones_is_left():
    """Which of two equal ones is better is open, and no other can be the best."""
    predicted = predict({"a": 0.98, "b": 0.98, "c": 0.6, "d": 0.6})
    chances = {c.checkpoint: c.probability_best for c in predicted.checkpoints}
    assert max(chances.values()) < 0.9 < chances["a"] + chances["b"]
    assert not planning.next_step(predicted, times("e")).checkpoint


def test_a_weak_start_is_left_and_a_strong_one_goes_on():
    weak, strong = (
        predict({"a": 0.8}, {"a": Early(0.7, 100), "b": Early(accuracy, 100)})
        for accuracy in (0.4, 0.75)
    )
    # Figures of 2,000 draws.
    assert weak.by_name("b").gain < 0.3 * weak.by_name("c").gain
    seconds = times("b", "c")
    assert planning.next_step(weak, seconds).checkpoint == "c"
    assert planning.next_step(strong, seconds).checkpoint == "b"
    assert strong.by_name("b").measured is None


def test_an_early_accuracy_narrows_the_prediction():
    before, after = (
        predict({"a": 0.8}, early).by_name("b").interval
        for early in ({}, {"a": Early(0.7, 2000), "b": Early(0.65, 2000)})
    )
    assert after.high - after.low < 0.7 * (before.high - before.low)
    with pytest.raises(InputError, match="zz"):
        predict({"a": 0.8}, {"zz": Early(0.5, 10)})


def test_a_low_result_of_the_first_moves_the_plan_on():
    """After a disappointment the gain of the others is larger."""
    gains = [
        max(c.gain for c in predict({"a": accuracy, "c": 0.7}).checkpoints)
        for accuracy in (0.95, 0.5)
    ]
    assert gains[0] < gains[1]


def test_gain_is_in_points_once_the_level_is_known():
    predicted = predict({"a": 0.8})
    assert predicted.is_level_known
    assert all(0 <= c.gain < 0.2 for c in predicted.checkpoints)
    assert all(c.gain is None for c in predict().checkpoints)
