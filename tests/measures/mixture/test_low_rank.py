"""Low-rank Gaussians compared with full covariances in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from rankckpt_jax.measures.mixture import low_rank

K, W, D, PADDED, RIDGE = 9, 8, 30, 32, 1e-6

fit = jax.jit(low_rank.fit)


def points(scale):
    """Points [N, D], and the members [K, W] of components with responsibilities."""
    random = np.random.default_rng(0)
    # Two components have one point, one has W, one has copies of two points.
    sizes = [5, 1, 2, W, 3, 6, 1, 4, 6]
    members = np.repeat(np.arange(K), sizes)
    x = 2 * random.normal(size=(K, D))[members] + random.normal(size=(len(members), D))
    copies = np.flatnonzero(members == 5)
    x[copies] = x[copies[[0, 1, 0, 1, 0, 1]]]
    resp = np.eye(K)[members]
    # Two points are shared: one in halves, one nearly exclusive.
    resp[0, [0, 8]] = 0.5
    resp[1, [0, 7]] = 1 - 1e-6, 1e-6
    rows, values = np.zeros((K, W), np.int32), np.zeros((K, W))
    for k in range(K):
        used = np.flatnonzero(resp[:, k])
        rows[k, : len(used)], values[k, : len(used)] = used, resp[used, k]
    return scale * x, rows, values


def full_covariances(x, rows, values):
    """Joint log densities [N, K] and normalizers [K]."""
    resp = np.zeros((len(x), K))
    for k in range(K):
        np.add.at(resp[:, k], rows[k], values[k])
    counts = np.maximum(resp.sum(axis=0), 10 * np.finfo(np.float32).eps)
    joint, log_dets = [], []
    for k in range(K):
        centered = x - resp[:, k] @ x / counts[k]
        # Singular values, because a covariance of 1e6 has no entries exact to 1e-6.
        rows = np.sqrt(resp[:, k, None] / counts[k]) * centered
        _, lengths, vectors = np.linalg.svd(rows)
        variances = np.pad(lengths, (0, D - len(lengths))) ** 2 + RIDGE
        log_dets.append(np.log(variances).sum())
        distance = ((centered @ vectors.T) ** 2 / variances).sum(axis=1)
        joint.append(-(distance + log_dets[-1] + D * np.log(2 * np.pi)) / 2)
    log_weights = np.log(counts / counts.sum())
    normalizer = log_weights - (np.array(log_dets) + D * np.log(2 * np.pi)) / 2
    return np.stack(joint, axis=1) + log_weights, normalizer


# Tolerances in nats, and relative for distances of 1e6 nats and more. In float32 at the
# largest scale, points are known to a tenth of sqrt(ridge) only, and basis vectors that
# come from rounding take up a part of what lies outside the span.
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    ("dtype", "scale", "nats", "relative"),
    [
        pytest.param("float32", 1e-3, 1e-4, 1e-6, id="float32-small"),
        pytest.param("float32", 1.0, 5e-3, 1e-5, id="float32"),
        pytest.param("float32", 1e3, 1.0, 0.3, id="float32-large"),
        pytest.param("float64", 1e-3, 1e-10, 1e-10, id="float64-small"),
        pytest.param("float64", 1.0, 1e-8, 1e-10, id="float64"),
        pytest.param("float64", 1e3, 1e-6, 1e-10, id="float64-large"),
    ],
)
def test_low_rank_matches_full_covariance(dtype, scale, nats, relative):
    tolerance = {"atol": nats, "rtol": relative}
    x, rows, values = points(scale)
    x, values = x.astype(dtype), values.astype(dtype)
    padded = np.pad(x, ((0, 0), (0, PADDED - D)))
    scalars = (jnp.asarray(scalar, dtype) for scalar in (len(x), D, RIDGE))
    result = fit(padded[rows], values, *scalars)
    joint, normalizer = full_covariances(
        x.astype(np.float64), rows, values.astype(np.float64)
    )
    np.testing.assert_allclose(result.ridges, RIDGE, rtol=1e-6)
    np.testing.assert_allclose(result.normalizer, normalizer, **tolerance)

    everywhere = np.broadcast_to(padded, (K, *padded.shape))
    densities = jax.jit(result.log_density)(everywhere)
    np.testing.assert_allclose(densities.T, joint, **tolerance)

    both = jax.jit(result.log_density_and_witnesses, static_argnums=2)
    densities, vectors = both(padded[rows], jnp.asarray(D, dtype), 4)
    expected = np.take_along_axis(joint.T, rows, axis=1)
    np.testing.assert_allclose(densities, expected, **tolerance)
    assert vectors.shape == (K, 4, PADDED)
    offsets = np.asarray(padded, np.float64)[:, None] - np.asarray(result.means)
    heights = np.einsum("nkd,kwd->wnk", offsets, np.asarray(vectors, np.float64))
    bound = normalizer - (heights**2).sum(axis=0) / 2
    slack = nats + relative * np.abs(joint)
    assert (joint <= bound + slack).all()
    # The bound separates points outside the span from points in it.
    outside = np.sort(normalizer - bound, axis=0)[W + 1 :]
    assert np.median(outside) > 1e-2 * np.median(normalizer - joint)


@pytest.mark.usefixtures("double")
def test_low_rank_with_more_points_than_dimensions():
    x = np.pad(np.arange(10.0).reshape(5, 2) ** 2, ((0, 0), (0, 14)))
    result = fit(x[None], np.ones((1, 5)), 5.0, 2.0, RIDGE)
    both = jax.jit(result.log_density_and_witnesses, static_argnums=2)
    densities, vectors = both(x[None], 2.0, 4)
    covariance = np.cov(x[:, :2].T, bias=True) + RIDGE * np.eye(2)
    expected = stats.multivariate_normal(x[:, :2].mean(0), covariance).logpdf(x[:, :2])
    np.testing.assert_allclose(densities[0], expected, rtol=1e-6)
    # Two dimensions give no more than the distance, even with four vectors.
    centered = x - x.mean(axis=0)
    distances = -2 * (expected - np.asarray(result.normalizer))
    assert (((centered @ vectors[0].T) ** 2).sum(1) <= distances + 1e-6).all()


@pytest.mark.usefixtures("double")
def test_orthonormal_with_rows_of_very_different_lengths():
    random = np.random.default_rng(0)
    a = random.normal(size=(6, 16, 40)) * np.geomspace(1, 1e-5, 16)[:, None]
    q, log_diagonal = jax.jit(low_rank.orthonormal)(jnp.asarray(a, jnp.float32))
    gram = np.asarray(q) @ np.asarray(q).swapaxes(1, 2)
    np.testing.assert_allclose(gram, np.broadcast_to(np.eye(16), gram.shape), atol=1e-5)
    expected = np.linalg.slogdet(a @ a.swapaxes(1, 2))[1] / 2
    np.testing.assert_allclose(log_diagonal, expected, atol=1e-3)
