"""TMI (Xu and Kang 2023, arXiv 2308.05986): entropy of the features within classes.

N images, D dimensions, classes of n_c images, r_i the distance of image i to its k-th
nearest image of the same class in the maximum norm. With the estimator of Kozachenko
and Leonenko (their section 4.2),

    h_c = psi(n_c) - psi(k) + D / n_c sum_{i in c} log(2 r_i)
    TMI = H(F | y) = sum_c n_c / N h_c

Images with k copies have a distance of 0, which counts as the smallest positive one.
Classes with no more than k images are left out of the sum and of N; a warning has their
number. The option `variant` is one of

    paper       as above
    normalized  rows of the features are divided by their Euclidean lengths
    published   the authors' code: distances below 1 count as 1, the sum over classes is
                divided by their number, and a class with one image has h_c = 0

Features of a times the size add D log a, so checkpoints whose features differ in scale
or dimension are not comparable. A warning says so, except for `normalized`.

Cost: 2 sum_c n_c^2 D FLOP at most, in tiles of images of one class (`class_tiles`).
Range: unbounded. Higher is better: variance within classes is taken for room to learn.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from rankckpt_jax.errors import InputError, unknown_name
from rankckpt_jax.measures import regimes
from rankckpt_jax.measures.registry import Inputs, Options, Regime, Result, register
from rankckpt_jax.measures.statistics import class_tiles, scaling

VARIANTS = ("paper", "normalized", "published")

_PUBLISHED_LEAST = 1.0
"""Smallest distance in the authors' code."""

_DIMENSIONS = 16
"""Dimensions per step of a tile of distances: enough for a CPU's registers."""


def _scale(inputs: Inputs, result: Result) -> str:
    if result.details["variant"] == "normalized":
        return ""
    return (
        "The score contains the logarithm of the scale of the features times their "
        "dimension, so it only compares networks whose features have the same scale "
        "and dimension. Set `variant` to normalized, or compare it with another "
        "measure."
    )


SCALE = Regime("scale", _scale)


def _check(options: Options) -> None:
    variant = options.get("variant", VARIANTS[0])
    if variant not in VARIANTS:
        raise unknown_name("variant", variant, VARIANTS, "measure_options.tmi.variant")


@register(
    "tmi",
    cost="N^2 D / C",
    check=_check,
    regimes=(
        SCALE,
        regimes.FEW_IMAGES,
        regimes.copies("distances within classes are too small"),
    ),
)
def tmi(inputs: Inputs, k: int = 3, variant: str = "paper") -> Result:
    """Return TMI of features [N, D] and labels [N], in nats.

    Args:
      inputs: Features [N, D] and labels [N].
      k: Rank of the neighbor whose distance is used, at least 1.
      variant: One of VARIANTS.

    Raises:
      InputError: No class has more than k images, or each image has k copies.
    """
    statistics = inputs.statistics
    sizes, labels = statistics.sizes, statistics.labels
    kept = sizes > k
    if k < 1 or not kept.any():
        raise InputError(
            f"tmi needs a class with more than k = {k} images, and k of at least 1",
            where="measure_options.tmi.k",
            expected=f"1 to {sizes.max() - 1}",
            found=f"{k}",
            fix="lower `k` or add images",
        )
    if variant == "normalized":
        x, scale = scaling.unit_rows(statistics.features), 1.0
    else:
        x = statistics.centered
        scale = scaling.power_of_two(float(np.max(np.abs(x))))
    used = kept[labels]
    groups = [group for group in statistics.groups if len(group) > k]
    distances = scale * _kth_distances(scaling.divide(x, scale), groups, k)
    positive = distances[used & (distances > 0)]
    if not len(positive):
        raise InputError(
            f"Each image has k = {k} copies in its class, so tmi is not defined",
            fix="remove duplicates, and check the input range of the network",
        )
    least = _PUBLISHED_LEAST if variant == "published" else positive.min()
    logs = np.log(2 * np.maximum(distances, least))
    constants = scipy.special.digamma(sizes) - scipy.special.digamma(k)
    entropies = (constants[labels] + x.shape[1] * logs)[used]
    averaged = len(entropies)
    if variant == "published":
        averaged = np.sum(kept | (sizes == 1)) * len(labels)
    details = {"variant": variant, "k": k, "num_classes": int(kept.sum())}
    warning = _describe_left_out(kept, k)
    return Result(float(np.sum(entropies) / averaged), details, warning)


