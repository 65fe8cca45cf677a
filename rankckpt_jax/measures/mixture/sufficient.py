"""Sufficient statistics of a Gaussian in a layout for matrix products.

`em` defines T(x) [F] of a point x [D'] for each type of covariance. This file computes
T, the coefficients C [K, F] with which C T is the log density, and the layout of
symmetric matrices. The pairs i <= j are stored in strips of _STRIP rows, each from the
diagonal of its first row to the last column. Products of a strip are then contiguous,
and only the pairs within a strip's first square are stored twice.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rankckpt_jax.measures.mixture.covariance import Parameters
from rankckpt_jax.measures.statistics import blocks

_STRIP = 16
"""Rows of a strip."""


def statistics(covariance_type: str, x: jax.Array) -> jax.Array:
    """Return T [F, B] of the points x [D', B]."""
    parts = [jnp.ones_like(x[:1]), x]
    if covariance_type == "full":
        for i in range(0, len(x), _STRIP):
            pairs = x[i : i + _STRIP, None] * x[None, i:]
            parts.append(pairs.reshape(-1, x.shape[1]))
    elif covariance_type == "diag":
        parts.append(x * x)
    elif covariance_type == "spherical":
        parts.append(jnp.sum(x * x, axis=0, keepdims=True))
    return jnp.concatenate(parts)


def pack(matrices: jax.Array) -> jax.Array:
    """Return symmetric matrices [..., D', D'] in the layout of strips: [..., F']."""
    size = matrices.shape[-1]
    strips = [matrices[..., i : i + _STRIP, i:] for i in range(0, size, _STRIP)]
    flat = [strip.reshape(*strip.shape[:-2], -1) for strip in strips]
    return jnp.concatenate(flat, axis=-1)


def unpack(packed: jax.Array, size: int) -> jax.Array:
    """Return the symmetric matrices [K, D', D'] from the layout of `pack`."""
    matrices = jnp.zeros((len(packed), size, size), packed.dtype)
    start = 0
    for i in range(0, size, _STRIP):
        rows, columns = min(_STRIP, size - i), size - i
        strip = packed[:, start : start + rows * columns]
        strip = strip.reshape(-1, rows, columns)
        matrices = matrices.at[:, i : i + rows, i:].set(strip)
        matrices = matrices.at[:, i:, i : i + rows].set(jnp.swapaxes(strip, 1, 2))
        start += rows * columns
    return matrices


def coefficients(
    covariance_type: str, parameters: Parameters, normalizer: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return C [K, F], and the norm |S_k^-1| of each precision matrix [K]."""
    means, factors = parameters.means, parameters.precision_cholesky
    if covariance_type in ("full", "tied"):
        precisions = blocks.dot(factors, jnp.swapaxes(factors, -1, -2))
        linear = jnp.einsum("...ij,...j->...i", precisions, means)
        size = jnp.sqrt(jnp.sum(precisions**2, axis=(-2, -1)))
    elif covariance_type == "diag":
        precisions = factors**2
        linear = precisions * means
        size = jnp.max(precisions, axis=1)
    else:
        precisions = factors**2
        linear = precisions[:, None] * means
        size = precisions
    constant = normalizer - jnp.sum(linear * means, axis=1) / 2
    parts = [constant[:, None], linear]
    if covariance_type == "full":
        # Pairs within the first square of a strip are stored twice, others once.
        rows = jnp.arange(means.shape[1]) // _STRIP
        once = rows[:, None] == rows[None]
        parts.append(-pack(jnp.where(once[None], precisions, 2 * precisions)) / 2)
    elif covariance_type == "diag":
        parts.append(-precisions / 2)
    elif covariance_type == "spherical":
        parts.append(-precisions[:, None] / 2)
    else:
        # `em` adds the quadratic term, which all components share.
        size = jnp.zeros(len(means), means.dtype)
    return jnp.concatenate(parts, axis=1), size
