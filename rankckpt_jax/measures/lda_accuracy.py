"""LDA accuracy: held-out accuracy of a linear discriminant, by cross-validation.

N images, D dimensions, C classes. For each of `num_folds` folds, a discriminant of the
other images, with class means m_c, frequencies p_c and covariance S, predicts

    argmax_c x'S^-1 m_c - 1/2 m_c'S^-1 m_c + log p_c        (Hastie et al., section 4.3)

    score = fraction of the images whose class is predicted.

Other discriminants of this package are scored on the images that they were fitted to.
The folds are those of scikit-learn's StratifiedKFold without shuffling, so the order of
the images within each class selects them. There are no more folds than images in the
largest class. The option `shrinkage` chooses S:

    none         the pooled covariance within classes, W / (n - C), in its span, as
                 scikit-learn's solver "svd"
    ledoit_wolf  sum_c p_c S_c, where the covariance S_c of standardized class c is
                 shrunk by the estimate of Ledoit and Wolf (2004), as scikit-learn's
                 solver "lsqr" with shrinkage "auto"
    auto         ledoit_wolf with fewer than 10 training images per dimension, else none

W is the scatter of all images minus that of a fold, so the plain discriminants of all
folds take one pass. For a column that is constant within a class, published code of
Ledoit and Wolf's estimate assumes a variance of 1; here it is 0, so that the score does
not depend on the scale.

Cost: 2 N D^2 FLOP, and D^3 / 3 per fold; with shrinkage 2 N D^2 and 2 sum_c n_c^2 D per
fold. Range: [0, 1]. Higher is better.
"""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from rankckpt_jax.errors import InputError, unknown_name
from rankckpt_jax.measures import regimes
from rankckpt_jax.measures.registry import FRACTION, Inputs, Options, Result, register
from rankckpt_jax.measures.statistics import blocks, class_tiles, symmetric
from rankckpt_jax.measures.statistics.class_statistics import Statistics

SHRINKAGES = ("auto", "none", "ledoit_wolf")

_IMAGES_PER_DIMENSION = 10
"""Training images per dimension from which a covariance needs no shrinkage."""

_CONDITION = 1e-7
"""Smallest reciprocal condition number of S whose Cholesky factor is used."""

_LEAST_EIGENVALUE = 1e-8
"""Of S with standardized columns, as in scikit-learn: the square of its 1e-4."""

_BLOCK = 4096
"""Rows that are classified at once."""


def _check(options: Options) -> None:
    shrinkage = options.get("shrinkage", SHRINKAGES[0])
    if shrinkage not in SHRINKAGES:
        where = "measure_options.lda_accuracy.shrinkage"
        raise unknown_name("shrinkage", shrinkage, SHRINKAGES, where)


@register(
    "lda_accuracy",
    cost="N D^2 + D^3",
    holds_out=True,
    resampling="bootstrap",
    bounds=(0.0, 1.0),
    check=_check,
    tolerance=FRACTION,
    regimes=(regimes.MAJORITY, regimes.COPIES),
)
def lda_accuracy(inputs: Inputs, num_folds: int = 5, shrinkage: str = "auto") -> Result:
    """Return the held-out accuracy for features [N, D] and labels [N].

    Args:
      inputs: Features [N, D] and labels [N].
      num_folds: Number of folds, at least 2.
      shrinkage: One of SHRINKAGES.

    Raises:
      InputError: Each class has one image, or there are fewer than two folds.
    """
    statistics = inputs.statistics
    labels, largest = statistics.labels, int(statistics.sizes.max())
    if min(num_folds, largest) < 2:
        raise InputError(
            "lda_accuracy needs two folds and a class with two images",
            where="measure_options.lda_accuracy.num_folds",
            expected="at least 2 folds and 2 images in some class",
            found=f"{num_folds} folds, and {largest} images in the largest class",
        )
    num_folds = min(num_folds, largest)
    count, size = statistics.features.shape
    if shrinkage == "auto":
        few = count * (1 - 1 / num_folds) < _IMAGES_PER_DIMENSION * size
        shrinkage = "ledoit_wolf" if few else "none"
    covariance = _shrunk if shrinkage == "ledoit_wolf" else _plain
    folds = assign_folds(labels, num_folds)
    correct = np.zeros(count, bool)
    for fold in range(num_folds):
        held_out = folds == fold
        train = statistics.reweight((~held_out).astype(float))
        counts = train.counts
        means = train.class_sums(train.centered) / np.maximum(counts, 1)[:, None]
        weights = _solve(covariance(statistics, train, means), means)
        # No image is assigned to a class without training images.
        with np.errstate(divide="ignore"):
            priors = np.log(counts / train.total)
        offsets = priors - np.sum(weights * means, axis=1) / 2
        rows = np.flatnonzero(held_out)
        for start in range(0, len(rows), _BLOCK):
            part = rows[start : start + _BLOCK]
            joint = statistics.centered[part] @ weights.T + offsets
            correct[part] = np.argmax(joint, axis=1) == labels[part]

    def score(weights: np.ndarray) -> float:
        return float(np.average(correct, weights=weights))

    details = {"num_folds": num_folds, "shrinkage": shrinkage}
    return Result(score(np.ones(count)), details, reweighted=score)


