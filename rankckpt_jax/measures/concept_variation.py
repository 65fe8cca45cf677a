"""Concept variation (Vilalta 1999): do near images have different classes?

N images, D dimensions, columns of the features scaled to [0, 1], distances d_ij:

    w_ij = 2^(-2 d_ij / (sqrt D - d_ij)),  w_ii = 0
    cv_i = sum_j w_ij 1[y_i != y_j] / sum_j w_ij                (authors' code: pymfe)
    score = - mean_i cv_i

Singh et al. (2025, arXiv 2502.06925) rank checkpoints by it. Their published code takes
the standard deviation over images instead of the mean, of a weighted distance. The mean
is an accuracy of nearest neighbors with soft votes. Constant columns are 0. An image
without weights has the value of equal weights.

Cost: N^2 D FLOP, in tiles. Range: [-1, 0]. Higher is better. Published scores are
positive, and lower is better there. If there are more than `max_images` images, a
stratified subset is used (`sampling.subset`).
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rankckpt_jax.measures import regimes
from rankckpt_jax.measures.registry import UNIT_SCALE, Inputs, Regime, Result, register
from rankckpt_jax.measures.statistics import blocks, sampling

_TILE = 512
"""Rows of a tile."""

_LEAST_DIFFERENCE = 1e-9
"""Smallest sqrt D - d_ij, as in pymfe."""


def _single_images(inputs: Inputs, result: Result) -> str:
    if inputs.statistics.sizes.max() > 1:
        return ""
    return (
        "Each class has one image, so all other images have another class and the "
        "score is -1 for any features. It cannot order checkpoints. Add images."
    )


def _chance(inputs: Inputs, result: Result) -> str:
    chance = result.details["chance"]
    if result.score > chance:
        return ""
    return (
        f"The score is not above {chance:.4g}, that of equal weights for all images, "
        "so it is at chance. Check the preprocessing and the image size, or use "
        "another measure."
    )


SINGLE_IMAGES = Regime("single images", _single_images, saturates=True)
CHANCE = Regime("chance", _chance)


@register(
    "concept_variation",
    cost="N^2 D",
    bounds=(-1.0, 0.0),
    tolerance=UNIT_SCALE,
    regimes=(
        SINGLE_IMAGES,
        CHANCE,
        regimes.copies("images have copies with the largest weight"),
    ),
)
def concept_variation(
    inputs: Inputs, max_images: int = sampling.PAIRED_IMAGES
) -> Result:
    """Return minus the mean concept variation of features [N, D] and labels [N].

    Args:
      inputs: Features [N, D] and labels [N]; the seed selects the images.
      max_images: Maximum number of images.
    """
    statistics = inputs.statistics
    rows = sampling.subset(statistics.labels, max_images, inputs.seed)
    labels, count = statistics.labels[rows], len(rows)
    x = _to_unit_range(statistics.features[rows])
    tile = min(_TILE, -(-count // 8) * 8)
    padding = -count % tile
    tiles = (count + padding) // tile
    own, total = _sums(
        np.pad(x, ((0, padding), (0, 0))),
        np.pad(labels, (0, padding)),
        count,
        np.stack(np.triu_indices(tiles), axis=1).astype(np.int32),
        float(np.sqrt(x.shape[1])),
        tile,
    )
    own, total = (np.asarray(sums, float)[:count] for sums in (own, total))
    sizes = np.bincount(labels, minlength=inputs.num_classes)
    equal = 1 - (sizes[labels] - 1) / max(count - 1, 1)
    has_weights = total > 0
    variation = np.where(has_weights, 1 - own / np.where(has_weights, total, 1), equal)
    details = {"chance": -float(equal.mean()), "num_images": count}
    return Result(-float(np.mean(variation)), details)


def _to_unit_range(x: np.ndarray) -> np.ndarray:
    """Scale each column to [0, 1] and subtract its mean; constant columns are 0."""
    low = x.min(axis=0)
    width = x.max(axis=0) - low
    scaled = (x - low) / np.where(width > 0, width, 1)
    # Centering makes the products smaller, whose differences are distances.
    return scaled - scaled.mean(axis=0)


@functools.partial(jax.jit, static_argnames="size")
def _sums(
    x: jax.Array,
    labels: jax.Array,
    count: int,
    pairs: jax.Array,
    longest: float,
    size: int,
) -> tuple[jax.Array, jax.Array]:
    """Return the weights of the images of the own class, and of all, summed: [rows].

    Args:
      x: [rows, D]; the first `count` are images, the others padding.
      labels: int [rows].
      count: Number of images.
      pairs: int32 [P, 2], all pairs of tiles i <= j.
      longest: sqrt D.
      size: Rows of a tile.
    """
    norms = jnp.sum(x * x, axis=1)
    is_image = jnp.arange(len(x)) < count

    def part(array: jax.Array, tile: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(array, tile * size, size)

    def visit(sums: Any, pair: jax.Array) -> tuple[Any, None]:
        i, j = pair
        product = blocks.dot(part(x, i), part(x, j).T)
        squares = part(norms, i)[:, None] + part(norms, j)[None] - 2 * product
        distance = jnp.sqrt(jnp.maximum(squares, 0))
        difference = jnp.maximum(longest - distance, _LEAST_DIFFERENCE)
        weight = jnp.exp2(-2 * distance / difference)
        position = jnp.arange(size)
        is_pair = part(is_image, i)[:, None] & part(is_image, j)[None]
        is_pair &= (position + i * size)[:, None] != (position + j * size)[None]
        weight = jnp.where(is_pair, weight, 0)
        same = part(labels, i)[:, None] == part(labels, j)[None]
        own = jnp.where(same, weight, 0)

        def add(sums: Any, tile: jax.Array, axis: int) -> Any:
            return tuple(
                jax.lax.dynamic_update_slice_in_dim(
                    total, part(total, tile) + values.sum(axis=axis), tile * size, 0
                )
                for total, values in zip(sums, (own, weight), strict=True)
            )

        sums = add(sums, i, 1)
        return jax.lax.cond(i == j, lambda s: s, lambda s: add(s, j, 0), sums), None

    zeros = jnp.zeros(len(x), x.dtype)
    return jax.lax.scan(visit, (zeros, zeros), pairs)[0]
