"""Principal components of a feature matrix.

N images, D dimensions, X [N, D]. The covariance S = (X - m)'(X - m) / (N - 1) = V L V'.
The first d components explain the fraction sum_{j<=d} L_j / tr S of the variance. For
N < D, the smaller Gram matrix (X - m)(X - m)' has the same eigenvalues times N - 1, and
its eigenvectors U give V = (X - m)' U up to normalization.

Products and decomposition are float64, without a float64 copy of X; see `symmetric`.
One device does all the work. k-means is discontinuous in its input and therefore gets
the same numbers for any number of devices.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rankckpt_jax.devices import mapping
from rankckpt_jax.errors import InputError
from rankckpt_jax.measures.statistics import blocks, symmetric

_BLOCK = 1024
"""Columns that are multiplied at once."""


class PCA(NamedTuple):
    """Principal components.

    Attributes:
      mean: [D].
      components: [d, D], orthonormal rows by descending variance. The largest entry of
        each row is positive.
      explained: float64 [min(N, D)], fraction of the variance of each component.
    """

    mean: jax.Array
    components: jax.Array
    explained: np.ndarray


@mapping.allow_transfers
def fit(
    x: Any, energy: float = 0.8, scatter: symmetric.Decomposition | None = None
) -> PCA:
    """Find the fewest components that explain more than `energy` of the variance.

    Args:
      x: float [N, D], NumPy or JAX.
      energy: Fraction of the variance, in (0, 1]. As in scikit-learn, the components
        end with the first one whose cumulative fraction exceeds it.
      scatter: Decomposition of (X - m)'(X - m) if it is known; used for N >= D.

    Returns:
      The components; a single one without variance if `x` is constant.

    Raises:
      InputError: `energy` is not in (0, 1].
    """
    if not 0 < energy <= 1:
        raise InputError(
            "energy must be in (0, 1]",
            expected="a fraction of the variance",
            found=f"{energy}",
        )
    x = np.asarray(x)
    mean = x.mean(axis=0, dtype=np.float64).astype(x.dtype)
    centered = x - mean
    wide = len(x) < x.shape[1]
    if scatter is None or wide:
        scatter = symmetric.decompose(symmetric.gram(centered.T if wide else centered))
    explained = _shares(scatter.values)
    vectors = scatter.leading(_count(explained, energy))[:, ::-1].T
    if wide:
        # In blocks of columns, so that no float64 copy of X exists.
        columns = range(0, x.shape[1], _BLOCK)
        parts = [vectors @ centered[:, c : c + _BLOCK].astype(float) for c in columns]
        vectors = np.concatenate(parts, axis=1)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = vectors / np.where(norms > 0, norms, 1)
    largest = np.argmax(np.abs(vectors), axis=1)
    signs = np.where(vectors[np.arange(len(vectors)), largest] < 0, -1, 1)
    components = (signs[:, None] * vectors).astype(x.dtype)
    return PCA(jnp.asarray(mean), jnp.asarray(components), explained)


def _shares(values: np.ndarray) -> np.ndarray:
    """Return descending fractions of the variance from ascending eigenvalues."""
    values = np.maximum(values[::-1], 0)
    total = values.sum()
    return values / total if total > 0 else np.zeros_like(values)


def _count(explained: np.ndarray, energy: float) -> int:
    if not explained.any():
        return 1
    count = int(np.searchsorted(np.cumsum(explained), energy, side="right")) + 1
    return min(count, len(explained))


@mapping.allow_transfers
def transform(pca: PCA, x: Any) -> jax.Array:
    """Project x [N, D] onto the components: [N, d], not whitened."""
    return _project(jnp.asarray(x), pca.mean, pca.components)


@jax.jit
def _project(x: jax.Array, mean: jax.Array, components: jax.Array) -> jax.Array:
    return blocks.dot(x - mean[None], components.T)
