"""Regularized H-score (Ibrahim et al. 2021, arXiv 2110.06893): H-score with shrinkage.

N images, D dimensions, T the scatter, g_c the centered class means (`statistics`). The
covariance S = T / N is shrunk as in Ledoit and Wolf (2004),

    S_a = (1 - a) S + a tr(S) / D I
    a   = min(1, b / d),  d = |S - tr(S)/D I|^2 / D,
                          b = (sum_i |x_i|^4 / N - |S|^2) / (D N)
    H_a = tr(S_a^-1 (1 - a) cov G)                             (their equation 8)

where cov G, the covariance of each image's class mean, divides by N - 1. With few
images for the dimensions the plain H-score overfits: it reaches C - 1 for noise.
Several labels or a number per image: as for `h_score`.

Cost: 2 N D^2 FLOP, shared, and D^3 / 3. Range: [0, C - 1]; [0, 1] for labels and
numbers. Higher is better. No published implementation is known to differ.
"""

from __future__ import annotations

import math

import numpy as np

from rankckpt_jax.data.targets import TARGETS
from rankckpt_jax.measures import h_score, regimes
from rankckpt_jax.measures.registry import (
    UNIT_SCALE,
    Evidence,
    Inputs,
    Regime,
    Result,
    register,
)
from rankckpt_jax.measures.statistics import symmetric


def _shrunk(inputs: Inputs, result: Result) -> str:
    if result.details["shrinkage"] < 1:
        return ""
    return (
        "The covariance is shrunk to a multiple of the identity, so the score is 0 for "
        "any such features and cannot order checkpoints. Add images or use another "
        "measure."
    )


SHRUNK = Regime("shrinkage", _shrunk, saturates=True)


@register(
    "regularized_h_score",
    cost="N D^2 + D^3",
    evidence=Evidence(-0.01, 11),
    targets=tuple(TARGETS),
    bounds=(0.0, math.inf),
    tolerance=UNIT_SCALE,
    regimes=(SHRUNK, regimes.SINGLE_IMAGES),
)
def regularized_h_score(inputs: Inputs) -> Result:
    """Return the regularized H-score of features [N, D] and labels of any kind."""
    statistics = inputs.statistics
    count, size = statistics.num_images, statistics.features.shape[1]
    covariance = statistics.scatter / count
    mean = np.trace(covariance) / size
    squares = np.sum(covariance**2)
    noise = (np.mean(statistics.squared_norms**2) - squares) / (size * count)
    covariance.flat[:: size + 1] -= mean
    distance = np.sum(covariance**2) / size
    shrinkage = float(min(noise, distance) / distance) if distance > 0 else 1.0
    if mean == 0:
        return Result(0.0, {"shrinkage": shrinkage})
    shrunk = (1 - shrinkage) * covariance
    shrunk.flat[:: size + 1] += mean
    columns = statistics.products.T
    lower = symmetric.factor(shrunk)
    if lower is not None:
        whitened = symmetric.whiten(lower, columns)
    else:
        # Without noise there is no shrinkage, for example if all images of a class are
        # equal.
        spectrum = symmetric.eigh(shrunk)
        rank = symmetric.rank(spectrum[0], max(statistics.features.shape))
        whitened = symmetric.whiten_span(*spectrum, columns, rank)
    between = h_score.explained(inputs, whitened) / max(count - 1, 1)
    return Result((1 - shrinkage) * between, {"shrinkage": shrinkage})
