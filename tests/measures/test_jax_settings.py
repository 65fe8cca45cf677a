"""All measures under settings of JAX with which users look for errors in their code."""

import contextlib

import jax
import numpy as np
import pytest

from rankckpt_jax import measures
from tests.measures.data import FACTS, FROM_IMAGES, generate, score, score_of

OPTIONS = {"knn": {"k": 3}, "nce": {"soft": True}}
# Other tests compare the other measures with references in float64.
FLOAT64 = ("knn", "linear", "rsa", "ncti", "etran", "energy")


@contextlib.contextmanager
def _strict():
    """Refuse implicit promotions and transfers. Programs are the same as without."""
    with (
        jax.numpy_rank_promotion("raise"),
        jax.numpy_dtype_promotion("strict"),
        jax.transfer_guard("disallow"),
    ):
        yield


@contextlib.contextmanager
def _debug_nans():
    with jax.debug_nans(True):
        yield


@pytest.mark.parametrize("setting", [_strict, _debug_nans])
def test_measures_compute_under_settings_of_users(setting):
    expected = {name: score_of(name) for name in FROM_IMAGES}
    with setting():
        results = measures.compute_all(*generate(), names=FROM_IMAGES, facts=FACTS)
        for name, options in OPTIONS.items():
            measures.compute(name, *generate(), num_bootstrap=2, **options)
    for name, result in results.items():
        assert result.score == expected[name], name


@pytest.mark.parametrize("name", FLOAT64)
def test_measure_computes_with_float64_enabled(name):
    with jax.enable_x64(True):
        result = score(name, *generate())
    assert result == pytest.approx(score_of(name), rel=1e-3)


def test_knn_of_several_neighbors_computes_with_float64_enabled():
    features, labels, _ = generate()
    expected = score("knn", features, labels, None, k=3)
    with jax.enable_x64(True), _strict():
        assert score("knn", features, labels, None, k=3) == expected


@pytest.mark.parametrize("covariance_type", ["tied", "diag", "spherical"])
def test_mixture_fits_under_strict_settings(covariance_type):
    points = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
    start = np.arange(60) % 3
    with _strict():
        mixture = measures.gmm.fit(points, 3, covariance_type, init_labels=start)
        posterior = measures.gmm.responsibilities(mixture, points)
    np.testing.assert_allclose(np.sum(posterior, axis=1), 1, rtol=1e-5)


def test_mixture_of_few_points_fits_under_strict_settings():
    features, labels, _ = generate(n=60, d=40, classes=3)
    with _strict():
        result = measures.compute("nleep", features, labels, energy=0.99)
    assert "singular" in result.warning
