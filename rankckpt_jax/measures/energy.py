"""Energy (in ETran, Gholami et al. 2023, arXiv 2308.02027): are images familiar?

N images, V source classes, z_i the source classifier's logits: the mean free energy,

    E = 1/N sum_i log sum_v exp z_iv                            (their equation 4)

Cost: O(N V). Range: unbounded; higher means that the images look more like those that
the checkpoint was trained on. Published code has a variant over the top logits only.
"""

from __future__ import annotations

import jax
import numpy as np

from rankckpt_jax.measures.registry import Result, register


@register("energy", needs_logits=True)
def energy(
    features: jax.Array, labels: jax.Array, logits: jax.Array, num_classes: int
) -> Result:
    """Mean log-sum-exp of the logits [N, V]."""
    del features, labels, num_classes
    each = np.asarray(jax.nn.logsumexp(logits, axis=1), np.float64)

    def score(weights: np.ndarray) -> float:
        return float(np.average(each, weights=weights))

    return Result(float(np.mean(each)), reweighted=score)
