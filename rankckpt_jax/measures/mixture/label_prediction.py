"""The empirical predictor of LEEP and NLEEP for several labels per image.

N points, L labels, V source classes or components, A [N, V] >= 0 with rows that sum to
1, y_il = 1 if point i has label l, else 0. Each label is predicted on its own, with the
two classes "has it" and "has it not" of `prediction`:

    P(l | v) = sum_i A[i, v] y_il / sum_i A[i, v],    p_il = sum_v A[i, v] P(y_il | v),

where P(0 | v) = 1 - P(l | v). Results are means over points and labels, which are means
over the labels of LEEP.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

from rankckpt_jax.devices import mapping
from rankckpt_jax.measures.mixture import em, fitting
from rankckpt_jax.measures.mixture.prediction import PACTRAN_FLOOR, Prediction
from rankckpt_jax.measures.statistics import blocks


def of_assignments(assignments: jax.Array, labels: np.ndarray) -> Prediction:
    """Return the prediction from A [N, V].

    Args:
      assignments: A [N, V].
      labels: bool [N, L].
    """
    sums = _sum_assignments(assignments, jnp.asarray(labels, assignments.dtype))
    return _mean(sums, float(len(labels)), labels.shape[1])


def of_mixture(fitted: fitting.Fitted, labels: np.ndarray) -> Prediction:
    """Return the prediction from the responsibilities of a mixture.

    Args:
      fitted: The mixture with its training points.
      labels: bool [N, L], of the training points.
    """
    count, size = labels.shape
    if fitted.sparse is not None:
        components = fitted.setting.num_components
        points, values = (np.asarray(a)[:components] for a in fitted.sparse.lists)
        return _mean(_sum_lists(points, values, labels), count, size)
    data: Any = fitted.data
    shape = data.mask.shape
    split = blocks.split(labels, (blocks.num_devices() * shape[1], shape[2]))
    run = _map_points(fitted.setting, size)
    return _mean(
        run(data, blocks.for_devices(split), fitted.mixture), float(count), size
    )


def _mean(sums: Any, total: float, num_labels: int) -> Prediction:
    """Divide sums over points and labels; the entropy is a sum over points."""
    *predicted, entropy = (float(np.asarray(value)) / total for value in sums)
    log, probability, floored = (value / num_labels for value in predicted)
    return Prediction(log, probability, floored, entropy)


def _sum_lists(
    points: np.ndarray, values: np.ndarray, labels: np.ndarray
) -> tuple[float, ...]:
    """Sum over the listed points [K, W] of each component, in float64 on the host."""
    components, slots = np.nonzero(values > 0)
    resp = values[components, slots].astype(np.float64)
    # A', with about as many entries as points.
    sparse = scipy.sparse.csr_array(
        (resp, (components, points[components, slots])), (len(points), len(labels))
    )
    total = np.maximum(sparse.sum(axis=1), np.finfo(float).tiny)[:, None]
    has, lacks = (
        sparse.T @ ((sparse @ truth.astype(np.float64)) / total)
        for truth in (labels, ~labels)
    )
    predicted = np.where(labels, has, lacks)
    log = np.log(np.minimum(np.where(predicted > 0, predicted, 0.5), 1))
    floored = np.log(predicted + PACTRAN_FLOOR)
    entropy = -np.sum(resp * np.log(resp))
    return tuple(float(v.sum()) for v in (log, predicted, floored, entropy))


@jax.jit
def _sum_assignments(
    assignments: jax.Array, labels: jax.Array
) -> tuple[jax.Array, ...]:
    joint = (blocks.dot(a.T, assignments) for a in (labels, 1 - labels))
    ones = jnp.ones(len(labels), assignments.dtype)
    return _sum_points(assignments, labels, ones, _conditionals(*joint))


@functools.lru_cache(maxsize=64)
def _map_points(setting: em.Setting, num_labels: int) -> Callable[..., Any]:
    def sum_blocks(
        data: em.Data, labels: jax.Array, mixture: Any
    ) -> tuple[jax.Array, ...]:
        expect = em.expectation(setting.covariance_type, mixture, data.dimensions)
        dtype = data.mask.dtype

        def add_joint(joint: Any, block: tuple[jax.Array, ...]) -> Any:
            x, mask, label = block
            resp, members = expect(x.T)[1].T, label.astype(dtype) * mask[:, None]
            has, lacks = joint
            has = has + blocks.dot(members.T, resp)
            return (has, lacks + blocks.dot((mask[:, None] - members).T, resp)), None

        zeros = jnp.zeros((num_labels, len(mixture.weights)), dtype)
        blocked = data.x, data.mask, labels
        joint, _ = jax.lax.scan(add_joint, (zeros, zeros), blocked)
        conditionals = _conditionals(*blocks.sum_over_devices(joint))

        def add_sums(sums: Any, block: tuple[jax.Array, ...]) -> Any:
            x, mask, label = block
            resp = expect(x.T)[1].T
            more = _sum_points(resp, label.astype(dtype), mask, conditionals)
            return tuple(a + b for a, b in zip(sums, more, strict=True)), None

        none = (jnp.zeros((), dtype),) * 4
        sums, _ = jax.lax.scan(add_sums, none, blocked)
        return blocks.sum_over_devices(sums)

    axes = (fitting.DATA_AXES, 0, None)
    return mapping.map_devices(sum_blocks, in_axes=axes, out_axes=None)


def _conditionals(has: jax.Array, lacks: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return P(1 | v) and P(0 | v) [L, V]; zeros for a v without any point."""
    total = has + lacks
    seen = total > 0
    total = jnp.where(seen, total, 1)
    return jnp.where(seen, has / total, 0), jnp.where(seen, lacks / total, 0)


def _sum_points(
    assignments: jax.Array,
    labels: jax.Array,
    weights: jax.Array,
    conditionals: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, ...]:
    """Return weighted sums over points, and labels, in the order of `Prediction`."""
    has, lacks = (blocks.dot(assignments, a.T) for a in conditionals)
    predicted = jnp.where(labels > 0, has, lacks)
    log = jnp.log(jnp.minimum(jnp.where(predicted > 0, predicted, 0.5), 1))
    floored = jnp.log(predicted + PACTRAN_FLOOR)
    entropy = -jax.scipy.special.xlogy(assignments, assignments)
    values = (jnp.sum(v, axis=1) for v in (log, predicted, floored, entropy))
    return tuple(jnp.sum(jnp.where(weights > 0, weights * v, 0)) for v in values)
