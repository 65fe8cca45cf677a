import numpy as np
import pytest

from rankckpt_jax import measures


def _leep(probabilities: np.ndarray, labels: np.ndarray) -> float:
    joint = np.eye(labels.max() + 1)[labels].T @ probabilities / len(labels)
    conditional = joint / joint.sum(0)
    return np.log((conditional[labels] * probabilities).sum(1)).mean()


def test_published_figure(small):
    result = measures.compute("leep", small.features, small.labels, small.logits)
    assert float(result) == pytest.approx(small.expected["leep"], abs=1e-5)
    assert result.details["num_source_classes"] == 6


@pytest.mark.usefixtures("double")
def test_published_figure_in_double_precision(small):
    result = measures.compute("leep", small.features, small.labels, small.logits)
    assert float(result) == pytest.approx(small.expected["leep"], abs=1e-10)


def test_a_confident_classifier_underflows_without_harm():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 400)
    logits = 40 * rng.normal(size=(400, 20)) + 90 * np.eye(20)[labels]
    shifted = logits - logits.max(1, keepdims=True)
    probabilities = np.exp(shifted) / np.exp(shifted).sum(1, keepdims=True)
    got = measures.compute("leep", logits, labels, logits=logits)
    assert float(got) == pytest.approx(_leep(probabilities, labels), abs=1e-5)
