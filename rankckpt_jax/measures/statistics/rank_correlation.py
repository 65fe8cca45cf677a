"""Spearman's correlation between how images look alike and whether they share a class.

N images, R [N, D] their features with every row centered and of length 1, so that R R'
is the matrix of correlations between images, and the same of one-hot labels, which is 1
for two images of a class and -1 / (C - 1) for others: two values. Spearman's
correlation of the M = N (N - 1) / 2 pairs is then Pearson's of a rank and a truth
value,

    rho = (mean rank of alike pairs - mean rank) / s_rank sqrt(p / (1 - p)),
    p the share of pairs of a class,

and needs no pair kept: the correlations are counted in 2^16 bins, apart for pairs
within a class, tile by tile, and a bin's pairs share their mean rank, as ties do. Bins
span the values that a sample of rows has; what lies outside falls into the outer ones.
No N x N array exists. Images count w_i times; a pair w_i w_j times.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rankckpt_jax.errors import InputError
from rankckpt_jax.measures.statistics import blocks

_TILE = 1024
_BINS = 1 << 16
_SAMPLE = 128
"""Rows whose correlations decide what the bins span."""


def with_labels(features: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    """Spearman's rho over pairs, in [-1, 1].

    Args:
      features: float [N, D].
      labels: int [N].
      weights: float64 [N], multiplicities.

    Raises:
      InputError: The correlation has no meaning: rows of a single value or none that
        vary, no pair of a class, or none of two.
    """
    n, d = features.shape
    if d < 2:
        raise InputError(
            "A correlation between images needs at least two features", found=f"{d}"
        )
    size = min(_TILE, -(-n // 8) * 8)
    tiles = -(-n // size)
    padding = tiles * size - n
    normalized = np.asarray(_normalized(features))
    if not normalized.any():
        raise InputError("No image's features vary: images have no correlation")
    rows = jnp.asarray(np.pad(normalized, ((0, padding), (0, 0))))
    label = jnp.asarray(np.pad(labels, (0, padding)), jnp.int32)
    count = jnp.asarray(np.pad(weights, (0, padding)), jnp.float32)
    low, high = _span(rows, n)
    alike, other = _histograms(rows, label, count, tiles, size, low, high)
    alike, other = np.asarray(alike, np.float64), np.asarray(other, np.float64)
    return _spearman(alike.sum(axis=0), other.sum(axis=0))


@jax.jit
def _normalized(features: jax.Array) -> jax.Array:
    """Rows centered and of length 1; zeros where a row does not vary."""
    centered = features - jnp.mean(features, axis=1, keepdims=True)
    length = jnp.linalg.norm(centered, axis=1, keepdims=True)
    scale = jnp.max(jnp.abs(features), axis=1, keepdims=True)
    varies = length > 8 * jnp.finfo(features.dtype).eps * scale
    return jnp.where(varies, centered / jnp.where(varies, length, 1), 0)


def _span(rows: jax.Array, n: int) -> tuple[float, float]:
    step = max(1, n // _SAMPLE)
    sample = np.array(blocks.dot(rows[:n:step], rows[:n].T))
    sample[np.arange(len(sample)), np.arange(0, n, step)] = np.nan
    low, high = float(np.nanmin(sample)), float(np.nanmax(sample))
    margin = (high - low) / 4
    return max(low - margin, -1.0), min(high + margin, 1.0)


@functools.partial(jax.jit, static_argnames=("tiles", "size"))
def _histograms(
    rows: jax.Array,
    labels: jax.Array,
    weights: jax.Array,
    tiles: int,
    size: int,
    low: float,
    high: float,
) -> tuple[jax.Array, jax.Array]:
    """Counts of pairs of one class and of two, a row for each tile: [tiles, bins]."""
    scale = _BINS / jnp.maximum(high - low, 1e-30)

    def across(first: Any, _: None) -> Any:
        def part(array: jax.Array, index: Any) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(array, index * size, size)

        def down(second: Any, counts: jax.Array) -> jax.Array:
            value = blocks.dot(part(rows, first), part(rows, second).T)
            place = jnp.clip((value - low) * scale, 0, _BINS - 1).astype(jnp.int32)
            alike = part(labels, first)[:, None] == part(labels, second)
            place = place + jnp.where(alike, 0, _BINS)
            count = part(weights, first)[:, None] * part(weights, second)
            position = jnp.arange(size)
            above = position[:, None] + first * size < position + second * size
            count = jnp.where(above, count, 0)
            return counts.at[place.reshape(-1)].add(count.reshape(-1))

        # Within a tile row a bin of float32 holds less than 2^24 pairs, and exactly.
        counts = jnp.zeros(2 * _BINS, weights.dtype)
        counts = jax.lax.fori_loop(first, tiles, down, counts)
        return first + 1, counts.reshape(2, _BINS)

    _, counts = jax.lax.scan(across, 0, None, length=tiles)
    return counts[:, 0], counts[:, 1]


def _spearman(alike: np.ndarray, other: np.ndarray) -> float:
    """From the counts of pairs by bin, rising in correlation."""
    both = alike + other
    pairs, share = both.sum(), alike.sum() / both.sum()
    if not 0 < share < 1:
        raise InputError(
            "A rank correlation needs pairs of images of one class and of two",
            found="one-image classes only" if share == 0 else "a single class",
        )
    ranks = np.cumsum(both) - (both - 1) / 2
    mean = (pairs + 1) / 2
    variance = np.sum(both * (ranks - mean) ** 2) / pairs
    if variance == 0:
        raise InputError("All images are equally alike: they have no rank")
    excess = np.sum(alike * (ranks - mean)) / alike.sum()
    return float(excess / np.sqrt(variance) * np.sqrt(share / (1 - share)))
