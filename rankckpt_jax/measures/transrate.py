"""TransRate (Huang et al. 2022, ICML): coding rate of the features less of each class.

N images, D dimensions, Z [n, D] a subset of the centered features,

    R(Z)      = 1/2 log det(I + Z'Z / (n eps))                  (their equation 6)
    TransRate = R(F) - 1/C sum_c R(F_c)                         (their equation 7)

where F_c are the features of class c about the mean of all features, and eps = 1e-4. As
in published code, classes have equal weights. If the mean variance of a dimension is
below eps, both rates are about 0, and a warning says so.

Cost: 2 N D^2 FLOP for R(F), shared, and D^3 / 3. Classes of n images cost 2 N n D if
n < D (since Z Z' has the same determinant), else 2 N D^2. Range: at least 0 for
balanced classes; grows with D. Higher is better.
"""

from __future__ import annotations

import numpy as np

from rankckpt_jax.measures import regimes
from rankckpt_jax.measures.registry import Inputs, Result, register
from rankckpt_jax.measures.statistics import scaling, symmetric
from rankckpt_jax.measures.statistics.class_statistics import Statistics


@register(
    "transrate",
    cost="N D^2 + D^3",
    uses_weights=True,
    regimes=(regimes.FEW_IMAGES, regimes.SINGLE_IMAGES),
)
def transrate(inputs: Inputs, eps: float = 1e-4) -> Result:
    """Return TransRate of features [N, D] and labels [N] with distortion `eps`."""
    statistics = inputs.statistics
    scaled = statistics.scatter / (statistics.total * eps)
    warning = scaling.warn_if(
        bool(np.trace(scaled) < len(scaled)), f"the distortion eps = {eps:g}"
    )
    scaled.flat[:: len(scaled) + 1] += 1
    rate = symmetric.log_det(scaled) / 2
    # One BLAS thread; see `symmetric`.
    with symmetric.one_blas_thread():
        rates = [
            _class_rate(statistics, label, rows, eps)
            for label, rows in enumerate(statistics.groups)
        ]
    score = rate - float(np.mean(rates))
    return Result(float(score), {"rate": float(rate)}, warning)


def _class_rate(
    statistics: Statistics, label: int, rows: np.ndarray, eps: float
) -> float:
    """Return R of the class with these rows, whose features are about the mean m."""
    x, weights = statistics.centered[rows], statistics.weights[rows]
    total, rest = statistics.counts[label], statistics.rest
    if len(x) <= x.shape[1]:
        z = (x - rest) * np.sqrt(weights)[:, None]
        product = z @ z.T
    else:
        product = symmetric.gram(x, weights)
        # The features are centered about a rounded mean.
        shift = np.outer(total * (statistics.class_means[label] + rest), rest)
        product += total * np.outer(rest, rest) - shift - shift.T
    product /= total * eps
    product.flat[:: len(product) + 1] += 1
    return float(np.sum(np.log(np.diagonal(np.linalg.cholesky(product)))))
