"""LEEP (Nguyen et al. 2020, arXiv 2002.12462): the log expected empirical prediction.

N images, C target classes, V source classes, A [N, V] the source classifier's
probabilities. The joint J[c, v] = 1/N sum_i A[i, v] 1[y_i = c] gives the conditional
P(c | v) = J[c, v] / sum_c J[c, v] (their equations 1 and 2), and

    LEEP = 1/N sum_i log sum_v P(y_i | v) A[i, v]              (their equation 3)

Cost: 4 N V C FLOP. Range: at most 0. Higher is better.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rankckpt_jax.measures.registry import Result, register


def log_expected_prediction(
    assignments: jax.Array, labels: jax.Array, num_classes: int
) -> jax.Array:
    """Mean log likelihood of the labels under the empirical predictor.

    Args:
      assignments: float [N, V] >= 0, rows summing to 1: a distribution over V source
        classes, or components of a mixture, for each image.
      labels: int [N] in 0 ... C-1.
      num_classes: C.

    Returns:
      Scalar in (-inf, 0]. An expected prediction of 0, which underflow can bring,
      counts as 1 / C, as in Google's stable_transfer.
    """
    one_hot = jax.nn.one_hot(labels, num_classes, dtype=assignments.dtype)
    highest = jax.lax.Precision.HIGHEST
    joint = jnp.dot(one_hot.T, assignments, precision=highest) / len(labels)
    total = jnp.sum(joint, axis=0)
    conditional = jnp.where(total > 0, joint / jnp.where(total > 0, total, 1), 0)
    predicted = jnp.sum(conditional[labels] * assignments, axis=1)
    likely = jnp.log(jnp.clip(predicted, jnp.finfo(predicted.dtype).tiny, 1))
    return jnp.mean(jnp.where(predicted > 0, likely, -jnp.log(float(num_classes))))


@register("leep", needs_logits=True)
def leep(
    features: jax.Array,
    labels: jax.Array,
    logits: jax.Array,
    num_classes: int,
    seed: int,
) -> Result:
    """LEEP from the checkpoint's own classifier; features and seed are not used."""
    del features, seed
    probabilities = jax.nn.softmax(logits, axis=-1)
    score = log_expected_prediction(probabilities, labels, num_classes)
    return Result(float(score), {"num_source_classes": logits.shape[1]})
