import doctest

import jax
import numpy as np
import pytest
from sklearn.mixture import GaussianMixture

from rankckpt_jax.errors import InputError
from rankckpt_jax.measures.mixture import gmm, sparse_em

TYPES = ["full", "tied", "diag", "spherical"]


def reference(x, init_labels, num_components, covariance_type, **options):
    """scikit-learn's mixture in float64, started from a hard assignment."""
    x = x.astype(np.float64)
    members = [x[init_labels == k] for k in range(num_components)]
    weights = np.array([len(m) for m in members]) / len(x)
    moments = np.stack(
        [np.cov(m.T, bias=True).reshape(2 * x.shape[1:]) for m in members]
    )
    ridge = 1e-6 * np.eye(x.shape[1])
    variances = np.einsum("kdd->kd", moments) + 1e-6
    precisions = {
        "full": lambda: np.linalg.inv(moments + ridge),
        "tied": lambda: np.linalg.inv(np.einsum("k,kij", weights, moments) + ridge),
        "diag": lambda: 1 / variances,
        "spherical": lambda: 1 / variances.mean(axis=1),
    }
    return GaussianMixture(
        num_components,
        covariance_type=covariance_type,
        weights_init=weights,
        means_init=np.stack([m.mean(0) for m in members]),
        precisions_init=precisions[covariance_type](),
        **options,
    ).fit(x)


def overlapping(n=400, d=6, k=4, scale=1.0):
    random = np.random.default_rng(0)
    labels = random.integers(0, k, n)
    x = random.normal(size=(k, d))[labels] + random.normal(size=(n, d))
    labels = np.where(random.random(n) < 0.3, random.integers(0, k, n), labels)
    return (scale * x).astype(np.float32), labels


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("covariance_type", TYPES)
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
    # The last is that of an E-step after the last M-step.
    np.testing.assert_allclose(
        found.lower_bounds[:steps], expected.lower_bounds_, atol=1e-8
    )
    np.testing.assert_allclose(
        gmm.responsibilities(found, x), expected.predict_proba(x), atol=1e-8
    )
    np.testing.assert_allclose(
        gmm.log_prob(found, x), expected.score_samples(x), atol=1e-8
    )


def agrees(x, labels, num_components, covariance_type, **options):
    """Whether float32 finds what scikit-learn finds in float64, from one start."""
    expected = reference(x, labels, num_components, covariance_type, **options)
    found = gmm.fit(x, num_components, covariance_type, init_labels=labels, **options)
    posterior = np.asarray(gmm.responsibilities(found, x), np.float64)
    reference_posterior = expected.predict_proba(x.astype(np.float64))
    same = posterior.argmax(axis=1) == reference_posterior.argmax(axis=1)
    assert same.mean() >= 0.999
    # NLEEP of labels that go with the components: a sum over all posteriors.
    classes = labels % 3
    scores = [nleep_of(p, classes) for p in (posterior, reference_posterior)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)
    return found


def nleep_of(posterior, labels):
    joint = np.stack([posterior[labels == c].sum(0) for c in range(labels.max() + 1)])
    conditional = joint / np.maximum(joint.sum(0), 1e-300)
    return np.log((conditional[labels] * posterior).sum(1)).mean()


@pytest.mark.parametrize("covariance_type", TYPES)
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])
def test_single_precision_agrees(covariance_type, scale):
    x, labels = overlapping(scale=scale)
    agrees(x, labels, 4, covariance_type)


@pytest.mark.parametrize(
    ("n", "k", "d"),
    [(200, 100, 16), (1200, 60, 16), (3000, 10, 32), (10_000, 2, 16)],
)
def test_any_number_of_points_for_each_component(n, k, d):
    random = np.random.default_rng(n)
    members = np.arange(n) % k
    means = random.normal(size=(k, d))
    x = (means[members] + random.normal(size=(n, d))).astype(np.float32)
    moved = random.random(n) < 0.05 if n > 10 * k else np.zeros(n, bool)
    labels = np.where(moved, random.integers(0, k, n), members)
    agrees(x, labels, k, "full")


@pytest.mark.slow
def test_dense_components_like_those_of_patch_camelyon():
    random = np.random.default_rng(0)
    members = random.integers(0, 10, 20_000)
    scale = np.geomspace(3, 0.1, 70)
    x = (
        0.5 * random.normal(size=(10, 70))[members] + random.normal(size=(20_000, 70))
    ) * scale
    labels = np.where(
        random.random(20_000) < 0.2, random.integers(0, 10, 20_000), members
    )
    found = agrees(x.astype(np.float32), labels, 10, "full")
    assert found.num_iterations > 3


