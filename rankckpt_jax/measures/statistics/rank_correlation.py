"""Spearman's correlation between the similarity of images and that of their labels.

N images, R [N, D] features with each row centered and of length 1, so that R R' holds
the correlations between images. The correlations of one-hot labels have two values, 1
within a class and -1 / (C - 1) between classes. Spearman's correlation over the
M = N (N - 1) / 2 pairs is then Pearson's correlation of a rank and a binary variable,

    rho = (mean rank of pairs of one class - mean rank) / s_rank sqrt(p / (1 - p)),

where p is the fraction of pairs of one class. No pair needs to be stored. Tile by tile,
correlations are counted in 2^16 bins, separately within and between classes. The pairs
of a bin share their mean rank, like ties. Bins span the values of a sample of rows, and
the outer bins include all values beyond.

Several labels or a number per image have distances d of more than two values. Their
fourth roots are counted in 2^16 bins too, which are narrow for small distances. A
second pass over the tiles then sums products of the two ranks of each pair.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rankckpt_jax.errors import InputError
from rankckpt_jax.measures.statistics import blocks, scaling

_TILE = 512
_BINS = 1 << 16
_SAMPLE = 128
"""Rows whose correlations determine the span of the bins."""


def with_labels(features: np.ndarray, labels: np.ndarray) -> float:
    """Return Spearman's rho over all pairs of images, in [-1, 1].

    Args:
      features: float [N, D].
      labels: int [N].

    Raises:
      InputError: The correlation is not defined: there is one feature, all features of
        each image are equal, or all pairs (or none) are of one class.
    """
    tiles = _split(features)
    label = jnp.asarray(tiles.pad(labels), jnp.int32)
    histograms = _histograms(
        tiles.rows, label, len(labels), tiles.number, tiles.size, *tiles.span
    )
    same, other = (np.asarray(h, np.float64).sum(axis=0) for h in histograms)
    return _spearman(same, other)


def with_distances(features: np.ndarray, columns: np.ndarray) -> float:
    """Return Spearman's rho of similar features and near rows of the target.

    Args:
      features: float [N, D].
      columns: float [N, T], whose Euclidean distances are ranked. Up to 8192 columns of
        0 and 1 have distances in bins of their own.

    Raises:
      InputError: As for `with_labels`.
    """
    tiles = _split(features)
    # Labels are not scaled, so that their squared distances are exact.
    longest = np.ptp(columns) if columns.shape[1] == 1 else np.sqrt(columns.shape[1])
    target = jnp.asarray(tiles.pad(columns), tiles.rows.dtype)
    given = tiles.rows, target, len(columns)
    shape = tiles.number, tiles.size, *tiles.span, float(longest) ** 0.25
    histograms = _distance_histograms(*given, *shape)
    counts = [np.asarray(h, np.float64).sum(axis=0) for h in histograms]
    tables = (jnp.asarray(_standard_ranks(c), tiles.rows.dtype) for c in counts)
    sums = _rank_products(*given, *tables, *shape)
    # Distant rows have high ranks.
    return -float(np.asarray(sums, np.float64).sum() / counts[0].sum())


class _Tiles(NamedTuple):
    """Images in tiles.

    Attributes:
      rows: Centered rows of length 1, padded: [number * size, D].
      number: Number of tiles.
      size: Rows of a tile.
      span: Lowest and highest value of the bins of correlations.
    """

    rows: jax.Array
    number: int
    size: int
    span: tuple[float, float]

    def pad(self, array: np.ndarray) -> np.ndarray:
        """Append zeros to [N, ...], up to a full tile."""
        missing = self.number * self.size - len(array)
        return np.pad(array, ((0, missing), *((0, 0),) * (array.ndim - 1)))


def _split(features: np.ndarray) -> _Tiles:
    n, d = features.shape
    if d < 2:
        raise InputError(
            "Correlations between images need at least two features", found=f"{d}"
        )
    normalized = np.asarray(_normalized(scaling.to_unit(features)))
    if not normalized.any():
        raise InputError(
            "All features of each image are equal, so images have no correlation",
            fix="check the weights and the input range of the network",
        )
    size = min(_TILE, -(-n // 8) * 8)
    count = -(-n // size)
    padding = count * size - n
    rows = jnp.asarray(np.pad(normalized, ((0, padding), (0, 0))))
    return _Tiles(rows, count, size, _span(rows, n))


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


def _part(array: jax.Array, index: Any, size: int) -> jax.Array:
    """Return tile number `index` of an array."""
    return jax.lax.dynamic_slice_in_dim(array, index * size, size)


def _place(value: jax.Array, low: Any, high: Any) -> jax.Array:
    """Return the bins of values."""
    scale = _BINS / jnp.maximum(high - low, 1e-30)
    return jnp.clip((value - low) * scale, 0, _BINS - 1).astype(jnp.int32)


def _scan_pairs(
    visit: Callable[[Any, Any, Any], Any],
    empty: jax.Array,
    images: jax.Array,
    tiles: int,
    size: int,
) -> jax.Array:
    """Accumulate over pairs of tiles i <= j, for each i: [tiles, ...].

    Args:
      visit: Maps the accumulated value, i, j and the number of times that each pair of
        images counts, 0 or 1 in float32 [size, size], to the next value.
      empty: The first value.
      images: Number of images; the rest of the last tile is padding.
      tiles: Number of tiles.
      size: Rows of a tile.
    """
    position = jnp.arange(size)

    def across(first: Any, _: None) -> Any:
        def down(second: Any, value: Any) -> Any:
            row, column = position + first * size, position + second * size
            # Each pair once, and no image with itself.
            is_pair = (row[:, None] < column[None]) & (column < images)[None]
            return visit(value, (first, second), is_pair.astype(jnp.float32))

        return first + 1, jax.lax.fori_loop(first, tiles, down, empty)

    return jax.lax.scan(across, 0, None, length=tiles)[1]


@functools.partial(jax.jit, static_argnames=("tiles", "size"))
def _histograms(
    rows: jax.Array,
    labels: jax.Array,
    images: jax.Array,
    tiles: int,
    size: int,
    low: float,
    high: float,
) -> tuple[jax.Array, jax.Array]:
    """Return counts of pairs within and between classes: [tiles, bins] each."""

    def visit(counts: jax.Array, pair: Any, count: jax.Array) -> jax.Array:
        one, other = (_part(rows, index, size) for index in pair)
        place = _place(blocks.dot(one, other.T), low, high)
        one, other = (_part(labels, index, size) for index in pair)
        place = place + jnp.where(one[:, None] == other[None], 0, _BINS)
        return counts.at[place.reshape(-1)].add(count.reshape(-1))

    # A bin counts less than 2^24 pairs of a row of tiles, which float32 holds.
    counts = jnp.zeros(2 * _BINS, jnp.float32)
    counts = _scan_pairs(visit, counts, images, tiles, size)
    return counts[:, :_BINS], counts[:, _BINS:]


def _places(
    rows: jax.Array,
    target: jax.Array,
    pair: Any,
    size: int,
    low: float,
    high: float,
    root: float,
) -> tuple[jax.Array, jax.Array]:
    """Return the bins of correlations and of distances of a pair of tiles.

    `root` is the fourth root of the longest possible distance.
    """
    one, other = (_part(rows, index, size) for index in pair)
    correlations = _place(blocks.dot(one, other.T), low, high)
    one, other = (_part(target, index, size) for index in pair)
    if target.shape[1] == 1:
        distance = jnp.abs(one - other.T)
    else:
        own = jnp.sum(one**2, axis=1)[:, None] + jnp.sum(other**2, axis=1)[None]
        distance = jnp.sqrt(jnp.maximum(own - 2 * blocks.dot(one, other.T), 0))
    return correlations, _place(jnp.sqrt(jnp.sqrt(distance)), 0.0, root)


@functools.partial(jax.jit, static_argnames=("tiles", "size"))
def _distance_histograms(
    rows: jax.Array,
    target: jax.Array,
    images: jax.Array,
    tiles: int,
    size: int,
    low: float,
    high: float,
    root: float,
) -> tuple[jax.Array, jax.Array]:
    """Return counts of pairs per correlation and per distance: [tiles, bins] each."""

    def visit(counts: jax.Array, pair: Any, count: jax.Array) -> jax.Array:
        one, other = _places(rows, target, pair, size, low, high, root)
        flat = count.reshape(-1)
        counts = counts.at[one.reshape(-1)].add(flat)
        return counts.at[other.reshape(-1) + _BINS].add(flat)

    counts = jnp.zeros(2 * _BINS, jnp.float32)
    counts = _scan_pairs(visit, counts, images, tiles, size)
    return counts[:, :_BINS], counts[:, _BINS:]


@functools.partial(jax.jit, static_argnames=("tiles", "size"))
def _rank_products(
    rows: jax.Array,
    target: jax.Array,
    images: jax.Array,
    similar: jax.Array,
    distant: jax.Array,
    tiles: int,
    size: int,
    low: float,
    high: float,
    root: float,
) -> jax.Array:
    """Return sums of products of the ranks [bins] of both kinds: [tiles]."""

    def visit(total: jax.Array, pair: Any, count: jax.Array) -> jax.Array:
        one, other = _places(rows, target, pair, size, low, high, root)
        ranks = similar[one] * distant[other]
        return total + jnp.sum(count.astype(ranks.dtype) * ranks)

    return _scan_pairs(visit, jnp.zeros((), rows.dtype), images, tiles, size)


def _standard_ranks(counts: np.ndarray) -> np.ndarray:
    """Return the ranks of bins with mean 0 and standard deviation 1 over the pairs."""
    pairs = counts.sum()
    ranks = np.cumsum(counts) - (counts - 1) / 2 - (pairs + 1) / 2
    variance = counts @ ranks**2 / pairs
    if variance == 0:
        raise InputError(
            "All pairs of images are equally similar, so they have no ranks",
            fix="check the weights and the input range of the network",
        )
    return ranks / np.sqrt(variance)


def _spearman(same: np.ndarray, other: np.ndarray) -> float:
    """Return rho from counts of pairs per bin, by ascending correlation."""
    both = same + other
    share = same.sum() / both.sum()
    if not 0 < share < 1:
        raise InputError(
            "A rank correlation needs pairs within a class and between classes",
            found="only classes with one image" if share == 0 else "a single class",
        )
    ranks = _standard_ranks(both)
    excess = np.sum(same * ranks) / same.sum()
    return float(excess * np.sqrt(share / (1 - share)))
