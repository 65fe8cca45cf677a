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

Cost: 2 N D^2 FLOP, and D^3 / 3 per fold; with shrinkage N D^2 and sum_c n_c^2 D more
per fold. Range: [0, 1]. Higher is better.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import scipy.linalg

from rankckpt_jax.errors import InputError, unknown_name
from rankckpt_jax.measures import regimes
from rankckpt_jax.measures.registry import FRACTION, Inputs, Options, Result, register
from rankckpt_jax.measures.statistics import scaling, symmetric
from rankckpt_jax.measures.statistics.class_statistics import Statistics

SHRINKAGES = ("auto", "none", "ledoit_wolf")

_IMAGES_PER_DIMENSION = 10
"""Training images per dimension from which a covariance needs no shrinkage.

With features of MobileNet v1 on Caltech101, shrinkage gains 3.5 points of accuracy at 5
images per dimension, 2.0 at 8, and nothing at 10.
"""

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
    folds = assign_folds(labels, num_folds)
    x = statistics.centered
    if shrinkage == "ledoit_wolf":
        # Squares of float32 could overflow or vanish.
        x = scaling.to_unit(x)
    sums = statistics.class_sums(x)
    correct = np.zeros(count, bool)
    for fold in range(num_folds):
        rows = np.flatnonzero(folds == fold)
        held_out, own = statistics.take(rows), x[rows]
        counts = statistics.sizes - held_out.sizes
        means = sums - held_out.class_sums(own)
        means /= np.maximum(counts, 1)[:, None]
        if shrinkage == "ledoit_wolf":
            train = [group[folds[group] != fold] for group in statistics.groups]
            covariance = _shrunk(x, train, means)
        else:
            covariance = _plain(statistics, own, counts, means)
        weights = _solve(covariance, means)
        # No image is assigned to a class without training images.
        with np.errstate(divide="ignore"):
            priors = np.log(counts / counts.sum())
        offsets = priors - np.sum(weights * means, axis=1) / 2
        for start in range(0, len(rows), _BLOCK):
            part = slice(start, start + _BLOCK)
            joint = own[part] @ weights.T + offsets
            correct[rows[part]] = np.argmax(joint, axis=1) == held_out.labels[part]
    details = {"num_folds": num_folds, "shrinkage": shrinkage}
    return Result(float(np.mean(correct)), details)


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


def _plain(
    statistics: Statistics, held_out: np.ndarray, counts: np.ndarray, means: np.ndarray
) -> np.ndarray:
    """Return W / (n - C) of the training images, float64 [D, D].

    Args:
      statistics: Statistics of all images.
      held_out: Rows of `statistics.centered` that are not in training, [M, D].
      counts: Training images of each class, [C].
      means: Means [C, D] of their rows of `statistics.centered`.
    """
    rest = statistics.rest
    within = statistics.scatter + statistics.num_images * np.outer(rest, rest)
    within -= symmetric.gram(held_out)
    within -= (counts[:, None] * means).T @ means
    return within / max(counts.sum() - np.sum(counts > 0), 1)


def _shrunk(
    x: np.ndarray, groups: Sequence[np.ndarray], means: np.ndarray
) -> np.ndarray:
    """Return the weighted sum of the shrunk covariances of the classes, [D, D].

    Shrinking bounds the condition number, so the products are computed in the dtype of
    the features.

    Args:
      x: Features [N, D].
      groups: Training images of each class, C arrays of rows.
      means: Means [C, D] of the classes.
    """
    total, start = sum(map(len, groups)), 0
    scaled, diagonal = np.empty((total, x.shape[1]), x.dtype), np.zeros(x.shape[1])
    for group, mean in zip(groups, means, strict=True):
        deviations = x[group] - mean.astype(x.dtype)
        count = max(len(group), 1)
        variances = np.sum(deviations**2, axis=0, dtype=np.float64) / count
        varies = variances > 0
        inverse = np.where(varies, 1 / np.sqrt(np.where(varies, variances, 1)), 0)
        shrinkage = _ledoit_wolf(deviations * inverse.astype(x.dtype))
        # The mean variance of the standardized columns.
        target = shrinkage * varies.mean() * len(group) / total
        diagonal += target * variances
        factor = np.sqrt((1 - shrinkage) / total)
        scaled[start : start + len(group)] = deviations * x.dtype.type(factor)
        start += len(group)
    covariance = (scaled.T @ scaled).astype(np.float64)
    covariance.flat[:: len(covariance) + 1] += diagonal
    return covariance


def _ledoit_wolf(z: np.ndarray) -> float:
    """Return the shrinkage of a class, in [0, 1].

    With S = Z'Z / n and its mean variance m, it is b / d, limited to 1, of

        d = (|S|^2 - D m^2) / D,   b = (sum_i |z_i|^4 / n - |S|^2) / (D n).

    |Z'Z| is also |Z Z'|, which costs less for fewer images than dimensions.

    Args:
      z: Standardized training images of the class, [n, D].
    """
    count, size = max(len(z), 1), z.shape[1]
    if len(z) <= size:
        with symmetric.one_blas_thread():
            products = (z @ z.T).astype(np.float64)
    else:
        products = symmetric.gram(z)
    norms = np.einsum("ij,ij->i", z, z, dtype=np.float64)
    squares = np.sum(products**2) / count**2
    distance = (squares - (norms.sum() / count) ** 2 / size) / size
    noise = (np.sum(norms**2) / count - squares) / (size * count)
    noise = min(noise, distance)
    return noise / distance if noise > 0 and size > 1 else 0.0


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
