"""H-score (Bao et al. 2019, ICIP): between-class variance in whitened features.

N images, D dimensions, C classes, F [N, D] features, G [N, D] each image's class mean:

    H = tr(pinv(cov F) cov G)                                  (their definition 2)

With the scatter T = V diag(l) V' and class means g_c about the mean (`statistics`),

    H = sum_c n_c sum_j (v_j'g_c)^2 / l_j         over the l_j that are not 0.

which is sum_c n_c |L^-1 g_c|^2 where T = L L' is not singular.

Cost: 2 N D^2 + D^3 / 3, and 4 D^3 where T is singular, shared. Range: [0, min(C - 1,
D)]. Higher is better. Both covariances divide by N - 1 in the reference
implementations, so the factor cancels.
Of published code Google's stable_transfer multiplies the two matrices element by
element, which is another quantity.
"""

from __future__ import annotations

import math

import numpy as np

from rankckpt_jax.measures.registry import Inputs, Result, register
from rankckpt_jax.measures.statistics import symmetric


@register("h_score", bounds=(0.0, math.inf), uses_weights=True)
def h_score(inputs: Inputs) -> Result:
    """H-score of features [N, D] and labels [N]."""
    statistics = inputs.statistics
    means, rank = statistics.class_means.T, statistics.rank
    if statistics.factor is not None:
        whitened = symmetric.whiten(statistics.factor, means)
    else:
        whitened = symmetric.whiten_span(*statistics.spectrum, means, rank)
    score = np.sum(whitened**2 @ statistics.counts)
    return Result(float(score), {"rank": rank})
