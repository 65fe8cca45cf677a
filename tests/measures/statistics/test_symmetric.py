import numpy as np
import pytest

from rankckpt_jax.devices import target
from rankckpt_jax.measures.statistics import symmetric


@pytest.mark.parametrize("size", [1, 2, 3, 40])
@pytest.mark.parametrize("rank", [1, 40])
def test_decompose_matches_numpy(size, rank):
    random = np.random.default_rng(size)
    a = random.normal(size=(size, min(rank, size)))
    matrix = a @ a.T + 1e-3 * np.diag(np.arange(size))
    columns = random.normal(size=(size, 5))
    count = max(1, size // 3)
    expected_values, expected = np.linalg.eigh(matrix)
    decomposition = symmetric.decompose(matrix)
    values, vectors = decomposition.values, decomposition.leading(count)
    tolerance = {"rtol": 1e-10, "atol": 1e-12 * values[-1]}
    np.testing.assert_allclose(values, expected_values, **tolerance)
    assert vectors.shape == (size, count)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(count), atol=1e-12)
    # Eigenvectors are unique up to their sign.
    cosines = np.abs(np.sum(vectors * expected[:, size - count :], axis=0))
    np.testing.assert_allclose(cosines, 1, atol=1e-9)
    projections = decomposition.project(columns)
    np.testing.assert_allclose(
        np.abs(projections), np.abs(expected.T @ columns), atol=1e-9
    )


def test_factor_solves_and_gives_determinant():
    random = np.random.default_rng(0)
    a, columns = random.normal(size=(30, 12)), random.normal(size=(12, 4))
    matrix = a.T @ a
    lower = symmetric.factor(matrix)
    np.testing.assert_allclose(lower @ lower.T, matrix, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(lower, np.tril(lower))
    squares = np.sum(symmetric.whiten(lower, columns) ** 2, axis=0)
    expected = np.sum(columns * np.linalg.solve(matrix, columns), axis=0)
    np.testing.assert_allclose(squares, expected, rtol=1e-11)
    expected = np.linalg.slogdet(matrix)[1]
    np.testing.assert_allclose(symmetric.log_det(matrix), expected, rtol=1e-12)


def test_whiten_span_of_singular_matrix():
    random = np.random.default_rng(0)
    a, columns = random.normal(size=(5, 12)), random.normal(size=(12, 4))
    values, vectors = symmetric.eigh(a.T @ a)
    assert symmetric.rank(values, 12) == 5
    whitened = symmetric.whiten_span(values, vectors, columns, 5)
    expected = np.sum(columns * (np.linalg.pinv(a.T @ a) @ columns), axis=0)
    np.testing.assert_allclose(np.sum(whitened**2, axis=0), expected, rtol=1e-9)


def test_factor_of_nearly_singular_matrix_is_none():
    scales = np.geomspace(1, 1e-9, 12)
    random = np.random.default_rng(0)
    vectors, _ = np.linalg.qr(random.normal(size=(12, 12)))
    matrix = (vectors * scales) @ vectors.T
    matrix = (matrix + matrix.T) / 2
    assert symmetric.factor(matrix) is not None
    assert symmetric.factor(matrix, least=1e-7) is None
    singular = np.ones((3, 3)) - 2 * np.eye(3)
    assert symmetric.factor(singular) is None
    with pytest.raises(np.linalg.LinAlgError):
        symmetric.log_det(singular)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("backend", ["cpu", "gpu", "tpu"])
def test_gram_is_computed_in_float64(monkeypatch, backend, dtype):
    monkeypatch.setattr(target, "platform", lambda: backend)
    random = np.random.default_rng(0)
    a = random.normal(size=(2500, 37)).astype(dtype)
    exact = a.astype(np.float64)
    np.testing.assert_allclose(symmetric.gram(a), exact.T @ exact, rtol=1e-11)
    wide = symmetric.gram(a[:40].T)
    np.testing.assert_allclose(wide, exact[:40] @ exact[:40].T, rtol=1e-11, atol=1e-11)