def _describe_left_out(kept: np.ndarray, k: int) -> str:
    if kept.all():
        return ""
    return (
        f"{np.sum(~kept)} of {len(kept)} classes have no more than k = {k} images and "
        "were left out. Add images or lower `k`."
    )


def _kth_distances(x: np.ndarray, groups: list[np.ndarray], k: int) -> np.ndarray:
    """Return the distance of each row in `groups` to its k-th neighbor in its group.

    Args:
      x: float [N, D].
      groups: Indices of rows; more than k in each.
      k: Rank of the neighbor.

    Returns:
      float64 [N]; 0 for rows of no group.
    """
    tiles = class_tiles.divide(groups)
    padding = -x.shape[1] % _DIMENSIONS
    gathered = np.pad(tiles.gather(x), ((0, 0), (0, 0), (0, padding)))
    # Dimensions first, so that a CPU's vector holds one dimension of several images.
    columns = np.ascontiguousarray(gathered.transpose(0, 2, 1))
    valid = tiles.rows >= 0
    distances = np.zeros(len(x))
    distances[tiles.rows[valid]] = np.asarray(_nearest(columns, valid, tiles.pairs, k))[
        valid
    ]
    return distances


@functools.partial(jax.jit, static_argnames="k")
def _nearest(x: jax.Array, valid: jax.Array, pairs: jax.Array, k: int) -> jax.Array:
    """Return the distance of each image to its k-th neighbor in its class.

    Args:
      x: float [T, D, B], tiles of images.
      valid: bool [T, B], False for padding.
      pairs: int32 [P, 2], the pairs of tiles i <= j of one class.
      k: Rank of the neighbor.

    Returns:
      [T, B], infinite if there are fewer than k.
    """
    size = x.shape[2]
    x = x.reshape(len(x), -1, _DIMENSIONS, size)

    def tile(i: jax.Array, j: jax.Array) -> jax.Array:
        """Return the distances of the images of two tiles: [B, B]."""

        def step(most: jax.Array, part: tuple[jax.Array, jax.Array]) -> Any:
            for one, other in zip(*part, strict=True):
                most = jnp.maximum(most, jnp.abs(one[:, None] - other[None]))
            return most, None

        return jax.lax.scan(step, jnp.zeros((size, size), x.dtype), (x[i], x[j]))[0]

    def merge(best: jax.Array, i: jax.Array, new: jax.Array) -> jax.Array:
        """Keep the k smallest distances of tile i and of `new` [B, B]."""
        both = jnp.concatenate([best[i], new], axis=1)
        return best.at[i].set(-jax.lax.top_k(-both, k)[0])

    def visit(best: jax.Array, pair: jax.Array) -> tuple[jax.Array, None]:
        i, j = pair
        distances = tile(i, j)
        rows = jnp.where(valid[j][None], distances, jnp.inf)

        def within(best: jax.Array) -> jax.Array:
            return merge(best, i, jnp.where(jnp.eye(size, dtype=bool), jnp.inf, rows))

        def between(best: jax.Array) -> jax.Array:
            columns = jnp.where(valid[i][:, None], distances, jnp.inf).T
            return merge(merge(best, i, rows), j, columns)

        return jax.lax.cond(i == j, within, between, best), None

    best = jnp.full((len(x), size, k), jnp.inf, x.dtype)
    return jax.lax.scan(visit, best, pairs)[0][:, :, k - 1]
