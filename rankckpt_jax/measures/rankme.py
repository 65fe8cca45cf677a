"""RankMe (Garrido et al. 2023, arXiv 2210.02885): effective rank of the features.

N images, F [N, D] features with singular values s_k, not centered:

    q_k    = s_k / sum_k s_k + 1e-7
    RankMe = exp(- sum_k q_k log q_k)                           (their equation 1)

The sum has min(N, D) terms. The score is a baseline that does not read the labels. It
was proposed for self-supervised networks, on images of their own training. Supervised
networks have features of low rank by design, and networks of different dimensions are
not comparable.

Cost: 2 N D^2 FLOP, shared, and 4 D^3 / 3. Range: at least 1, at most about min(N, D).
Higher is assumed to mean better. Published restatements that take squared singular
values, or center the features, are other measures.
"""

from __future__ import annotations

import math

import numpy as np

from rankckpt_jax.errors import InputError
from rankckpt_jax.measures import regimes
from rankckpt_jax.measures.registry import TARGETS, Inputs, Result, register
from rankckpt_jax.measures.statistics import symmetric

_LEAST = 1e-7
"""Added to each share, as in the paper."""


@register(
    "rankme",
    targets=tuple(TARGETS),
    cost="N D^2 + D^3",
    bounds=(1.0, math.inf),
    regimes=(regimes.FEW_IMAGES,),
)
def rankme(inputs: Inputs) -> Result:
    """Return the effective rank of features [N, D]; labels are not read.

    Raises:
      InputError: All features are 0.
    """
    statistics = inputs.statistics
    mean = statistics.mean
    product = statistics.scatter + statistics.num_images * np.outer(mean, mean)
    with symmetric.one_blas_thread():
        values = np.linalg.eigvalsh(product)
    shape = statistics.features.shape
    if values[-1] <= 0:
        raise InputError(
            "All features are 0, so rankme is not defined",
            fix="check the weights and the input range of the network",
        )
    rank = symmetric.rank(values, max(shape))
    singular = np.zeros(min(shape))
    kept = min(rank, len(singular))
    singular[:kept] = np.sqrt(values[::-1][:kept])
    shares = singular / singular.sum() + _LEAST
    score = math.exp(-np.sum(shares * np.log(shares)))
    return Result(score, {"rank": rank})
