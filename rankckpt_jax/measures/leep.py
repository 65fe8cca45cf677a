"""LEEP (Nguyen et al. 2020, arXiv 2002.12462): the log expected empirical prediction.

N images, C target classes, V source classes, A [N, V] the source classifier's
probabilities. The joint J[c, v] = 1/N sum_i A[i, v] 1[y_i = c] gives the conditional
P(c | v) = J[c, v] / sum_c J[c, v] (their equations 1 and 2; see `prediction`), and

    LEEP = 1/N sum_i log sum_v P(y_i | v) A[i, v]              (their equation 3)

Cost: 4 N V C FLOP. Range: at most 0. Higher is better. No published implementation
is known to differ.
"""

from __future__ import annotations

import math

import jax
import numpy as np

from rankckpt_jax.measures.mixture import prediction
from rankckpt_jax.measures.registry import Inputs, Result, register


@register("leep", needs_logits=True, bounds=(-math.inf, 0.0))
def leep(inputs: Inputs) -> Result:
    """LEEP from the checkpoint's own classifier; features are not used."""
    labels = inputs.labels
    logits = inputs.logits
    num_classes = inputs.num_classes
    probabilities = jax.nn.softmax(logits, axis=-1)
    found = prediction.likelihood(probabilities, labels, num_classes)

    def score(weights: np.ndarray) -> float:
        return prediction.likelihood(probabilities, labels, num_classes, weights).log

    details = {"num_source_classes": logits.shape[1]}
    return Result(found.log, details, reweighted=score)
