import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture

from rankckpt_jax import measures
from rankckpt_jax.errors import InputError


def separated(separation, seed=0, n=600, classes=6, d=24):
    random = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    means = random.normal(size=(classes, d))
    return separation * means[labels] + random.normal(size=(n, d)), labels


def statement(x, labels, classes, seed):
    """NLEEP written straight from its definition, with scikit-learn in float64."""
    projected = PCA(0.8, svd_solver="full").fit_transform(x)
    mixture = GaussianMixture(5 * classes, random_state=seed).fit(projected)
    posterior = mixture.predict_proba(projected)
    joint = np.stack([posterior[labels == c].sum(0) for c in range(classes)])
    conditional = joint / joint.sum(0)
    return np.log((conditional[labels] * posterior).sum(1)).mean()


@pytest.mark.parametrize("separation", [0.4, 0.8])
def test_it_is_the_definition_up_to_its_random_start(separation):
    x, labels = separated(separation)
    expected = [statement(x, labels, 6, seed) for seed in range(5)]
    found = [measures.compute("nleep", x, labels, seed=seed).score for seed in range(5)]
    spread = np.std(expected) + np.std(found)
    assert abs(np.mean(expected) - np.mean(found)) < 2 * spread


def test_better_separated_classes_score_higher():
    scores = [
        measures.compute("nleep", *separated(separation)).score
        for separation in (0.0, 0.3, 0.6, 1.2)
    ]
    assert scores == sorted(scores)
    assert scores[-1] <= 0 and scores[-1] > -0.2


def test_details_tell_what_was_done():
    x, labels = separated(0.5)
    result = measures.compute("nleep", x, 7 * labels - 3, components_per_class=2)
    assert result.details["num_components"] == 12
    assert 1 <= result.details["dimensions"] <= 24
    assert result.details["converged"] and not result.warning
    again = measures.compute("nleep", x, labels, components_per_class=2)
    assert again.score == result.score


def test_singular_covariances_are_warned_of(few_per_component):
    result = measures.compute("nleep", *few_per_component)
    assert "singular" in result.warning
    assert np.isfinite(result.score)


def test_fewer_images_than_components_are_refused():
    x, labels = separated(0.5, n=24)
    with pytest.raises(InputError, match="more mixture components than images"):
        measures.compute("nleep", x, labels)
