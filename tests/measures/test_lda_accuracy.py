import jax
import numpy as np
import pytest

from rankckpt_jax import measures
from tests.measures import recent_references
from tests.measures.data import generate, score


@pytest.mark.parametrize("shrinkage", ["none", "ledoit_wolf"])
@pytest.mark.parametrize(("n", "d", "classes"), [(300, 40, 3), (400, 100, 8)])
def test_lda_accuracy_matches_scikit_learn(n, d, classes, shrinkage):
    random = np.random.default_rng(0)
    labels = random.integers(0, classes, n)
    x = 0.3 * random.normal(size=(classes, d))[labels] + random.normal(size=(n, d))
    x *= np.geomspace(10, 0.1, d)
    expected = recent_references.lda_accuracy(x, labels, shrinkage)
    assert 1.5 / classes < expected < 0.97
    options = {"shrinkage": shrinkage}
    with jax.enable_x64(True):
        exact = score("lda_accuracy", x, labels, None, **options)
    assert exact == pytest.approx(expected, abs=1e-9)
    # In float32, one image may change sides.
    result = score("lda_accuracy", x.astype(np.float32), labels, None, **options)
    assert result == pytest.approx(expected, abs=1.5 / n)


def test_lda_accuracy_ignores_columns_without_variance(small):
    x = np.concatenate([small.features, small.features[:, :2], np.ones((240, 3))], 1)
    result = score("lda_accuracy", x, small.labels, None)
    assert result == pytest.approx(small.expected["lda_accuracy"], abs=1e-9)


def test_lda_accuracy_with_fewer_images_than_dimensions():
    random = np.random.default_rng(0)
    labels = np.arange(20) % 2
    x = random.normal(size=(20, 200)) + 0.25 * random.normal(size=(2, 200))[labels]
    result = measures.compute("lda_accuracy", x, labels)
    assert result.details["shrinkage"] == "ledoit_wolf"
    assert result.score == pytest.approx(
        recent_references.lda_accuracy(x, labels, "ledoit_wolf"), abs=1e-9
    )
    assert 0.6 < result.score < 1


def test_lda_accuracy_counts_classes_of_one_image_as_wrong():
    features, _, _ = generate(8.0)
    labels = np.maximum(np.arange(240) % 4, np.arange(240) - 236)
    features = features[labels]
    features += np.random.default_rng(0).normal(size=features.shape) / 10
    labels[0] = 4
    result = measures.compute("lda_accuracy", features, labels)
    assert result.score == pytest.approx(239 / 240)