def test_components_that_are_constant_or_duplicated_or_of_one_point():
    random = np.random.default_rng(0)
    constant = np.zeros((20, 8))
    duplicated = np.repeat(random.normal(3, 1, (5, 8)), 6, axis=0)
    alone = np.full((1, 8), -20.0)
    spread = random.normal(-6, 1, (200, 8))
    x = np.concatenate([constant, duplicated, alone, spread]).astype(np.float32)
    labels = np.repeat([0, 1, 2, 3], [20, 30, 1, 200])
    # Of one point scikit-learn's covariance is its ridge alone.
    with np.errstate(invalid="ignore"):
        found = agrees(x, labels, 4, "full")
    assert np.isfinite(found.means).all()


@pytest.mark.parametrize("covariance_type", TYPES)
def test_components_are_divided_among_devices_as_rows_are(covariance_type):
    x, labels = overlapping()
    rows, components = (
        gmm.fit(x, 4, covariance_type, init_labels=labels, shard=shard)
        for shard in ("rows", "components")
    )
    for one, other in zip(
        jax.tree.leaves(rows), jax.tree.leaves(components), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("covariance_type", TYPES)
def test_samples_are_of_the_mixture(covariance_type):
    x, labels = overlapping(n=2000)
    mixture = gmm.fit(x, 4, covariance_type, init_labels=labels)
    drawn, components = mixture.sample(jax.random.key(0), 40_000)
    drawn, components = np.asarray(drawn), np.asarray(components)
    shares = np.bincount(components, minlength=4) / len(drawn)
    np.testing.assert_allclose(shares, mixture.weights, atol=0.02)
    np.testing.assert_allclose(drawn.mean(0), x.mean(0), atol=0.05)
    expected = np.cov(x.T)
    if covariance_type == "full":  # The others cannot hold all of it.
        np.testing.assert_allclose(np.cov(drawn.T), expected, atol=0.1)
    log_prob = np.asarray(mixture.log_prob(drawn))
    assert log_prob.mean() == pytest.approx(
        float(np.mean(mixture.log_prob(x))), abs=0.1
    )


def test_the_example_of_its_documentation():
    assert doctest.testmod(gmm).failed == 0


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


@pytest.mark.usefixtures("double")
def test_a_component_that_gets_more_points_than_its_basis_holds():
    # 10 copies of 3 points, shared by two components: 15 each at the start, and all 30
    # after the first E-step.
    copies = np.tile(np.random.default_rng(0).normal(size=(3, 40)), (10, 1))
    x = np.concatenate([copies, np.eye(40)[:9]])
    labels = np.append(np.arange(30) % 2, np.repeat([2, 3, 4], 3))
    assert sparse_em.width(15, 40) == 16
    expected = reference(x, labels, 5, "full")
    found = gmm.fit(x, 5, init_labels=labels)
    assert found.num_iterations == expected.n_iter_
    np.testing.assert_allclose(found.lower_bounds[:-1], expected.lower_bounds_)


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
    centered = x[:6] - x[:6].mean(0, dtype=np.float64)
    covariance = centered.T @ centered / 6 + 1e-6 * np.eye(40)
    np.testing.assert_allclose(p.T @ covariance @ p, np.eye(40), atol=5e-3)


def test_a_mixture_is_a_pytree():
    x, labels = overlapping()
    found = gmm.fit(x, 4, init_labels=labels)
    doubled = jax.tree.map(lambda leaf: leaf, found)
    np.testing.assert_array_equal(
        jax.jit(gmm.log_prob)(doubled, x), jax.jit(gmm.log_prob)(found, x)
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_components": 401}, "More mixture components than points"),
        ({"num_components": 0}, "1 to 400 components"),
        ({"covariance_type": "round"}, "Unknown covariance_type 'round'"),
        ({"shard": "columns"}, "Unknown shard 'columns'"),
        ({"max_iter": 0}, "max_iter"),
        ({"init_labels": np.zeros(3, int)}, "one integer per point"),
        ({"init_labels": np.full(400, 4)}, "must name components"),
        ({"x": np.full((400, 2), np.nan)}, "800 NaN or infinite"),
        ({"x": np.zeros(400)}, "matrix of floats"),
    ],
)
def test_bad_input_is_refused(options, message):
    x, _ = overlapping()
    with pytest.raises(InputError, match=message):
        gmm.fit(**{"x": x, "num_components": 4, **options})


def test_one_dimension():
    x = np.concatenate([np.linspace(0, 1, 50), np.linspace(9, 10, 50)])[:, None]
    found = gmm.fit(x.astype(np.float32), 2)
    np.testing.assert_allclose(np.sort(found.means[:, 0]), [0.5, 9.5], atol=1e-3)
