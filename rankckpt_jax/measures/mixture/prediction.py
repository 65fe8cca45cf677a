"""The empirical predictor of LEEP and NLEEP.

N points, C classes, V source classes or components, A [N, V] >= 0 with rows that sum
to 1. With J[c, v] = sum_i A[i, v] 1[y_i = c], Nguyen et al. (2020, equations 1 to 3)
define

    P(c | v) = J[c, v] / sum_c J[c, v],    p_i = sum_v P(y_i | v) A[i, v],

where p_i is the expected prediction of the true class of point i.

`of_assignments` takes A as an array. `of_mixture` takes a fitted mixture and reads A
from the lists of `sparse_em`, or computes A block by block, twice, so that no [N, V]
array exists; J [C, V] is summed over the devices.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rankckpt_jax.devices import mapping
from rankckpt_jax.measures.mixture import em, fitting
from rankckpt_jax.measures.statistics import blocks

PACTRAN_FLOOR = 1e-10
"""Added to each expected prediction by PACTran's NLEEP."""


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Means over the points.

    Attributes:
      log: Of log p_i. As in Google's stable_transfer, p_i = 0, which can result from
        underflow, is replaced by 1 / C.
      probability: Of p_i.
      log_floored: Of log(p_i + 1e-10).
      entropy: Of the entropy of A[i], in nats.
    """

    log: float
    probability: float
    log_floored: float
    entropy: float


def of_assignments(
    assignments: jax.Array, labels: jax.Array, num_classes: int
) -> Prediction:
    """Return the prediction from A [N, V].

    Args:
      assignments: A [N, V].
      labels: int [N] in 0 ... C-1.
      num_classes: C.
    """
    sums = _sum_assignments(assignments, labels, num_classes)
    return Prediction(*(float(total) / len(labels) for total in sums))


def of_mixture(
    fitted: fitting.Fitted, labels: np.ndarray, num_classes: int
) -> Prediction:
    """Return the prediction from the responsibilities of a mixture.

    Args:
      fitted: The mixture with its training points.
      labels: int [N] in 0 ... C-1, of the training points.
      num_classes: C.
    """
    labels = np.asarray(labels, np.int32)
    if fitted.sparse is not None:
        count = fitted.setting.num_components
        points, values = (np.asarray(a)[:count] for a in fitted.sparse.lists)
        return _of_lists(points, values, labels, num_classes)
    data: Any = fitted.data
    shape = data.mask.shape
    split = blocks.split(labels, (blocks.num_devices() * shape[1], shape[2]), fill=-1)
    run = _map_points(fitted.setting, num_classes)
    sums = run(data, blocks.for_devices(split), fitted.mixture)
    return Prediction(*(float(np.asarray(total)) / len(labels) for total in sums))


def _of_lists(
    points: np.ndarray, values: np.ndarray, labels: np.ndarray, num_classes: int
) -> Prediction:
    """Return the prediction from the listed points [K, W] of each component.

    There are about as many pairs as points, so this runs on the host in float64.
    """
    components, slots = np.nonzero(values > 0)
    rows = points[components, slots]
    resp = values[components, slots].astype(np.float64)
    # J [V, C] as one axis, summed over the pairs.
    place = components * num_classes + labels[rows]
    joint = np.bincount(place, resp, len(points) * num_classes)
    total = joint.reshape(-1, num_classes).sum(axis=1)
    conditional = joint[place] / total[components]
    predicted = np.bincount(rows, conditional * resp, len(labels))
    log = np.log(np.minimum(np.where(predicted > 0, predicted, 1 / num_classes), 1))
    return Prediction(
        float(log.mean()),
        float(predicted.mean()),
        float(np.log(predicted + PACTRAN_FLOOR).mean()),
        float(-np.sum(resp * np.log(resp)) / len(labels)),
    )


@functools.partial(jax.jit, static_argnums=2)
def _sum_assignments(
    assignments: jax.Array, labels: jax.Array, num_classes: int
) -> tuple[jax.Array, ...]:
    members = jax.nn.one_hot(labels, num_classes, dtype=assignments.dtype)
    conditional = _conditional(blocks.dot(members.T, assignments))
    predicted = jnp.sum(conditional[labels] * assignments, axis=1)
    entropy = -jnp.sum(jax.scipy.special.xlogy(assignments, assignments), axis=1)
    ones = jnp.ones(len(labels), assignments.dtype)
    return _sum_points(predicted, entropy, ones, num_classes)


@functools.lru_cache(maxsize=64)
def _map_points(setting: em.Setting, num_classes: int) -> Callable[..., Any]:
    def sum_blocks(
        data: em.Data, labels: jax.Array, mixture: Any
    ) -> tuple[jax.Array, ...]:
        expect = em.expectation(setting.covariance_type, mixture, data.dimensions)
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
            predicted = jnp.sum(conditional[label].T * resp, axis=0)
            entropy = -jnp.sum(jax.scipy.special.xlogy(resp, resp), axis=0)
            more = _sum_points(predicted, entropy, mask, num_classes)
            return tuple(a + b for a, b in zip(sums, more, strict=True)), None

        zeros = (jnp.zeros((), dtype),) * 4
        sums, _ = jax.lax.scan(add_sums, zeros, (data.x, data.mask, labels))
        return blocks.sum_over_devices(sums)

    axes = (fitting.DATA_AXES, 0, None)
    return mapping.map_devices(sum_blocks, in_axes=axes, out_axes=None)


def _conditional(joint: jax.Array) -> jax.Array:
    """Return P(c | v) from J [C, V]; zeros for a v without any point."""
    total = jnp.sum(joint, axis=0)
    seen = total > 0
    return jnp.where(seen[None], joint / jnp.where(seen, total, 1)[None], 0)


def _sum_points(
    predicted: jax.Array, entropy: jax.Array, weights: jax.Array, num_classes: int
) -> tuple[jax.Array, ...]:
    """Return weighted sums over points in the order of `Prediction`'s attributes."""
    positive = jnp.where(predicted > 0, predicted, 1 / num_classes)
    log = jnp.log(jnp.minimum(positive, 1))
    floored = jnp.log(predicted + PACTRAN_FLOOR)
    values = (log, predicted, floored, entropy)
    return tuple(jnp.sum(jnp.where(weights > 0, weights * v, 0)) for v in values)
