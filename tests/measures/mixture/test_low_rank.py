"""Low-rank Gaussians compared with full covariances in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rankckpt_jax.measures.mixture import low_rank

K, W, D, PADDED, RIDGE = 9, 8, 30, 32, 1e-6

of_lists = jax.jit(low_rank.of_lists, static_argnums=3)


def points(scale):
    """Points [N, D], components [N, 2] and responsibilities [N, 2], as lists."""
    random = np.random.default_rng(0)
    # Two components have one point, one has W, one has copies of two points.
    sizes = [5, 1, 2, W, 3, 6, 1, 4, 6]
    members = np.repeat(np.arange(K), sizes)
    x = 2 * random.normal(size=(K, D))[members] + random.normal(size=(len(members), D))
    copies = np.flatnonzero(members == 5)
    x[copies] = x[copies[[0, 1, 0, 1, 0, 1]]]
    components = np.stack([members, np.full(len(members), K)], axis=1)
    values = np.stack([np.ones(len(members)), np.zeros(len(members))], axis=1)
    # Two points are shared: one in halves, one nearly exclusive.
    components[0, 1], values[0] = 8, (0.5, 0.5)
    components[1, 1], values[1] = 7, (1 - 1e-6, 1e-6)
    return scale * x, components.astype(np.int32), values


def full_covariances(x, components, values):
    """Joint log densities [N, K] and normalizers [K]."""
    resp = np.zeros((len(x), K + 1))
    np.put_along_axis(resp, components, values, axis=1)
    resp = resp[:, :K]
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
    x, components, values = points(scale)
    x, values = x.astype(dtype), values.astype(dtype)
    padded = jnp.asarray(np.pad(x, ((0, 0), (0, PADDED - D))))
    dimensions, ridge = jnp.asarray(D, dtype), jnp.asarray(RIDGE, dtype)
    lists = jnp.asarray(components), jnp.asarray(values)
    result = of_lists(padded, *lists, (K, W), dimensions, ridge)
    joint, normalizer = full_covariances(
        x.astype(np.float64), components, values.astype(np.float64)
    )
    np.testing.assert_allclose(result.ridges, RIDGE, rtol=1e-6)
    np.testing.assert_allclose(result.normalizer, normalizer, **tolerance)

    listed = np.asarray(jax.jit(result.listed)(padded, lists[0]))
    used = components < K
    expected = np.take_along_axis(joint, components % K, axis=1)
    np.testing.assert_allclose(listed[used], expected[used], **tolerance)
    assert np.isneginf(listed[~used]).all()

    densities = jax.jit(jax.vmap(result.log_density, (0, None), 1))
    densities = densities(jnp.arange(K), padded)
    np.testing.assert_allclose(densities, joint, **tolerance)

    vectors = jax.jit(result.witnesses, static_argnums=1)(dimensions, 4)
    assert vectors.shape == (4, K, PADDED)
    offsets = np.asarray(padded, np.float64)[:, None] - np.asarray(result.means)
    heights = np.einsum("nkd,wkd->wnk", offsets, np.asarray(vectors, np.float64))
    bound = normalizer - (heights**2).sum(axis=0) / 2
    slack = nats + relative * np.abs(joint)
    assert (joint <= bound + slack).all()
    # The bound separates points outside the span from points in it.
    outside = np.sort(normalizer - bound, axis=0)[W + 1 :]
    assert np.median(outside) > 1e-2 * np.median(normalizer - joint)


@pytest.mark.usefixtures("double")
def test_witnesses_with_fewer_dimensions_than_vectors():
    x = jnp.asarray(np.pad(np.arange(10.0).reshape(5, 2) ** 2, ((0, 0), (0, 14))))
    lists = np.zeros((5, 1), np.int32), np.ones((5, 1))
    dimensions, ridge = jnp.asarray(2.0), jnp.asarray(RIDGE)
    result = of_lists(x, *lists, (1, 8), dimensions, ridge)
    witnesses = jax.jit(result.witnesses, static_argnums=1)
    vectors = np.asarray(witnesses(dimensions, 4))[:, 0, :2]
    # Two vectors in two dimensions give the exact distance.
    centered = np.asarray(x[:, :2] - result.means[0, :2])
    covariance = centered.T @ centered / 5 + RIDGE * np.eye(2)
    np.testing.assert_allclose(
        vectors.T @ vectors, np.linalg.inv(covariance), rtol=1e-6
    )


@pytest.mark.usefixtures("double")
def test_orthonormal_with_rows_of_very_different_lengths():
    random = np.random.default_rng(0)
    a = random.normal(size=(6, 16, 40)) * np.geomspace(1, 1e-5, 16)[:, None]
    q, log_diagonal = jax.jit(low_rank.orthonormal)(jnp.asarray(a, jnp.float32))
    gram = np.asarray(q) @ np.asarray(q).swapaxes(1, 2)
    np.testing.assert_allclose(gram, np.broadcast_to(np.eye(16), gram.shape), atol=1e-5)
    expected = np.linalg.slogdet(a @ a.swapaxes(1, 2))[1] / 2
    np.testing.assert_allclose(log_diagonal, expected, atol=1e-3)
