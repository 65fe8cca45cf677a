"""LEEP (Nguyen et al. 2020, arXiv 2002.12462): the log expected empirical prediction.

N images, C target classes, V source classes, A [N, V] the probabilities of the source
classifier. The joint J[c, v] = 1/N sum_i A[i, v] 1[y_i = c] gives the conditional
P(c | v) = J[c, v] / sum_c J[c, v] (their equations 1 and 2; see `prediction`), and

    LEEP = 1/N sum_i log sum_v P(y_i | v) A[i, v]              (their equation 3)

Several labels per image: the mean over the labels of LEEP for having the label or not
(`label_prediction`).

Cost: 4 N V C FLOP; 8 N V L for L labels. Range: at most 0. Higher is better. No
published implementation is known to differ.
"""

from __future__ import annotations

import math

import jax

from rankckpt_jax.data.targets import MULTI_LABEL
from rankckpt_jax.measures import regimes
from rankckpt_jax.measures.mixture import label_prediction, prediction
from rankckpt_jax.measures.registry import (
    LABELS,
    UNIT_SCALE,
    Evidence,
    Inputs,
    Result,
    register,
)


@register(
    "leep",
    cost="N V C",
    evidence=Evidence(0.26, 28),
    needs_logits=True,
    targets=LABELS,
    undefined="predicts classes or labels",
    bounds=(-math.inf, 0.0),
    tolerance=UNIT_SCALE,
    regimes=(regimes.CHANCE, regimes.SINGLE_IMAGES),
)
def leep(inputs: Inputs) -> Result:
    """Return LEEP from the logits [N, V] of the checkpoint's own classifier."""
    probabilities = jax.nn.softmax(inputs.logits, axis=-1)
    if inputs.target == MULTI_LABEL:
        predicted = label_prediction.of_assignments(probabilities, inputs.labels)
    else:
        predicted = prediction.of_assignments(
            probabilities, inputs.labels, inputs.num_classes
        )
    details = {"num_source_classes": inputs.logits.shape[1]}
    return Result(predicted.log, details)
