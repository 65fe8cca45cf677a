"""TransRate (Huang et al. 2022, ICML): coding rate of the features less of each class.

N images, D dimensions, Z [n, D] a subset of the centered features,

    R(Z)      = 1/2 log det(I + Z'Z / (n eps))                  (their equation 6)
    TransRate = R(F) - 1/C sum_c R(F_c)                         (their equation 7)

where F_c are the features of class c about the mean of all features, and eps = 1e-4. As
in published code, classes have equal weights. Several labels per image: F_c are the
features of the images with label c, which are as many sets as labels. If the mean
variance of a dimension is below eps, both rates are about 0, and a warning says so.

Cost: 2 N D^2 FLOP for R(F), shared, and D^3 / 3. Classes of n images cost 2 N n D if
n < D (since Z Z' has the same determinant), else 2 N D^2. Range: at least 0 for
balanced classes; grows with D. Higher is better. It does not grow with
the separation of two classes, and a warning says so.
"""

from __future__ import annotations

import numpy as np

from rankckpt_jax.data.targets import MULTI_LABEL
from rankckpt_jax.measures import regimes
from rankckpt_jax.measures.registry import LABELS, Inputs, Regime, Result, register
from rankckpt_jax.measures.statistics import scaling, symmetric
from rankckpt_jax.measures.statistics.class_statistics import Statistics


def _two_classes(inputs: Inputs, result: Result) -> str:
    """Describe two classes, whose means lie on opposite sides of the mean of all."""
    if inputs.num_classes > 2:
        return ""
    return (
        "With two classes, the offset of a class from the mean of all features adds to "
        "both rates alike, so the score does not grow as the classes separate. Use "
        "another measure."
    )


TWO_CLASSES = Regime("two classes", _two_classes)


@register(
    "transrate",
    cost="N D^2 + D^3",
    targets=LABELS,
    undefined="compares the features of classes or labels",
    regimes=(TWO_CLASSES, regimes.FEW_IMAGES, regimes.SINGLE_IMAGES),
)
def transrate(inputs: Inputs, eps: float = 1e-4) -> Result:
    """Return TransRate of features [N, D] and labels [N] with distortion `eps`."""
    statistics = inputs.statistics
    scaled = statistics.scatter / (statistics.num_images * eps)
    warning = scaling.warn_if(
        bool(np.trace(scaled) < len(scaled)), f"the distortion eps = {eps:g}"
    )
    scaled.flat[:: len(scaled) + 1] += 1
    rate = symmetric.log_det(scaled) / 2
    # One BLAS thread; see `symmetric`.
    with symmetric.one_blas_thread():
        groups = statistics.groups
        if inputs.target == MULTI_LABEL:
            groups = [np.flatnonzero(has) for has in inputs.labels.T]
        rates = [_rate(statistics, rows, eps) for rows in groups]
    score = rate - float(np.mean(rates))
    return Result(float(score), {"rate": float(rate)}, warning)


def _rate(statistics: Statistics, rows: np.ndarray, eps: float) -> float:
    """Return R of some images, whose features are about the mean m of all."""
    x, rest = statistics.centered[rows], statistics.rest
    if len(x) <= x.shape[1]:
        z = x - rest
        product = z @ z.T
    else:
        product = symmetric.gram(x)
        # The features are centered about a rounded mean.
        shift = np.outer(x.sum(axis=0, dtype=np.float64), rest)
        product += len(x) * np.outer(rest, rest) - shift - shift.T
    product /= len(x) * eps
    product.flat[:: len(product) + 1] += 1
    return float(np.sum(np.log(np.diagonal(np.linalg.cholesky(product)))))
