"""LDA posterior (in ETran, Gholami et al. 2023, arXiv 2308.02027): nearest class mean.

N images, D dimensions, C classes with means g_c and class frequencies pi_c. The score
is the mean posterior of the true class,

    LDA = 1/N sum_i softmax_c(x_i'g_c - 1/2 g_c'g_c + log pi_c)_{y_i}

ETran describes Fisher's discriminant with eigenvectors V, which has x'V V'g_c in place
of x'g_c. Published code takes the eigenvectors of a symmetric matrix, for which V V' is
the identity, so the published figures are those of the formula above. SFDA computes the
discriminant with the within-class scatter.

Cost: 2 N D C FLOP. Range: (0, 1). Higher is better.
"""

from __future__ import annotations

import numpy as np

from rankckpt_jax.measures.registry import Inputs, Result, register
from rankckpt_jax.measures.statistics import discriminant
from rankckpt_jax.measures.statistics.class_statistics import Statistics


@register("lda", bounds=(0.0, 1.0), uses_weights=True)
def lda(inputs: Inputs) -> Result:
    """Return the mean posterior of the true class for features [N, D]."""
    return Result(posterior(inputs.statistics))


def posterior(statistics: Statistics) -> float:
    """Return the mean posterior of the true class, which is also a term of ETran."""
    means = statistics.class_means + statistics.rest
    priors = statistics.counts / statistics.total
    offsets = np.log(priors) - np.sum(means**2, axis=1) / 2
    result = discriminant.true_class(
        statistics.centered, statistics.labels, means, offsets
    )
    return statistics.average(result.posterior)
