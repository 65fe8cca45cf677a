"""Principal components of a feature matrix.

N images, D dimensions, X [N, D]. The covariance S = (X - m)'(X - m) / (N - 1) = V L V';
the share of the variance that the first d components hold is sum_{j<=d} L_j / tr S.
Where N < D the Gram matrix (X - m)(X - m)' has the same eigenvalues times N - 1 and is
smaller: its eigenvectors U give V = (X - m)' U / norm.

Eigenvectors turn by the error of S over the gap between eigenvalues, and real gaps are
small. So the products are summed in float64, on the device and block by block: no
N x D copy in float64 exists. (A TPU has no float64 worth the name; there blocks are
float32 products of the highest precision.) The decomposition itself, O(min(N, D)^3), is
small beside the product's 2 N D min(N, D) FLOP and is done on the host, in float64.

One device does it all, so that what follows, k-means, which is discontinuous in its
input, starts from the very same numbers for any number of devices.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import threadpoolctl

from rankckpt_jax.errors import InputError
from rankckpt_jax.measures import blocks

_BLOCK = 1024
"""Rows whose product is formed at once."""


class PCA(NamedTuple):
    """Principal components.

    Attributes:
      mean: [D].
      components: [d, D], orthonormal rows, by falling variance; the largest entry of
        each is positive.
      explained: float64 [min(N, D)], each component's share of the variance.
    """

    mean: jax.Array
    components: jax.Array
    explained: np.ndarray


def fit(x: Any, energy: float = 0.8) -> PCA:
    """Finds the fewest components that together hold more than `energy`.

    Args:
      x: float [N, D], NumPy or JAX.
      energy: Share of the variance in (0, 1]; the count is scikit-learn's, which takes
        the first component whose cumulative share exceeds it.

    Returns:
      The components; one, of no variance, where `x` is constant.

    Raises:
      InputError: `energy` is not in (0, 1].
    """
    if not 0 < energy <= 1:
        raise InputError(
            "PCA keeps a share of the variance", expected="(0, 1]", found=f"{energy}"
        )
    x = np.asarray(x)
    mean = x.mean(axis=0, dtype=np.float64).astype(x.dtype)
    centred = x - mean
    wide = len(x) < x.shape[1]
    values, vectors = _eigh(_gram(centred.T if wide else centred))
    values = np.maximum(values[::-1], 0)
    total = values.sum()
    explained = values / total if total > 0 else np.zeros_like(values)
    count = int(np.searchsorted(np.cumsum(explained), energy, side="right")) + 1
    count = min(count, len(values)) if total > 0 else 1
    vectors = vectors[:, ::-1][:, :count].T
    if wide:
        # In float64 a block of columns at a time, for the same reason as above.
        columns = range(0, x.shape[1], _BLOCK)
        parts = [vectors @ centred[:, c : c + _BLOCK].astype(float) for c in columns]
        vectors = np.concatenate(parts, axis=1)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = vectors / np.where(norms > 0, norms, 1)
    largest = np.argmax(np.abs(vectors), axis=1)
    signs = np.where(vectors[np.arange(len(vectors)), largest] < 0, -1, 1)
    components = (signs[:, None] * vectors).astype(x.dtype)
    return PCA(jnp.asarray(mean), jnp.asarray(components), explained)


def transform(pca: PCA, x: Any) -> jax.Array:
    """Projects [N, D] onto the components: [N, d], not whitened."""
    return _project(jnp.asarray(x), pca.mean, pca.components)


@jax.jit
def _project(x: jax.Array, mean: jax.Array, components: jax.Array) -> jax.Array:
    return blocks.dot(x - mean, components.T)


def _eigh(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, rising, and eigenvectors."""
    # NumPy, SciPy and through it JAX each bring an OpenBLAS whose idle threads spin.
    # Where they meet, 10 ms of work became 1.1 s, and 1 s of work (2048 columns) 18 s:
    # one thread is never far from the best.
    with threadpoolctl.threadpool_limits(1):
        return np.linalg.eigh(matrix)


def _gram(a: np.ndarray) -> np.ndarray:
    """The product a'a [P, P] of a [M, P], in float64."""
    count = math.ceil(len(a) / _BLOCK)
    padded = np.pad(a, ((0, count * _BLOCK - len(a)), (0, 0)))
    exact = jax.default_backend() != "tpu"
    with jax.enable_x64(exact or a.dtype == np.float64):
        sums = _sum_products(padded.reshape(count, _BLOCK, -1))
        return np.asarray(sums, np.float64)


@jax.jit
def _sum_products(a: jax.Array) -> jax.Array:
    wide = jnp.zeros(0, float).dtype

    def add(total: jax.Array, block: jax.Array) -> tuple[jax.Array, None]:
        block = block.astype(wide)
        return total + blocks.dot(block.T, block), None

    start = jnp.zeros((a.shape[2], a.shape[2]), wide)
    return jax.lax.scan(add, start, a)[0]
