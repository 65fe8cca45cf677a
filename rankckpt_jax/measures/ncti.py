"""NCTI (Wang et al. 2023, ICCV): how near the features are to neural collapse.

N images, C classes; X [N, d] the centred features on their first 64 principal
components, scaled to unit mean variance, X_c those of class c about their own mean; Z
the same features whitened by the pooled within-class scatter. Neural collapse has three
signs:

    within-class variability   v = 1/N sum_c |X_c|_*        falls   (their equation 4)
    spread of all features     s = |Z|_* / sqrt(N)          rises   (their equation 6)
    nearest class mean         n = mean posterior of y_i    rises   (their equation 7)

with |.|_* the sum of singular values, and NCTI = s' + n' - v', each brought to [0, 1]
over the checkpoints of a pool. Alone a checkpoint has only its terms; the score is then
n - v.

Cost: 2 N D^2 + O(D^3), shared, and 2 N 64^2. Range: [-1, 2] in a pool. Higher is
better. Published code differs in how the scatter is shrunk and in constant factors,
which the pool's scale takes away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import numpy as np
import scipy.linalg

from rankckpt_jax.measures import discriminant, symmetric
from rankckpt_jax.measures.registry import Result, register, relative
from rankckpt_jax.measures.statistics import Statistics

_DIMENSIONS = 64
_SHRINKAGE = 1e-3


def combine(pool: Sequence[Mapping[str, float]]) -> list[float]:
    """Scores of checkpoints from the terms of each."""
    spread, nearest, variability = (
        relative([terms[name] for terms in pool])
        for name in ("spread", "nearest", "variability")
    )
    return [s + n - v for s, n, v in zip(spread, nearest, variability, strict=True)]


@register("ncti", combine=combine)
def ncti(
    features: jax.Array,
    labels: jax.Array,
    num_classes: int,
    statistics: Statistics,
) -> Result:
    """NCTI's three terms for features [N, D] and labels [N]."""
    del features
    classes, count = np.asarray(labels), len(statistics.labels)
    reduced = Statistics(
        statistics.principal(_DIMENSIONS).astype(float), classes, num_classes
    )
    within = reduced.within / count
    size = len(within)
    ridge = _SHRINKAGE * np.trace(within) / size + np.finfo(float).tiny ** 0.5
    factor = np.linalg.cholesky(within + ridge * np.eye(size))

    def whitened(x: np.ndarray) -> np.ndarray:
        return scipy.linalg.solve_triangular(factor, x.T, lower=True).T

    z, means = whitened(reduced.centred), whitened(reduced.class_means)
    variance = np.trace(reduced.scatter) / (count * size)
    x = reduced.centred / np.sqrt(variance if variance > 0 else 1)
    variability = 0.0
    ends = np.cumsum(reduced.counts).astype(int)
    for rows in np.split(reduced.by_class, ends[:-1]):
        variability += _nuclear_norm(x[rows] - x[rows].mean(axis=0))
    offsets = np.log(reduced.counts / count) - np.sum(means**2, axis=1) / 2
    nearest = discriminant.true_class(z, classes, means, offsets).posterior
    terms = {
        "variability": variability / count,
        "spread": _nuclear_norm(z) / np.sqrt(count),
        "nearest": float(np.mean(nearest)),
    }
    return Result(terms["nearest"] - terms["variability"], {"terms": terms})


def _nuclear_norm(x: np.ndarray) -> float:
    """Sum of the singular values of x [n, d]."""
    small = x @ x.T if len(x) < x.shape[1] else x.T @ x
    return float(np.sum(np.sqrt(np.maximum(symmetric.eigh(small)[0], 0))))
