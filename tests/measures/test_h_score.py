import numpy as np
import pytest

from rankckpt_jax import measures


def _h_score(features: np.ndarray, labels: np.ndarray) -> float:
    between = np.zeros_like(features)
    for label in np.unique(labels):
        between[labels == label] = features[labels == label].mean(0)
    inverse = np.linalg.pinv(np.cov(features.T), rcond=1e-12)
    return float(np.trace(inverse @ np.cov(between.T)))


def test_published_figure(small):
    result = measures.compute("h_score", small.features, small.labels)
    assert float(result) == pytest.approx(small.expected["h_score"], rel=1e-5)
    assert result.details["rank"] == 12


@pytest.mark.usefixtures("double")
def test_published_figure_in_double_precision(small):
    result = measures.compute("h_score", small.features, small.labels)
    assert float(result) == pytest.approx(small.expected["h_score"], rel=1e-9)


def test_directions_without_variance_do_not_count(small):
    doubled = np.concatenate([small.features, small.features, small.features[:, :1]], 1)
    constant = np.concatenate([doubled, np.ones((len(doubled), 2))], 1)
    result = measures.compute("h_score", constant, small.labels)
    assert float(result) == pytest.approx(small.expected["h_score"], rel=1e-4)
    assert result.details["rank"] == 12


def test_scale_and_offset_do_not_matter(few_per_component):
    features, labels = few_per_component
    expected = _h_score(features.astype(np.float64), labels)
    for scale, offset in ((1, 0), (1e-3, 0), (1e3, 50)):
        got = measures.compute("h_score", scale * features + offset, labels)
        assert float(got) == pytest.approx(expected, rel=1e-3)
