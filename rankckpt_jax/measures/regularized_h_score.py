"""Regularised H-score (Ibrahim et al. 2021, arXiv 2110.06893): H-score, shrunk.

N images, D dimensions; T the scatter and g_c the class means about the mean
(`statistics`). The covariance S = T / N is shrunk as Ledoit and Wolf (2004) do,

    S_a = (1 - a) S + a tr(S) / D I
    a   = min(1, b / d),  d = |S - tr(S)/D I|^2 / D,
                          b = (sum_i |x_i|^4 / N - |S|^2) / (D N)
    H_a = tr(S_a^-1 (1 - a) cov G)                             (their equation 8)

where cov G, of each image's class mean, divides by N - 1. With few images for the
dimensions the plain H-score overfits: it reaches C - 1 for noise.

Cost: 2 N D^2 + O(D^3), shared. Range: [0, C - 1]. Higher is better. No published
implementation is known to differ.
"""

from __future__ import annotations

import math

import jax
import numpy as np

from rankckpt_jax.measures.registry import Result, register
from rankckpt_jax.measures.statistics import Statistics


@register("regularized_h_score", bounds=(0.0, math.inf))
def regularized_h_score(
    features: jax.Array,
    labels: jax.Array,
    num_classes: int,
    statistics: Statistics,
) -> Result:
    """Regularised H-score of features [N, D] and labels [N]."""
    del features, labels, num_classes
    values, vectors = statistics.spectrum
    count, size = statistics.total, len(values)
    variances = values / count
    mean = np.mean(variances)
    noise = (statistics.average(statistics.squared_norms**2) - np.sum(variances**2)) / (
        size * count
    )
    distance = np.sum((variances - mean) ** 2) / size
    shrinkage = float(min(noise, distance) / distance) if distance > 0 else 1.0
    shrunk = (1 - shrinkage) * variances + shrinkage * mean
    if mean == 0:
        return Result(0.0, {"shrinkage": shrinkage})
    turned = statistics.class_means @ vectors
    between = statistics.counts @ turned**2 / max(count - 1, 1)
    score = (1 - shrinkage) * np.sum(np.where(shrunk > 0, between / shrunk, 0))
    return Result(float(score), {"shrinkage": shrinkage})
