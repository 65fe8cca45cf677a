"""NCE (Tran et al. 2019, arXiv 1908.08142): negative conditional entropy.

N images, C target classes, V source classes, p_i the source classifier's probabilities.
With z_i = argmax p_i and the empirical joint P(y, z),

    NCE = -H(Y | Z) = sum_{y, z} P(y, z) log P(y | z)          (their equation 4)

`soft` takes P(y, z) = 1/N sum_i p_i(z) 1[y_i = y] instead, as LEEP does; published code
with that name differs from the paper's.

Cost: O(N V). Range: [-log C, 0], in nats. Higher is better.
"""

from __future__ import annotations

import math

import jax
import numpy as np

from rankckpt_jax.measures.registry import Inputs, Result, register
from rankckpt_jax.measures.statistics import blocks


@register("nce", needs_logits=True, bounds=(-math.inf, 0.0))
def nce(inputs: Inputs, soft: bool = False) -> Result:
    """NCE from the checkpoint's logits [N, V]; `soft` as the module says."""
    labels = inputs.labels
    logits = inputs.logits
    num_classes = inputs.num_classes
    details = {"num_source_classes": logits.shape[1]}
    if soft:
        one_hot = jax.nn.one_hot(labels, num_classes, axis=0, dtype=logits.dtype)
        probabilities = jax.nn.softmax(logits, axis=1)

        def shared(weights: np.ndarray) -> float:
            members = one_hot * weights.astype(one_hot.dtype)
            joint = np.asarray(blocks.dot(members, probabilities), float)
            ratios = joint / np.maximum(joint.sum(axis=0), np.finfo(float).tiny)
            kept = joint > 0
            return float(np.sum(joint[kept] * np.log(ratios[kept])) / weights.sum())

        return Result(shared(np.ones(len(labels))), details, reweighted=shared)
    source = np.asarray(jax.jit(blocks.maximum)(logits)[1])
    # The pairs that occur, of which there are at most N, whatever V is.
    _, pair = np.unique(source * num_classes + np.asarray(labels), return_inverse=True)

    def hard(weights: np.ndarray) -> float:
        ratios = np.bincount(pair, weights)[pair] / np.bincount(source, weights)[source]
        drawn = weights > 0
        return float(weights[drawn] @ np.log(ratios[drawn]) / weights.sum())

    return Result(hard(np.ones(len(labels))), details, reweighted=hard)
