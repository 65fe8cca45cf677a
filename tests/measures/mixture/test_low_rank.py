"""Low-rank Gaussians beside a straight statement in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from rankckpt_jax.measures.mixture import low_rank

K, W, D, PADDED, RIDGE = 9, 8, 30, 32, 1e-6


def points(scale):
    """Points [N, D], components [N, 2] and responsibilities [N, 2], as lists."""
    random = np.random.default_rng(0)
    # Two components of one point, one of W, one of copies of two points.
    sizes = [5, 1, 2, W, 3, 6, 1, 4, 6]
    members = np.repeat(np.arange(K), sizes)
    x = 2 * random.normal(size=(K, D))[members] + random.normal(size=(len(members), D))
    copies = np.flatnonzero(members == 5)
    x[copies] = x[copies[[0, 1, 0, 1, 0, 1]]]
    components = np.stack([members, np.full(len(members), K)], axis=1)
    values = np.stack([np.ones(len(members)), np.zeros(len(members))], axis=1)
    # Shared points: in halves, and all but exclusively.
    components[0, 1], values[0] = 8, (0.5, 0.5)
    components[1, 1], values[1] = 7, (1 - 1e-6, 1e-6)
    return scale * x, components.astype(np.int32), values


def statement(x, components, values):
    """Joint log densities [N, K], log determinants [K] and log weights [K]."""
    resp = np.zeros((len(x), K + 1))
    np.put_along_axis(resp, components, values, axis=1)
    resp = resp[:, :K]
    counts = np.maximum(resp.sum(axis=0), 10 * np.finfo(np.float32).eps)
    joint, log_dets = [], []
    for k in range(K):
        centered = x - resp[:, k] @ x / counts[k]
        # By singular values: a covariance of 1e6 is not known to 1e-6.
        rows = np.sqrt(resp[:, k, None] / counts[k]) * centered
        _, lengths, vectors = np.linalg.svd(rows)
        variances = np.pad(lengths, (0, D - len(lengths))) ** 2 + RIDGE
        log_dets.append(np.log(variances).sum())
        distance = ((centered @ vectors.T) ** 2 / variances).sum(axis=1)
        joint.append(-(distance + log_dets[-1] + D * np.log(2 * np.pi)) / 2)
    log_weights = np.log(counts / counts.sum())
    return np.stack(joint, axis=1) + log_weights, np.array(log_dets), log_weights


@pytest.fixture(
    params=[
        # Nats, and a share of 1e6 and more nats. At the largest scale in float32 the
        # points themselves are known to a tenth of the ridge's length only, and vectors
        # that only rounding makes take up a part of what is outside the span.
        pytest.param(("float32", 1e-3, 1e-4, 1e-6), id="float32-small"),
        pytest.param(("float32", 1.0, 5e-3, 1e-5), id="float32"),
        pytest.param(("float32", 1e3, 1.0, 0.3), id="float32-large"),
        pytest.param(("float64", 1e-3, 1e-10, 1e-10), id="float64-small"),
        pytest.param(("float64", 1.0, 1e-8, 1e-10), id="float64"),
        pytest.param(("float64", 1e3, 1e-6, 1e-10), id="float64-large"),
    ]
)
def case(request, double):
    """Points, lists, what is found and expected of them, and how exactly."""
    dtype, scale, nats, share = request.param
    tolerance = {"atol": nats, "rtol": share}
    x, components, values = points(scale)
    x, values = x.astype(dtype), values.astype(dtype)
    padded = jnp.asarray(np.pad(x, ((0, 0), (0, PADDED - D))))
    scalars = jnp.asarray(D, dtype), jnp.asarray(RIDGE, dtype)
    found = low_rank.of_lists(padded, components, values, (K, W), *scalars)
    expected = statement(x.astype(np.float64), components, values.astype(np.float64))
    return padded, components, found, expected, tolerance


def test_the_determinant_is_that_of_the_full_covariance(case):
    _, _, found, (_, log_dets, log_weights), tolerance = case
    np.testing.assert_allclose(found.ridges, RIDGE, rtol=1e-6)
    expected = log_weights - (log_dets + D * np.log(2 * np.pi)) / 2
    np.testing.assert_allclose(found.normalizer, expected, **tolerance)


def test_listed_pairs_have_the_densities_of_the_full_covariance(case):
    padded, components, found, (joint, _, _), tolerance = case
    listed = np.asarray(found.listed(padded, jnp.asarray(components)))
    held = components < K
    expected = np.take_along_axis(joint, components % K, axis=1)
    np.testing.assert_allclose(listed[held], expected[held], **tolerance)
    assert np.isneginf(listed[~held]).all()


def test_a_component_entered_has_the_densities_of_the_full_covariance(case):
    padded, _, found, (joint, _, _), tolerance = case
    for k in range(K):
        each = found.log_density(jnp.asarray(k), padded)
        np.testing.assert_allclose(each, joint[:, k], **tolerance)


def test_no_density_exceeds_its_bound(case):
    padded, _, found, (joint, log_dets, log_weights), tolerance = case
    vectors = found.witnesses(jnp.asarray(D, padded.dtype), 4)
    assert vectors.shape == (4, K, PADDED)
    offsets = np.asarray(padded, np.float64)[:, None] - np.asarray(found.means)
    heights = np.einsum("nkd,wkd->wnk", offsets, np.asarray(vectors, np.float64))
    normalizer = log_weights - (log_dets + D * np.log(2 * np.pi)) / 2
    bound = normalizer - (heights**2).sum(axis=0) / 2
    slack = tolerance["atol"] + tolerance["rtol"] * np.abs(joint)
    assert (joint <= bound + slack).all()
    # It tells apart what lies in the span and what does not.
    outside = np.sort(normalizer - bound, axis=0)[W + 1 :]
    assert np.median(outside) > 1e-2 * np.median(normalizer - joint)


@pytest.mark.usefixtures("double")
def test_fewer_dimensions_than_witnesses():
    x = jnp.asarray(np.pad(np.arange(10.0).reshape(5, 2) ** 2, ((0, 0), (0, 14))))
    lists = np.zeros((5, 1), np.int32), np.ones((5, 1))
    found = low_rank.of_lists(x, *lists, (1, 8), jnp.asarray(2.0), jnp.asarray(RIDGE))
    vectors = np.asarray(found.witnesses(jnp.asarray(2.0), 4))[:, 0, :2]
    # As many as there are dimensions, the whole distance.
    centered = np.asarray(x[:, :2] - found.means[0, :2])
    covariance = centered.T @ centered / 5 + RIDGE * np.eye(2)
    np.testing.assert_allclose(
        vectors.T @ vectors, np.linalg.inv(covariance), rtol=1e-6
    )


@pytest.mark.usefixtures("double")
def test_rows_of_any_length_are_made_orthonormal():
    random = np.random.default_rng(0)
    a = random.normal(size=(6, 16, 40)) * np.geomspace(1, 1e-5, 16)[:, None]
    found, log_diagonal = low_rank.orthonormal(jnp.asarray(a, jnp.float32))
    gram = np.asarray(found) @ np.asarray(found).swapaxes(1, 2)
    np.testing.assert_allclose(gram, np.broadcast_to(np.eye(16), gram.shape), atol=1e-5)
    expected = np.linalg.slogdet(a @ a.swapaxes(1, 2))[1] / 2
    np.testing.assert_allclose(log_diagonal, expected, atol=1e-3)
