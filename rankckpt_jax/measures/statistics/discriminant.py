"""Posteriors of a linear discriminant.

With weights A [C, D] and offsets b [C], the posterior of class c for x is
softmax_c(A x + b). It is computed in float64 (float32 on a TPU) block by block, so that
no N x C array exists.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rankckpt_jax.devices import target
from rankckpt_jax.measures.statistics import blocks


class TrueClass(NamedTuple):
    """Posteriors of the true class of each image.

    Attributes:
      posterior: p_iy, [N].
      softened: Softmax of the posteriors, exp p_iy / sum_c exp p_ic, [N].
    """

    posterior: np.ndarray
    softened: np.ndarray


def true_class(
    x: np.ndarray, labels: np.ndarray, weights: np.ndarray, offsets: np.ndarray
) -> TrueClass:
    """Return posteriors of the classes `labels` [N] for x [N, D]."""
    shape = blocks.shape(len(x), len(weights))
    with jax.enable_x64(target.platform() != "tpu"):
        outputs = _true_class(
            blocks.split(x, shape), blocks.split(labels, shape), weights, offsets
        )
        return TrueClass(*(np.asarray(a, float).reshape(-1)[: len(x)] for a in outputs))


@jax.jit
def _true_class(
    x: jax.Array, labels: jax.Array, weights: jax.Array, offsets: jax.Array
) -> tuple[jax.Array, jax.Array]:
    def of_block(block: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        x, label = block
        joint = blocks.dot(x.astype(weights.dtype), weights.T) + offsets[None]
        posterior = jax.nn.softmax(joint, axis=1)
        softened = jax.nn.softmax(posterior, axis=1)
        own = label[:, None]
        posterior = jnp.take_along_axis(posterior, own, axis=1)[:, 0]
        return posterior, jnp.take_along_axis(softened, own, axis=1)[:, 0]

    return jax.lax.map(of_block, (x, labels))
