"""Principal components of a feature matrix.

N images, D dimensions, X [N, D], mean m. The covariance (X - m)'(X - m) / (N - 1) is
S = V L V'; the first d components hold sum_{j<=d} L_j / tr S of the variance. Where
N < D the Gram matrix (X - m)(X - m)' has the same eigenvalues times N - 1 and is
smaller: its eigenvectors U give V = (X - m)' U / norm.

Cost: 2 N D min(N, D) FLOP on the device, and an eigendecomposition of the smaller side,
O(min(N, D)^3), in float64 on the host: it is small beside the product, and no copy of X
in float64 is needed.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg


class PCA(NamedTuple):
    """Principal components.

    Attributes:
      mean: [D].
      components: [d, D], orthonormal rows, by falling variance.
      explained: float64 [min(N, D)], each component's share of the variance.
    """

    mean: jax.Array
    components: jax.Array
    explained: np.ndarray


def fit(x: jax.Array, energy: float = 0.8) -> PCA:
    """Finds the fewest components that together hold more than `energy`.

    Args:
      x: float [N, D].
      energy: Share of the variance in (0, 1]; the count is scikit-learn's, which takes
        the first component whose cumulative share exceeds it.

    Returns:
      The components; one, of no variance, where `x` is constant.
    """
    mean = jnp.mean(x, axis=0)
    centred = x - mean
    rows, columns = x.shape
    wide = rows < columns
    product = _product(centred.T if wide else centred)
    values, vectors = scipy.linalg.eigh(np.asarray(product, np.float64))
    values = np.maximum(values[::-1], 0)
    total = values.sum()
    explained = values / total if total > 0 else np.zeros_like(values)
    cumulative = np.cumsum(explained)
    count = int(np.searchsorted(cumulative, energy, side="right")) + 1
    count = min(count, len(values)) if total > 0 else 1
    vectors = jnp.asarray(vectors[:, ::-1][:, :count].T, x.dtype)
    if wide:
        highest = jax.lax.Precision.HIGHEST
        vectors = jnp.dot(vectors, centred, precision=highest)
        norms = jnp.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = vectors / jnp.where(norms > 0, norms, 1)
    return PCA(mean, vectors, explained)


def transform(pca: PCA, x: jax.Array) -> jax.Array:
    """Projects [N, D] onto the components: [N, d], not whitened."""
    return jnp.dot(x - pca.mean, pca.components.T, precision=jax.lax.Precision.HIGHEST)


@jax.jit
def _product(centred: jax.Array) -> jax.Array:
    return jnp.dot(centred.T, centred, precision=jax.lax.Precision.HIGHEST)
