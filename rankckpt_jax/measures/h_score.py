"""H-score (Bao et al. 2019, ICIP): between-class variance in whitened features.

N images, D dimensions, C classes, F [N, D] features, G [N, D] the class mean of each
image:

    H = tr(pinv(cov F) cov G)                                  (their definition 2)

With the scatter T = V diag(l) V' and the centered class means g_c (`statistics`),

    H = sum_c n_c sum_j (v_j'g_c)^2 / l_j         over all l_j > 0,

which equals sum_c n_c |L^-1 g_c|^2 for T = L L' if T is not singular.

Cost: 2 N D^2 + D^3 / 3 FLOP, and 4 D^3 if T is singular, shared. Range: [0, min(C - 1,
D)]. Higher is better. The reference implementations divide both covariances by N - 1,
so the factor cancels. Among published code, Google's stable_transfer multiplies the two
matrices element by element, which is a different quantity.
"""

from __future__ import annotations

import math

import numpy as np

from rankckpt_jax.measures import regimes
from rankckpt_jax.measures.registry import (
    UNIT_SCALE,
    Evidence,
    Inputs,
    Regime,
    Result,
    register,
)
from rankckpt_jax.measures.statistics import symmetric


def _highest(inputs: Inputs) -> float:
    return float(min(inputs.num_classes - 1, inputs.features.shape[1]))


def _interpolation(inputs: Inputs, result: Result) -> str:
    """Describe features that reproduce any labels of the images with different rows."""
    count, size = inputs.features.shape
    rank = result.details["rank"]
    # Counting different rows takes time, so the usual case comes first.
    if rank == size < count - 1 or rank < (n := inputs.statistics.num_distinct) - 1:
        return ""
    return (
        f"With no more different images ({n}) than feature dimensions, the H-score "
        "depends on the labels alone: without duplicates, it is C - 1 = "
        f"{inputs.num_classes - 1} for any features. It cannot order checkpoints. Add "
        "images or use another measure."
    )


INTERPOLATION = Regime(
    "interpolation", _interpolation, saturates=True, of_few_images=True
)


@register(
    "h_score",
    cost="N D^2 + D^3",
    evidence=Evidence(0.34, 19),
    bounds=(0.0, math.inf),
    uses_weights=True,
    tolerance=UNIT_SCALE,
    regimes=(INTERPOLATION, regimes.maximum(_highest)),
)
def h_score(inputs: Inputs) -> Result:
    """Return the H-score of features [N, D] and labels [N]."""
    statistics = inputs.statistics
    means, rank = statistics.class_means.T, statistics.rank
    if statistics.factor is not None:
        whitened = symmetric.whiten(statistics.factor, means)
    else:
        whitened = symmetric.whiten_span(*statistics.spectrum, means, rank)
    score = np.sum(whitened**2 @ statistics.counts)
    return Result(float(score), {"rank": rank})
