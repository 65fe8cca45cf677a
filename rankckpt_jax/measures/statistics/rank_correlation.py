"""Spearman's correlation between the similarity of images and their having one class.

N images, R [N, D] features with each row centered and of length 1, so that R R' holds
the correlations between images. The correlations of one-hot labels have two values, 1
within a class and -1 / (C - 1) between classes. Spearman's correlation over the
M = N (N - 1) / 2 pairs is then Pearson's correlation of a rank and a binary variable,

    rho = (mean rank of pairs of one class - mean rank) / s_rank sqrt(p / (1 - p)),

where p is the fraction of pairs of one class. No pair needs to be stored. Tile by tile,
correlations are counted in 2^16 bins, separately within and between classes. The pairs
of a bin share their mean rank, like ties. Bins span the values of a sample of rows, and
the outer bins include all values beyond. An image counts w_i times, a pair w_i w_j
times.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rankckpt_jax.errors import InputError
from rankckpt_jax.measures.statistics import blocks, scaling

_TILE = 512
_BINS = 1 << 16
_SAMPLE = 128
"""Rows whose correlations determine the span of the bins."""


def with_labels(features: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    """Return Spearman's rho over all pairs of images, in [-1, 1].

    Args:
      features: float [N, D].
      labels: int [N].
      weights: float64 [N], multiplicities.

    Raises:
      InputError: The correlation is not defined: there is one feature, all features of
        each image are equal, or all pairs (or none) are of one class.
    """
    n, d = features.shape
    if d < 2:
        raise InputError(
            "Correlations between images need at least two features", found=f"{d}"
        )
    size = min(_TILE, -(-n // 8) * 8)
    tiles = -(-n // size)
    padding = tiles * size - n
    normalized = np.asarray(_normalized(scaling.to_unit(features)))
    if not normalized.any():
        raise InputError(
            "All features of each image are equal, so images have no correlation",
            fix="check the weights and the input range of the network",
        )
    rows = jnp.asarray(np.pad(normalized, ((0, padding), (0, 0))))
    label = jnp.asarray(np.pad(labels, (0, padding)), jnp.int32)
    count = jnp.asarray(np.pad(weights, (0, padding)), jnp.float32)
    low, high = _span(rows, n)
    histograms = _histograms(rows, label, count, tiles, size, low, high)
    same, other = (np.asarray(h, np.float64).sum(axis=0) for h in histograms)
    return _spearman(same, other)


@jax.jit
def _normalized(features: jax.Array) -> jax.Array:
    """Return rows centered and of length 1; zeros for constant rows."""
    centered = features - jnp.mean(features, axis=1, keepdims=True)
    length = jnp.linalg.norm(centered, axis=1, keepdims=True)
    scale = jnp.max(jnp.abs(features), axis=1, keepdims=True)
    varies = length > 8 * jnp.finfo(features.dtype).eps * scale
    return jnp.where(varies, centered / jnp.where(varies, length, 1), 0)


def _span(rows: jax.Array, n: int) -> tuple[float, float]:
    """Return the lowest and highest value of the bins."""
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
    """Return counts of pairs within and between classes: [tiles, bins] each."""
    scale = _BINS / jnp.maximum(high - low, 1e-30)

    def across(first: Any, _: None) -> Any:
        def part(array: jax.Array, index: Any) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(array, index * size, size)

        def down(second: Any, counts: jax.Array) -> jax.Array:
            value = blocks.dot(part(rows, first), part(rows, second).T)
            place = jnp.clip((value - low) * scale, 0, _BINS - 1).astype(jnp.int32)
            same = part(labels, first)[:, None] == part(labels, second)[None]
            place = place + jnp.where(same, 0, _BINS)
            count = part(weights, first)[:, None] * part(weights, second)[None]
            position = jnp.arange(size)
            above = (position + first * size)[:, None] < (position + second * size)[
                None
            ]
            count = jnp.where(above, count, 0)
            return counts.at[place.reshape(-1)].add(count.reshape(-1))

        # A bin counts less than 2^24 pairs of a row of tiles, which float32 holds.
        counts = jnp.zeros(2 * _BINS, weights.dtype)
        counts = jax.lax.fori_loop(first, tiles, down, counts)
        return first + 1, counts.reshape(2, _BINS)

    _, counts = jax.lax.scan(across, 0, None, length=tiles)
    return counts[:, 0], counts[:, 1]


def _spearman(same: np.ndarray, other: np.ndarray) -> float:
    """Return rho from counts of pairs per bin, by ascending correlation."""
    both = same + other
    pairs, share = both.sum(), same.sum() / both.sum()
    if not 0 < share < 1:
        raise InputError(
            "A rank correlation needs pairs within a class and between classes",
            found="only classes with one image" if share == 0 else "a single class",
        )
    ranks = np.cumsum(both) - (both - 1) / 2
    mean = (pairs + 1) / 2
    variance = np.sum(both * (ranks - mean) ** 2) / pairs
    if variance == 0:
        raise InputError(
            "All pairs of images are equally similar, so they have no ranks",
            fix="check the weights and the input range of the network",
        )
    excess = np.sum(same * (ranks - mean)) / same.sum()
    return float(excess / np.sqrt(variance) * np.sqrt(share / (1 - share)))
