"""H-score (Bao et al. 2019, ICIP): between-class variance in whitened features.

N images, D dimensions, C classes, F [N, D] features, G [N, D] the class mean of each
image:

    H = tr(pinv(cov F) cov G)                                  (their definition 2)

With the scatter T = V diag(l) V' and the centered class means g_c (`statistics`),

    H = sum_c n_c sum_j (v_j'g_c)^2 / l_j         over all l_j > 0,

which equals sum_c n_c |L^-1 g_c|^2 for T = L L' if T is not singular.

Several labels per image: the mean over the labels of the H-score of having the label,
which is the share R^2 of the label's variance that least squares explains,

    R^2 = |L^-1 P_t|^2 / q_t                    (products P and squares q, `statistics`)

A number per image: R^2 of the number, to which the definition leads if E[f | y] is
linear in y.

Cost: 2 N D^2 + D^3 / 3 FLOP, and 4 D^3 if T is singular, shared. Range: [0, min(C - 1,
D)]; [0, 1] for labels and numbers. Higher is better. The reference implementations
divide both covariances by N - 1, so the factor cancels. Among published code, Google's
stable_transfer multiplies the two matrices element by element, which is a different
quantity.
"""

from __future__ import annotations

import math

import numpy as np

from rankckpt_jax.data.targets import CLASSES, TARGETS
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
    if inputs.target != CLASSES:
        return 1.0
    return float(min(inputs.num_classes - 1, inputs.features.shape[1]))


def _interpolation(inputs: Inputs, result: Result) -> str:
    """Describe features that reproduce any labels of the images with different rows."""
    count, size = inputs.features.shape
    rank = result.details["rank"]
    # Counting different rows takes time, so the usual case comes first.
    if rank == size < count - 1 or rank < (n := inputs.statistics.num_distinct) - 1:
        return ""
    highest = "1"
    if inputs.target == CLASSES:
        highest = f"C - 1 = {inputs.num_classes - 1}"
    return (
        f"With no more different images ({n}) than feature dimensions, the H-score "
        "depends on the labels alone: without duplicates, it is "
        f"{highest} for any features. It cannot order checkpoints. Add "
        "images or use another measure."
    )


INTERPOLATION = Regime(
    "interpolation", _interpolation, saturates=True, of_few_images=True
)


@register(
    "h_score",
    cost="N D^2 + D^3",
    evidence=Evidence(0.34, 19),
    targets=tuple(TARGETS),
    bounds=(0.0, math.inf),
    tolerance=UNIT_SCALE,
    regimes=(INTERPOLATION, regimes.maximum(_highest)),
)
def h_score(inputs: Inputs) -> Result:
    """Return the H-score of features [N, D] and labels of any kind."""
    statistics = inputs.statistics
    products, rank = statistics.products.T, statistics.rank
    if statistics.factor is not None:
        whitened = symmetric.whiten(statistics.factor, products)
    else:
        whitened = symmetric.whiten_span(*statistics.spectrum, products, rank)
    return Result(explained(inputs, whitened), {"rank": rank})


def explained(inputs: Inputs, whitened: np.ndarray) -> float:
    """Return the H-score from L^-1 P [D, T]; see `regularized_h_score`."""
    statistics, parts = inputs.statistics, np.sum(whitened**2, axis=0)
    if inputs.target == CLASSES:
        # P_c = n_c g_c
        return float(np.sum(parts / statistics.sizes))
    return float(np.mean(parts / statistics.squares))
