"""H-score (Bao et al. 2019, ICIP): between-class variance in whitened features.

N images, D dimensions, F [N, D] centred features, G [N, D] each image's class mean:

    H = tr(pinv(cov F) cov G)                                  (their definition 2)

With F = Q R and R = U S V', (N - 1) cov F = V S^2 V', and (N - 1) cov G is the sum over
classes of n_c g_c g_c' with counts n_c and means g_c, hence

    H = sum_c n_c |S^-1 V' g_c|^2

Working on R instead of on the
covariance keeps directions whose variance is 1e-7 of the largest, which float32 would
lose in the product F'F. Cost: 2 N D^2 + O(D^3) FLOP. Range: [0, min(C - 1, D)]. Higher
is better.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rankckpt_jax.measures.registry import Result, register


@register("h_score")
def h_score(
    features: jax.Array,
    labels: jax.Array,
    logits: None,
    num_classes: int,
    seed: int,
) -> Result:
    """H-score; logits and seed are not used.

    Both covariances divide by N - 1, as in the reference implementations (NumPy's
    default), so the factor cancels.
    """
    del logits, seed
    score, rank = _h_score(features, labels, num_classes)
    return Result(float(score), {"rank": int(rank)})


def _h_score(
    features: jax.Array, labels: jax.Array, num_classes: int
) -> tuple[jax.Array, jax.Array]:
    centred = features - jnp.mean(features, axis=0)
    r = jnp.linalg.qr(centred, mode="r")
    _, s, vt = jnp.linalg.svd(r, full_matrices=False)
    # Below this a singular value is rounding error (as in numpy.linalg.matrix_rank).
    cutoff = s[0] * max(features.shape) * jnp.finfo(s.dtype).eps
    kept = s > cutoff
    inverse = jnp.where(kept, 1 / jnp.where(kept, s, 1), 0)
    one_hot = jax.nn.one_hot(labels, num_classes, dtype=features.dtype)
    counts = jnp.sum(one_hot, axis=0)
    highest = jax.lax.Precision.HIGHEST
    sums = jnp.dot(one_hot.T, centred, precision=highest)
    whitened = jnp.dot(sums, vt.T, precision=highest) * inverse
    return jnp.sum(whitened**2 / counts[:, None]), jnp.sum(kept)
