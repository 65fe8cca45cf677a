"""LDA posterior (in ETran, Gholami et al. 2023, arXiv 2308.02027): nearest class mean.

N images, D dimensions, C classes with means g_c and class frequencies pi_c. The score
is the mean posterior of the true class,

    LDA = 1/N sum_i softmax_c(x_i'g_c - 1/2 g_c'g_c + log pi_c)_{y_i}

ETran describes Fisher's discriminant with eigenvectors V, which has x'V V'g_c in place
of x'g_c. Published code takes the eigenvectors of a symmetric matrix, for which V V' is
the identity, so the published figures are those of the formula above. SFDA computes the
discriminant with the within-class scatter. The formula takes the variance within
classes to be 1. If the total variance is below 1, a warning says so.

Cost: 2 N D C FLOP. Range: (0, 1). Higher is better.
"""

from __future__ import annotations

import numpy as np

from rankckpt_jax.measures import regimes
from rankckpt_jax.measures.registry import Inputs, Result, register
from rankckpt_jax.measures.statistics import discriminant, remappings, scaling
from rankckpt_jax.measures.statistics.class_statistics import Statistics

_LEAST_VARIANCE = 1.0
"""Total variance below which x'g_c is small, and every posterior is near pi_c."""


@register(
    "lda",
    cost="N D C",
    bounds=(0.0, 1.0),
    check=remappings.check("lda"),
    regimes=(regimes.INTERPOLATION, regimes.FEW_IMAGES, regimes.SINGLE_IMAGES),
)
def lda(inputs: Inputs, remap: str = "none") -> Result:
    """Return the mean posterior of the true class for features [N, D].

    Args:
      inputs: Features [N, D] and labels [N].
      remap: "ped" or "sa" moves the classes first; see `remappings`.
    """
    statistics = remappings.apply(inputs.statistics, remap)
    return Result(posterior(statistics), warning=warn(statistics))


def warn(statistics: Statistics) -> str:
    """Return a warning if the features are too small for a variance of 1."""
    variance = float(np.mean(statistics.squared_norms))
    return scaling.warn_if(variance < _LEAST_VARIANCE, "LDA's fixed variance of 1")


def posterior(statistics: Statistics) -> float:
    """Return the mean posterior of the true class, which is also a term of ETran."""
    means = statistics.class_means + statistics.rest
    priors = statistics.sizes / statistics.num_images
    offsets = np.log(priors) - np.sum(means**2, axis=1) / 2
    result = discriminant.true_class(
        statistics.centered, statistics.labels, means, offsets
    )
    return float(result.posterior.mean())
