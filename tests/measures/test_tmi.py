import numpy as np
import pytest

from rankckpt_jax import measures
from tests.measures import recent_references
from tests.measures.data import score


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda x, y: (1e-4 * x, y), 2.8702424783),
        (lambda x, y: (1e4 * x, y), 32.1998249209),
        (lambda x, y: (np.repeat(x, 2, axis=0), np.repeat(y, 2)), 4.2526284391),
    ],
)
def test_published_tmi_at_other_scales_and_of_copies(small, change, expected):
    features, labels = change(small.features, small.labels)
    result = score("tmi", features, labels, None, variant="published")
    assert result == pytest.approx(expected, rel=1e-6)


def test_tmi_with_several_tiles_and_small_classes():
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(5), [700, 40, 5, 3, 1])
    x = random.normal(size=(len(labels), 20)).astype(np.float32)
    result = measures.compute("tmi", x, labels)
    expected = recent_references.tmi(x.astype(float), labels)
    assert result.score == pytest.approx(expected, rel=1e-6)
    assert "2 of 5 classes have no more than k = 3 images" in result.warning
    published = measures.compute("tmi", x, labels, variant="published").score
    # The authors' code counts the class of one image as 0, and drops that of three.
    shares = 745 / 749 / 4
    floored = recent_references.tmi(x.astype(float), labels, least=1.0)
    assert published == pytest.approx(shares * floored, rel=1e-6)


def test_tmi_counts_the_distance_of_copies_as_the_smallest_positive_one(small):
    x = small.features.copy()
    x[4], x[8], x[12] = x[0], x[0], x[0]
    expected = recent_references.tmi(x, small.labels, least=None)
    assert score("tmi", x, small.labels, None) == pytest.approx(expected, rel=1e-6)


def test_normalized_tmi_does_not_depend_on_the_lengths_of_the_features(small):
    lengths = np.random.default_rng(0).uniform(0.1, 10, (240, 1))
    options = {"variant": "normalized"}
    result = measures.compute("tmi", lengths * small.features, small.labels, **options)
    x = small.features / np.linalg.norm(small.features, axis=1, keepdims=True)
    assert result.score == pytest.approx(
        recent_references.tmi(x, small.labels), rel=1e-5
    )
    assert not result.warning