def assign_folds(labels: np.ndarray, num_folds: int) -> np.ndarray:
    """Return the fold of each image: int [N]."""
    # Importing it takes a second.
    from sklearn.model_selection import StratifiedKFold

    folds = np.empty(len(labels), int)
    with warnings.catch_warnings():
        # Some classes may have fewer images than folds.
        warnings.simplefilter("ignore")
        splits = StratifiedKFold(num_folds).split(labels, labels)
        for fold, (_, held_out) in enumerate(splits):
            folds[held_out] = fold
    return folds


def _plain(statistics: Statistics, train: Statistics, means: np.ndarray) -> np.ndarray:
    """Return W / (n - C) of the training images, float64 [D, D].

    Args:
      statistics: Statistics of all images.
      train: Statistics with weights of 1 for training images, else 0.
      means: Means [C, D] of the classes; zeros for one without training images.
    """
    rest = statistics.rest
    within = statistics.scatter + statistics.total * np.outer(rest, rest)
    within -= symmetric.gram(statistics.centered[train.weights == 0])
    within -= (train.counts[:, None] * means).T @ means
    return within / max(train.total - np.sum(train.counts > 0), 1)


def _shrunk(statistics: Statistics, train: Statistics, means: np.ndarray) -> np.ndarray:
    """Return the weighted sum of the shrunk covariances of the classes, [D, D].

    Arguments are those of `_plain`.
    """
    labels, weights, counts = train.labels, train.weights, np.maximum(train.counts, 1)
    x = train.centered
    deviations = np.where(weights[:, None] > 0, x - means.astype(x.dtype)[labels], 0)
    variances = train.class_sums(deviations**2) / counts[:, None]
    varies = variances > 0
    inverse = np.where(varies, 1 / np.sqrt(np.where(varies, variances, 1)), 0)
    shrinkage = _ledoit_wolf(deviations * inverse.astype(x.dtype)[labels], train)
    # The mean variance of the standardized columns.
    target = shrinkage * varies.mean(axis=1) * train.counts / train.total
    covariance = symmetric.gram(
        deviations, weights * (1 - shrinkage[labels]) / train.total
    )
    covariance.flat[:: len(covariance) + 1] += target @ variances
    return covariance


def _ledoit_wolf(z: np.ndarray, train: Statistics) -> np.ndarray:
    """Return the shrinkage of each class, float64 [C], in [0, 1].

    With S = Z'Z / n and its mean variance m, it is b / d, limited to 1, of

        d = (|S|^2 - D m^2) / D,   b = (sum_i |z_i|^4 / n - |S|^2) / (D n).

    Args:
      z: Standardized training images and zeros for others, [N, D].
      train: Statistics with weights of 1 for training images, else 0.
    """
    size = z.shape[1]
    labels, counts = train.labels, np.maximum(train.counts, 1)
    norms = np.einsum("ij,ij->i", z, z, dtype=np.float64)
    sums = np.bincount(labels, norms) / counts
    fourth = np.bincount(labels, norms**2) / counts
    squares = _squares(z, train) / counts**2
    distance = (squares - sums**2 / size) / size
    noise = np.minimum((fourth - squares) / (size * counts), distance)
    shrunk = (noise > 0) & (size > 1)
    return np.where(shrunk, noise / np.where(shrunk, distance, 1), 0)


def _squares(z: np.ndarray, train: Statistics) -> np.ndarray:
    """Return |Z'Z|^2 of each class, float64 [C].

    It is also |Z Z'|^2, which costs less for classes of fewer images than dimensions.
    """
    # Tiles hold all images, so that all folds have one shape.
    tiles = class_tiles.divide(train.groups)
    pairs = tiles.pairs
    small = train.sizes[tiles.labels[pairs[:, 0]]] <= z.shape[1]
    products = np.asarray(_squared_products(tiles.gather(z), pairs[small]), float)
    twice = np.where(pairs[small, 0] < pairs[small, 1], 2, 1)
    result = np.bincount(
        tiles.labels[pairs[small, 0]], twice * products, train.num_classes
    )
    for label in np.flatnonzero(train.sizes > z.shape[1]):
        result[label] = np.sum(symmetric.gram(z[train.groups[label]]) ** 2)
    return result


@jax.jit
def _squared_products(tiles: jax.Array, pairs: jax.Array) -> jax.Array:
    """Return the sum of the squared products of the rows of two tiles, for each pair.

    Args:
      tiles: float [T, B, D].
      pairs: int32 [P, 2].
    """

    def visit(pair: jax.Array) -> jax.Array:
        return jnp.sum(blocks.dot(tiles[pair[0]], tiles[pair[1]].T) ** 2)

    return jax.lax.map(visit, pairs)


def _solve(covariance: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Return S^-1 m for means [C, D], in the span of S: float64 [C, D]."""
    deviations = np.sqrt(np.maximum(np.diagonal(covariance), 0))
    inverse = np.where(deviations > 0, 1 / np.where(deviations > 0, deviations, 1), 0)
    # The correlations, so that the result does not depend on the scale of a column.
    scaled = covariance * inverse * inverse[:, None]
    columns = (means * inverse).T
    lower = symmetric.factor(scaled, least=_CONDITION)
    with symmetric.one_blas_thread():
        if lower is not None:
            solved = scipy.linalg.cho_solve((lower, True), columns)
        else:
            values, vectors = np.linalg.eigh(scaled)
            kept = values > _LEAST_EIGENVALUE
            span = vectors[:, kept]
            solved = span @ ((span.T @ columns) / values[kept, None])
    return solved.T * inverse
