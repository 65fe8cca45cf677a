"""The empirical predictor of LEEP and NLEEP, from posteriors that are never stored.

N points, C classes, V source classes or components, A [N, V] >= 0 with rows summing to
one. J[c, v] = sum_i A[i, v] 1[y_i = c] gives P(c | v) = J[c, v] / sum_c J[c, v], and
the expected prediction of point i is p_i = sum_v P(y_i | v) A[i, v].

`likelihood` has A in hand. `of_mixture` has the mixture: two passes over the points,
each recomputing a block's posteriors, or two over their lists; no [N, V] array exists,
and J [C, V] is summed over the devices.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rankckpt_jax.devices import mapping, processes
from rankckpt_jax.measures.mixture import em, fitting, sparse_em
from rankckpt_jax.measures.statistics import blocks

PACTRAN_FLOOR = 1e-10
"""What PACTran's NLEEP adds to each expected prediction."""


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """Means over the points, of p_i the expected prediction of the true class.

    Attributes:
      log: Of log p_i; p_i = 0, which underflow can bring, counts as 1 / C, as in
        Google's stable_transfer.
      probability: Of p_i.
      log_floored: Of log(p_i + 1e-10).
      entropy: Of the entropy of A[i], in nats.
    """

    log: float
    probability: float
    log_floored: float
    entropy: float


def likelihood(
    assignments: jax.Array,
    labels: jax.Array,
    num_classes: int,
    weights: np.ndarray | None = None,
) -> Likelihood:
    """From A [N, V], labels [N] in 0 ... C-1 and multiplicities [N], 1 unless given."""
    if weights is None:
        weights = np.ones(len(labels))
    often = jnp.asarray(weights, assignments.dtype)
    sums = _likelihood(assignments, labels, often, num_classes)
    return Likelihood(*(float(total) / float(weights.sum()) for total in sums))


def of_mixture(
    fitted: fitting.Fitted, labels: np.ndarray, num_classes: int
) -> Likelihood:
    """From the posteriors of a mixture's components for its training points [N]."""
    mask = fitted.data.mask
    by_rows = fitted.setting.shard == "rows" or fitted.lists is not None
    shape = (
        (mask.shape[0] * mask.shape[1] if by_rows else mask.shape[0]),
        mask.shape[-1],
    )
    count = len(labels)
    if by_rows:
        shape = (shape[0] * processes.process_count(), shape[1])
    split = blocks.split(np.asarray(labels, np.int32), shape, fill=-1)
    setting = fitted.setting._replace(shard="rows")
    data = fitted.data
    if not by_rows:
        data = data._replace(
            x=blocks.for_devices(np.asarray(data.x)),
            mask=blocks.for_devices(np.asarray(data.mask)),
        )
    mine = blocks.for_devices(split)
    if fitted.lists is not None:
        run = _of_lists(fitted.num_components, num_classes)
        sums = run(data.mask, mine, fitted.lists)
    else:
        sums = _of_points(setting, num_classes)(data, mine, fitted.parameters)
    return Likelihood(*(float(np.asarray(total)) / count for total in sums))


@functools.partial(jax.jit, static_argnums=3)
def _likelihood(
    assignments: jax.Array, labels: jax.Array, weights: jax.Array, num_classes: int
) -> tuple[jax.Array, ...]:
    one_hot = jax.nn.one_hot(labels, num_classes, dtype=assignments.dtype)
    members = weights[:, None] * one_hot
    conditional = _conditional(blocks.dot(members.T, assignments))
    predicted = jnp.sum(conditional[labels] * assignments, axis=1)
    entropy = -jnp.sum(jax.scipy.special.xlogy(assignments, assignments), axis=1)
    return _sums(predicted, entropy, weights, num_classes)


@functools.lru_cache(maxsize=64)
def _of_lists(num_components: int, num_classes: int) -> Callable[..., Any]:
    def from_lists(
        mask: jax.Array, labels: jax.Array, lists: sparse_em.Lists
    ) -> tuple[jax.Array, ...]:
        often, label = mask.reshape(-1), labels.reshape(-1)
        # Padding has no component in its list, and adds nothing.
        joint = jnp.zeros((num_classes, num_components), mask.dtype)
        joint = joint.at[label[:, None], lists.components].add(
            lists.values, mode="drop"
        )
        conditional = _conditional(blocks.sum_over_devices(joint))
        chosen = conditional.at[label[:, None], lists.components].get(
            mode="fill", fill_value=0
        )
        predicted = jnp.sum(chosen * lists.values, axis=1)
        values = lists.values
        entropy = -jnp.sum(jax.scipy.special.xlogy(values, values), axis=1)
        sums = _sums(predicted, entropy, often, num_classes)
        return blocks.sum_over_devices(sums)

    return mapping.map_devices(from_lists, in_axes=(0, 0, 0), out_axes=None)


@functools.lru_cache(maxsize=64)
def _of_points(setting: em.Setting, num_classes: int) -> Callable[..., Any]:
    def from_points(
        data: em.Data, labels: jax.Array, mixture: Any
    ) -> tuple[jax.Array, ...]:
        expect = em.Expectation(setting, data, mixture)
        dtype = data.mask.dtype

        def add_joint(joint: Any, block: tuple[jax.Array, ...]) -> Any:
            x, label = block
            members = jax.nn.one_hot(label, num_classes, axis=0, dtype=dtype)
            return joint + blocks.dot(members, expect(x.T)[1].T), None

        joint = jnp.zeros((num_classes, len(mixture.weights)), dtype)
        joint, _ = jax.lax.scan(add_joint, joint, (data.x, labels))
        conditional = _conditional(blocks.sum_over_devices(joint))

        def add_sums(sums: Any, block: tuple[jax.Array, ...]) -> Any:
            x, mask, label = block
            resp = expect(x.T)[1]
            # A gather of [B, K] from P: label by label, or all at once.
            predicted = jnp.sum(conditional[label].T * resp, axis=0)
            entropy = -jnp.sum(jax.scipy.special.xlogy(resp, resp), axis=0)
            more = _sums(predicted, entropy, mask, num_classes)
            return tuple(a + b for a, b in zip(sums, more, strict=True)), None

        zeros = (jnp.zeros((), dtype),) * 4
        sums, _ = jax.lax.scan(add_sums, zeros, (data.x, data.mask, labels))
        return blocks.sum_over_devices(sums)

    return mapping.map_devices(
        from_points, in_axes=(fitting.DATA_AXES, 0, None), out_axes=None
    )


def _conditional(joint: jax.Array) -> jax.Array:
    total = jnp.sum(joint, axis=0)
    return jnp.where(total > 0, joint / jnp.where(total > 0, total, 1), 0)


def _sums(
    predicted: jax.Array, entropy: jax.Array, often: jax.Array, num_classes: int
) -> tuple[jax.Array, ...]:
    """Sums over points that count `often` times, padding 0; in Likelihood's order."""
    positive = jnp.where(predicted > 0, predicted, 1 / num_classes)
    log = jnp.log(jnp.minimum(positive, 1))
    floored = jnp.log(predicted + PACTRAN_FLOOR)
    each = (log, predicted, floored, entropy)
    return tuple(jnp.sum(jnp.where(often > 0, often * v, 0)) for v in each)
