import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.decomposition import PCA

from rankckpt_jax.measures.statistics import pca


@pytest.mark.parametrize(("n", "d"), [(300, 40), (40, 300), (100, 1)])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_fit_matches_scikit_learn(n, d, offset):
    random = np.random.default_rng(0)
    x = random.normal(size=(n, d)) * np.geomspace(5, 0.1, d) + offset
    x = x.astype(np.float32)
    expected = PCA(0.8 if d > 1 else 1, svd_solver="full").fit(x.astype(np.float64))
    result = pca.fit(jnp.asarray(x))
    assert result.components.shape[0] == expected.n_components_
    # The subspaces are equal if all principal angles are 0.
    cosines = np.linalg.svd(result.components @ expected.components_.T)[1]
    np.testing.assert_allclose(cosines, 1, atol=1e-5)
    projected = pca.transform(result, jnp.asarray(x))
    np.testing.assert_allclose(
        np.linalg.norm(projected, axis=1),
        np.linalg.norm(expected.transform(x), axis=1),
        rtol=1e-3,
    )


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.99, 1.0])
def test_fit_keeps_energy(energy):
    x = jnp.asarray(np.random.default_rng(1).normal(size=(200, 20)), jnp.float32)
    result = pca.fit(x, energy)
    kept = len(result.components)
    assert result.explained[:kept].sum() > energy - 1e-9
    if kept > 1:
        assert result.explained[: kept - 1].sum() <= energy


def test_fit_of_constant_features_has_one_component():
    result = pca.fit(jnp.ones((10, 4)))
    assert result.components.shape == (1, 4)
    np.testing.assert_array_equal(pca.transform(result, jnp.ones((10, 4))), 0)
