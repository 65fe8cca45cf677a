"""LogME (You et al. 2021, arXiv 2102.11005): evidence of Bayesian linear regression.

N images, D dimensions, F [N, D] features (not centered), t_c [N] the 0/1 targets of
class c. Weights have the prior N(0, 1/a), and b is the precision of the noise. With
F'F = V diag(s) V', z = V'F't_c / sqrt(s) and the residual r = t_c't_c - z'z, iterate

    gamma = sum_j b s_j / (a + b s_j)                           (their equation 3)
    m2    = sum_j s_j z_j^2 / (a/b + s_j)^2,   e2 = sum_j z_j^2 / (1 + s_j b/a)^2 + r
    a    <- gamma / m2,   b <- (N - gamma) / e2

until a/b changes by less than 0.1 %, for at most 11 steps (the fixed point of You et
al. 2022). LogME is the mean over the classes of

    1/N [D/2 log a + N/2 log b - 1/2 log det(a I + b F'F) - b/2 e2 - a/2 m2
         - N/2 log 2 pi]                                        (their equation 2)

Cost: 2 N D^2 FLOP, shared, and 4 D^3 / 3 + 4 D^2 C. Range: unbounded. Higher is better.
For F of rank k < D, published code omits the D - k zero eigenvalues from the
determinant but keeps D/2 log a; this implementation includes both in full. As in
published code, 1e-5 is added to both denominators.
"""

from __future__ import annotations

import numpy as np

from rankckpt_jax.measures.registry import Inputs, Result, register
from rankckpt_jax.measures.statistics import symmetric

_STEPS = 11
_TOLERANCE = 1e-3
_FLOOR = 1e-5


@register("logme", uses_weights=True)
def logme(inputs: Inputs) -> Result:
    """Return LogME of features [N, D] and labels [N]."""
    statistics = inputs.statistics
    count, mean = statistics.total, statistics.mean
    counts = statistics.counts
    # Column c is F't_c.
    sums = (counts[:, None] * (statistics.class_means + mean)).T
    values, projections = symmetric.projected(
        statistics.scatter + count * np.outer(mean, mean), sums
    )
    size = len(values)
    kept = slice(size - symmetric.rank(values, max(statistics.features.shape)), None)
    s = values[kept][:, None]
    squares = projections[kept] ** 2 / s
    residual = np.maximum(counts - squares.sum(axis=0), 0)

    def moments(ratio: np.ndarray) -> tuple[np.ndarray, ...]:
        gamma = np.sum(s / (s + ratio), axis=0)
        m2 = np.sum(s * squares / (ratio + s) ** 2, axis=0)
        e2 = np.sum(squares / (1 + s / ratio) ** 2, axis=0) + residual
        return gamma, m2, e2

    alpha, beta = np.ones_like(counts), np.ones_like(counts)
    m2, e2 = np.zeros_like(counts), np.zeros_like(counts)
    active = np.ones(len(counts), bool)
    for _ in range(_STEPS):
        ratio = alpha / beta
        gamma, new_m2, new_e2 = moments(ratio)
        m2, e2 = np.where(active, new_m2, m2), np.where(active, new_e2, e2)
        alpha = np.where(active, gamma / (new_m2 + _FLOOR), alpha)
        beta = np.where(active, (count - gamma) / (new_e2 + _FLOOR), beta)
        active &= np.abs(alpha / beta - ratio) > _TOLERANCE * ratio
        if not active.any():
            break
    log_det = np.sum(np.log(alpha + beta * s), axis=0)
    log_det += (size - len(s)) * np.log(alpha)
    evidence = size / 2 * np.log(alpha) + count / 2 * np.log(beta) - log_det / 2
    evidence -= beta / 2 * e2 + alpha / 2 * m2 + count / 2 * np.log(2 * np.pi)
    return Result(float(np.mean(evidence) / count), {"rank": len(s)})
