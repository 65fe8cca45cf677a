"""NCE (Tran et al. 2019, arXiv 1908.08142): negative conditional entropy.

N images, C target classes, V source classes, p_i the source classifier's probabilities.
With z_i = argmax p_i and the empirical joint P(y, z),

    NCE = -H(Y | Z) = sum_{y, z} P(y, z) log P(y | z)          (their equation 4)

`soft` takes P(y, z) = 1/N sum_i p_i(z) 1[y_i = y] instead, as LEEP does; published code
with that name differs from the paper's.

Cost: O(N V). Range: [-log C, 0], in nats. Higher is better.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from rankckpt_jax.measures import blocks
from rankckpt_jax.measures.registry import Result, register


@register("nce", needs_logits=True)
def nce(
    features: jax.Array,
    labels: jax.Array,
    logits: jax.Array,
    num_classes: int,
    soft: bool = False,
) -> Result:
    """NCE from the checkpoint's logits [N, V]; `soft` as the module says."""
    del features
    count = len(labels)
    if soft:
        one_hot = jax.nn.one_hot(labels, num_classes, axis=0, dtype=logits.dtype)
        joint = np.asarray(blocks.dot(one_hot, jax.nn.softmax(logits, axis=1)), float)
        ratios = joint / np.maximum(joint.sum(axis=0), np.finfo(float).tiny)
        kept = joint > 0
        score = np.sum(joint[kept] * np.log(ratios[kept])) / count
    else:
        source = np.asarray(jnp.argmax(logits, axis=1))
        pairs = np.stack([source, np.asarray(labels)])
        _, which, sizes = np.unique(
            pairs, axis=1, return_inverse=True, return_counts=True
        )
        totals = np.bincount(source)[source]
        score = np.mean(np.log(sizes[which.reshape(-1)] / totals))
    return Result(float(score), {"num_source_classes": logits.shape[1]})
