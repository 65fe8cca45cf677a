"""Features far from an ordinary scale.

SCALE_FREE are the measures whose score does not depend on the scale, WARNED those that
compare features with a constant and warn where it dominates.
"""

import numpy as np
import pytest
from sklearn.mixture import GaussianMixture

from rankckpt_jax import measures
from tests.measures import references
from tests.measures.data import FACTS, generate, score

SCALE_FREE = ("h_score", "regularized_h_score", "knn", "linear", "logme")
SCALE_FREE += ("mutual_information", "parc", "rsa", "sfda", "cka")
SCALE_FREE += ("lda_accuracy", "rankme", "disco", "concept_variation")
WARNED = ("gbc", "transrate", "lda", "etran", "pactran", "ncti")


def _scaled(scale, separation=2.0):
    features, labels, logits = generate(separation)
    return (features * np.float32(scale)).astype(np.float32), labels, logits


@pytest.mark.parametrize("name", SCALE_FREE)
def test_score_does_not_change_between_extreme_scales(name):
    expected = score(name, *_scaled(1))
    for scale in (1e-25, 1e-10, 1e10, 1e20):
        # SFDA's shrinkage is near 1 for small features, and near 0 for large ones.
        tolerance = 2e-3 if name == "sfda" else 1e-4
        result = score(name, *_scaled(scale))
        assert result == pytest.approx(expected, rel=tolerance), scale


@pytest.mark.parametrize("scale", [1e-25, 1e-4, 3e-4, 1e-2, 1e7, 1e20])
def test_nleep_rescales_features_for_its_ridge(scale):
    # With an absolute ridge, 3e-4 scored -1.38, and 1e-4 and 1e20 scored chance.
    expected = score("nleep", *_scaled(1))
    result = measures.compute("nleep", *_scaled(scale))
    assert result.score == pytest.approx(expected, abs=1e-4)
    assert 0.2 < result.details["scale"] / (3 * scale) < 5
    side = "small" if scale < 1 else "large"
    warning = f"too {side} for a ridge of 1e-06"
    # Features of random weights can be a hundred times smaller than others.
    assert (warning in result.warning) == (scale != 1e-2)


@pytest.mark.parametrize("scale", [0.1, 1, 100])
def test_nleep_keeps_scikit_learn_ridge_at_ordinary_scales(scale):
    features, labels, _ = _scaled(scale, separation=0.5)
    result = measures.compute("nleep", features, labels, energy=1.0)
    assert result.details["scale"] == 1
    assert not result.warning
    exact = features.astype(np.float64)
    posteriors = [
        GaussianMixture(20, random_state=seed).fit(exact).predict_proba(exact)
        for seed in range(3)
    ]
    expected = [references.nleep(posterior, labels) for posterior in posteriors]
    assert abs(result.score - np.mean(expected)) < 0.2


def test_nleep_keeps_a_ridge_that_is_given():
    result = measures.compute("nleep", *_scaled(3e-4), reg_covar=1e-6)
    assert result.details["scale"] == 1
    assert result.score < -0.5


@pytest.mark.parametrize("name", WARNED)
def test_measure_warns_if_its_constant_dominates(name):
    small = measures.compute(name, *_scaled(1e-4), facts=FACTS)
    assert "The features are so small that" in small.warning
    assert not measures.compute(name, *_scaled(1), facts=FACTS).warning
