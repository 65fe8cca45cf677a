import numpy as np
import pytest

from rankckpt_jax.measures import symmetric


@pytest.mark.parametrize("size", [1, 2, 3, 40])
@pytest.mark.parametrize("rank", [1, 40])
def test_the_leading_vectors_are_those_of_numpy(size, rank):
    a = np.random.default_rng(size).normal(size=(size, min(rank, size)))
    matrix = a @ a.T + 1e-3 * np.diag(np.arange(size))
    count = max(1, size // 3)
    values, vectors = symmetric.leading(matrix, lambda _: count)
    expected_values, expected = np.linalg.eigh(matrix)
    np.testing.assert_allclose(
        values, expected_values, rtol=1e-10, atol=1e-12 * values[-1]
    )
    assert vectors.shape == (size, count)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(count), atol=1e-12)
    # Eigenvectors are known up to their sign.
    cosines = np.abs(np.sum(vectors * expected[:, size - count :], axis=0))
    np.testing.assert_allclose(cosines, 1, atol=1e-9)


def test_the_number_of_vectors_is_chosen_by_the_eigenvalues():
    matrix = np.diag([1.0, 5.0, 3.0, 2.0])
    values, vectors = symmetric.leading(matrix, lambda values: int(sum(values > 2)))
    np.testing.assert_allclose(values, [1, 2, 3, 5])
    np.testing.assert_allclose(np.abs(vectors), np.eye(4)[:, [2, 1]], atol=1e-12)
