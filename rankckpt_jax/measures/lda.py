"""LDA posterior (in ETran, Gholami et al. 2023, arXiv 2308.02027): nearest class mean.

N images, C classes with means g_c and shares pi_c; the mean posterior of the true
class,

    LDA = 1/N sum_i softmax_c(x_i'g_c - 1/2 g_c'g_c + log pi_c)_{y_i}

ETran describes Fisher's discriminant, with its eigenvectors V in place of the identity:
x'V V'g_c. Published code takes the eigenvectors of a symmetric matrix, for which VV' is
the identity, and that is what its figures were made with and what stands here. SFDA has
the discriminant with the within-class scatter.

Cost: 2 N D C. Range: (0, 1). Higher is better.
"""

from __future__ import annotations

import jax
import numpy as np

from rankckpt_jax.measures.registry import Result, register
from rankckpt_jax.measures.statistics import discriminant
from rankckpt_jax.measures.statistics.class_statistics import Statistics


@register("lda", bounds=(0.0, 1.0))
def lda(
    features: jax.Array,
    labels: jax.Array,
    num_classes: int,
    statistics: Statistics,
) -> Result:
    """Mean posterior of the true class for features [N, D] and labels [N]."""
    del features, num_classes
    return Result(posterior(statistics, np.asarray(labels)))


def posterior(statistics: Statistics, labels: np.ndarray) -> float:
    """The score; ETran reads it too."""
    means = statistics.class_means + statistics.rest
    offsets = (
        np.log(statistics.counts / statistics.total) - np.sum(means**2, axis=1) / 2
    )
    found = discriminant.true_class(statistics.centered, labels, means, offsets)
    return statistics.average(found.posterior)
