import jax
import numpy as np
import pytest
from sklearn.mixture import GaussianMixture

from rankckpt_jax.errors import InputError
from rankckpt_jax.measures import gmm


def reference(x, init_labels, num_components, covariance_type):
    """scikit-learn's mixture in float64, started from a hard assignment."""
    x = x.astype(np.float64)
    members = [x[init_labels == k] for k in range(num_components)]
    moments = np.stack([np.cov(m.T, bias=True) for m in members])
    ridge = 1e-6 * np.eye(x.shape[1])
    if covariance_type == "full":
        precisions = np.linalg.inv(moments + ridge)
    else:
        precisions = 1 / (np.einsum("kdd->kd", moments) + 1e-6)
    return GaussianMixture(
        num_components,
        covariance_type=covariance_type,
        weights_init=np.array([len(m) for m in members]) / len(x),
        means_init=np.stack([m.mean(0) for m in members]),
        precisions_init=precisions,
    ).fit(x)


def overlapping(n=400, d=6, k=4, scale=1.0):
    random = np.random.default_rng(0)
    labels = random.integers(0, k, n)
    x = random.normal(size=(k, d))[labels] + random.normal(size=(n, d))
    labels = np.where(random.random(n) < 0.3, random.integers(0, k, n), labels)
    return (scale * x).astype(np.float32), labels


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("covariance_type", ["full", "diag"])
def test_it_is_scikit_learns_mixture_in_double_precision(covariance_type):
    x, labels = overlapping()
    x = x.astype(np.float64)
    expected = reference(x, labels, 4, covariance_type)
    found = gmm.fit(x, 4, covariance_type, init_labels=labels)
    steps = int(found.num_iterations)
    assert steps == expected.n_iter_ and bool(found.converged)
    assert steps > 3  # Responsibilities are soft here: EM has work to do.
    np.testing.assert_allclose(found.means, expected.means_, rtol=1e-8)
    np.testing.assert_allclose(found.weights, expected.weights_, rtol=1e-8)
    np.testing.assert_allclose(found.covariances, expected.covariances_, rtol=1e-8)
    assert float(found.lower_bounds[steps - 1]) == pytest.approx(
        expected.lower_bound_, abs=1e-8
    )
    np.testing.assert_allclose(
        gmm.responsibilities(found, x), expected.predict_proba(x), atol=1e-8
    )
    np.testing.assert_allclose(
        gmm.log_prob(found, x), expected.score_samples(x), atol=1e-8
    )


@pytest.mark.parametrize("covariance_type", ["full", "diag"])
@pytest.mark.parametrize("scale", [1.0, 1e-2, 1e3])
def test_single_precision_agrees(covariance_type, scale):
    x, labels = overlapping(scale=scale)
    expected = reference(x, labels, 4, covariance_type)
    found = gmm.fit(x, 4, covariance_type, init_labels=labels)
    posterior = gmm.responsibilities(found, x)
    np.testing.assert_allclose(posterior, expected.predict_proba(x), atol=2e-3)


@pytest.mark.parametrize("covariance_type", ["full", "diag"])
def test_single_precision_holds_with_fewer_points_than_dimensions(
    few_per_component, covariance_type
):
    x, _ = few_per_component
    labels = np.repeat(np.arange(100), 6)
    expected = reference(x, labels, 100, covariance_type)
    found = gmm.fit(x, 100, covariance_type, init_labels=labels)
    assert np.isfinite(found.precision_cholesky).all()
    same = np.argmax(gmm.responsibilities(found, x), 1) == expected.predict(x)
    assert same.mean() >= 0.999
    steps = int(found.num_iterations)
    assert steps == expected.n_iter_
    # Mahalanobis distances of 1e6 and more meet here; relative to the bound itself.
    last = float(found.lower_bounds[steps - 1])
    assert last == pytest.approx(expected.lower_bound_, rel=1e-4)


def test_duplicated_points_and_lonely_components_stay_finite():
    x = np.repeat(np.random.default_rng(0).normal(size=(5, 8)), 4, 0)
    x = np.concatenate([x, [[9.0] * 8]]).astype(np.float32)
    found = gmm.fit(x, 6, init_labels=np.append(np.repeat(np.arange(5), 4), 5))
    posterior = np.asarray(gmm.responsibilities(found, x))
    assert np.isfinite(posterior).all()
    np.testing.assert_allclose(posterior.sum(1), 1, rtol=1e-5)
    assert posterior[-1].argmax() == 5


def test_the_precision_is_the_inverse_of_the_covariance(few_per_component):
    x, _ = few_per_component
    found = gmm.fit(x, 100, init_labels=np.repeat(np.arange(100), 6))
    p = np.asarray(found.precision_cholesky[0], np.float64)
    # Rebuilt in float64 from its own points, whose rank is 5 of 40.
    centred = x[:6] - x[:6].mean(0, dtype=np.float64)
    covariance = centred.T @ centred / 6 + 1e-6 * np.eye(40)
    np.testing.assert_allclose(p.T @ covariance @ p, np.eye(40), atol=5e-3)


def test_a_mixture_is_a_pytree():
    x, labels = overlapping()
    found = gmm.fit(x, 4, init_labels=labels)
    doubled = jax.tree.map(lambda leaf: leaf, found)
    np.testing.assert_array_equal(
        jax.jit(gmm.log_prob)(doubled, x), jax.jit(gmm.log_prob)(found, x)
    )


@pytest.mark.parametrize(
    "options", [{"num_components": 401}, {"covariance_type": "round"}]
)
def test_bad_input_is_refused(options):
    x, _ = overlapping()
    with pytest.raises(InputError):
        gmm.fit(x, **{"num_components": 4, **options})
