import doctest

import jax
import numpy as np
import pytest

from rankckpt_jax.errors import InputError
from rankckpt_jax.measures.mixture import covariance, fitting, gmm, sparse_em
from tests.measures import references


def overlapping(n=250, d=6, k=4, scale=1.0):
    random = np.random.default_rng(0)
    labels = random.integers(0, k, n)
    x = random.normal(size=(k, d))[labels] + random.normal(size=(n, d))
    labels = np.where(random.random(n) < 0.3, random.integers(0, k, n), labels)
    return (scale * x).astype(np.float32), labels


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("covariance_type", covariance.TYPES)
def test_fit_matches_scikit_learn_in_float64(covariance_type):
    x, labels = overlapping()
    x = x.astype(np.float64)
    expected = references.mixture(x, labels, covariance_type)
    mixture = gmm.fit(x, 4, covariance_type, init_labels=labels)
    steps = int(mixture.num_iterations)
    assert steps == expected.n_iter_ and bool(mixture.converged)
    assert steps > 3  # Responsibilities are soft, so EM has work to do.
    np.testing.assert_allclose(mixture.means, expected.means_, rtol=1e-8)
    np.testing.assert_allclose(mixture.weights, expected.weights_, rtol=1e-8)
    np.testing.assert_allclose(mixture.covariances, expected.covariances_, rtol=1e-8)
    # The last bound is that of an E-step after the last M-step.
    np.testing.assert_allclose(
        mixture.lower_bounds[:steps], expected.lower_bounds_, atol=1e-8
    )
    np.testing.assert_allclose(
        gmm.responsibilities(mixture, x), expected.predict_proba(x), atol=1e-8
    )
    np.testing.assert_allclose(
        gmm.log_prob(mixture, x), expected.score_samples(x), atol=1e-8
    )


def check_float32(x, labels, covariance_type="full"):
    """Assert that float32 agrees with scikit-learn in float64 from the same start."""
    expected = references.mixture(x, labels, covariance_type)
    mixture = gmm.fit(x, labels.max() + 1, covariance_type, init_labels=labels)
    posteriors = [
        np.asarray(gmm.responsibilities(mixture, x), np.float64),
        expected.predict_proba(x.astype(np.float64)),
    ]
    same = posteriors[0].argmax(axis=1) == posteriors[1].argmax(axis=1)
    assert same.mean() >= 0.999
    # NLEEP depends on all posteriors.
    scores = [references.nleep(posterior, labels % 3) for posterior in posteriors]
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)
    return mixture


@pytest.mark.parametrize("covariance_type", covariance.TYPES)
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])
def test_fit_in_float32_matches_scikit_learn(covariance_type, scale):
    x, labels = overlapping(scale=scale)
    check_float32(x, labels, covariance_type)


@pytest.mark.parametrize(
    ("n", "k", "d"),
    # With fewer points per component than dimensions, and with more.
    [(700, 60, 16), pytest.param(1500, 20, 16, marks=pytest.mark.slow)],
)
def test_fit_with_any_number_of_points_per_component(n, k, d):
    random = np.random.default_rng(n)
    members = np.arange(n) % k
    means = random.normal(size=(k, d))
    x = (means[members] + random.normal(size=(n, d))).astype(np.float32)
    moved = random.random(n) < 0.05 if n > 10 * k else np.zeros(n, bool)
    check_float32(x, np.where(moved, random.integers(0, k, n), members))


@pytest.mark.slow
def test_fit_with_many_overlapping_points_per_component():
    random = np.random.default_rng(0)
    members = random.integers(0, 10, 20_000)
    scale = np.geomspace(3, 0.1, 70)
    x = 0.5 * random.normal(size=(10, 70))[members] + random.normal(size=(20_000, 70))
    moved = random.random(20_000) < 0.2
    labels = np.where(moved, random.integers(0, 10, 20_000), members)
    assert check_float32((x * scale).astype(np.float32), labels).num_iterations > 3


# scikit-learn's covariance of a single point is 0 / 0 before the ridge.
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_fit_with_constant_duplicate_and_single_points():
    random = np.random.default_rng(0)
    constant = np.zeros((20, 8))
    duplicates = np.repeat(random.normal(3, 1, (5, 8)), 6, axis=0)
    single = np.full((1, 8), -20.0)
    spread = random.normal(-6, 1, (200, 8))
    x = np.concatenate([constant, duplicates, single, spread]).astype(np.float32)
    mixture = check_float32(x, np.repeat([0, 1, 2, 3], [20, 30, 1, 200]))
    assert np.isfinite(mixture.means).all()


@pytest.mark.parametrize("covariance_type", ["full", "diag"])
def test_fit_in_float32_with_fewer_points_than_dimensions(
    few_per_component, covariance_type
):
    x, _ = few_per_component
    labels = np.repeat(np.arange(100), 6)
    expected = references.mixture(x, labels, covariance_type)
    mixture = gmm.fit(x, 100, covariance_type, init_labels=labels)
    assert np.isfinite(mixture.precision_cholesky).all()
    same = np.argmax(gmm.responsibilities(mixture, x), 1) == expected.predict(x)
    assert same.mean() >= 0.999
    steps = int(mixture.num_iterations)
    assert steps == expected.n_iter_
    # Relative to the bound, because Mahalanobis distances reach 1e6 and more.
    last = float(mixture.lower_bounds[steps - 1])
    assert last == pytest.approx(expected.lower_bound_, rel=1e-4)
    if covariance_type == "full":
        p = np.asarray(mixture.precision_cholesky[0], np.float64)
        # The covariance of component 0 in float64, of rank 5 in 40 dimensions.
        centered = x[:6] - x[:6].mean(0, dtype=np.float64)
        exact = centered.T @ centered / 6 + 1e-6 * np.eye(40)
        np.testing.assert_allclose(p.T @ exact @ p, np.eye(40), atol=5e-3)


@pytest.mark.slow
@pytest.mark.usefixtures("double")
def test_fit_with_components_that_grow_and_overflow():
    # Copies of 3 points in two components: half of the copies in each at the start, and
    # all of them in each after the first E-step. The lists have 128 slots, so the first
    # case continues with longer lists, and the second with dense EM.
    for copies, is_sparse in ((20, True), (60, False)):
        few = np.random.default_rng(0).normal(size=(3, 64))
        x = np.concatenate([np.tile(few, (copies, 1)), np.eye(64)[:57]])
        labels = np.append(np.arange(3 * copies) % 2, np.repeat(np.arange(2, 59), 1))
        assert sparse_em.width(len(x), 59) == 128
        expected = references.mixture(x, labels, "full")
        fitted = fitting.fit(x, 59, init_labels=labels)
        assert (fitted.sparse is not None) == is_sparse
        assert len(fitted.lower_bounds) == expected.n_iter_ + 1
        np.testing.assert_allclose(fitted.lower_bounds[:-1], expected.lower_bounds_)


def test_fit_with_duplicate_points_is_finite():
    # The shape of another test, whose compiled program is used again.
    x = np.repeat(np.random.default_rng(0).normal(size=(59, 16)), 20, 0)
    x = np.concatenate([x, [[9.0] * 16]]).astype(np.float32)
    labels = np.append(np.repeat(np.arange(59), 20), 59)
    mixture = gmm.fit(x, 60, init_labels=labels)
    posterior = np.asarray(gmm.responsibilities(mixture, x))
    assert np.isfinite(posterior).all()
    np.testing.assert_allclose(posterior.sum(1), 1, rtol=1e-5)
    assert posterior[-1].argmax() == 59


def test_fit_with_one_dimension_and_kmeans_start():
    x = np.concatenate([np.linspace(0, 1, 32), np.linspace(9, 10, 32)])[:, None]
    mixture = gmm.fit(x.astype(np.float32), 2)
    np.testing.assert_allclose(np.sort(mixture.means[:, 0]), [0.5, 9.5], atol=1e-3)
    # A mixture is a pytree, so it passes through jit.
    np.testing.assert_array_equal(
        jax.jit(gmm.log_prob)(mixture, x), gmm.log_prob(mixture, x)
    )


def test_example_in_docstring():
    assert doctest.testmod(gmm).failed == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_components": 251}, "between 1 and the number of points"),
        ({"num_components": 0}, "1 to 250 components"),
        ({"covariance_type": "round"}, "Unknown covariance_type 'round'"),
        ({"max_iter": 0}, "max_iter"),
        ({"init_labels": np.zeros(3, int)}, "one integer per point"),
        ({"init_labels": np.full(250, 4)}, "must be indices of components"),
        ({"x": np.full((250, 2), np.nan)}, "500 NaN or infinite"),
        ({"x": np.zeros(250)}, "matrix of floats"),
    ],
)
def test_fit_raises_for_bad_input(options, message):
    x, _ = overlapping()
    with pytest.raises(InputError, match=message):
        gmm.fit(**{"x": x, "num_components": 4, **options})
