"""Logistic regression by L-BFGS (Optax) on the device, for several ridges.

N images, P coordinates, C classes, ridge r. It minimizes

    J(W, b) = 1/N sum_i xent(W z_i + b, y_i) + r/2 |W|^2

where xent is the cross entropy of the softmax; or, for several labels per image, the
sum over L labels of that of the sigmoid, which fits each label on its own. z are
coordinates along the eigenvectors of the scatter, with variances v [P]. The Hessian of
J in W is approximately v / C + r, and at most v / 4 + r for labels. L-BFGS therefore
works on W / sqrt(v / C + r), in which the Hessian is near the identity, and needs tens
of steps instead of thousands. Ridges are solved one after the other, each from the
solution of the one before. Products are computed in blocks of images. Otherwise a TPU's
compiler takes five to ten times as long. W is [C, P], because XLA computes the
gradient of [P, C] at less than half of the rate on a CPU.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rankckpt_jax.measures.statistics import blocks
from rankckpt_jax.measures.statistics.class_statistics import Statistics

_BLOCK = 512
"""Images per block."""

_SIGMOID_OUTCOMES = 4
"""C of the sigmoid: p (1 - p) is at most 1/4."""

_LOSS_ROUNDING = {"float32": 1e-6, "float64": 1e-14}
"""Relative increase of the loss per step that counts as rounding."""

_LEAST_GAIN = {"float32": 1e-6, "float64": 1e-14}
"""Relative decrease of the loss by each of the last two steps. For 20,000 simulated
images of 2,048 dimensions in float32, 1e-7 lowers the loss by another 2e-6 of it."""


class Solution(NamedTuple):
    """Solutions for R ridges.

    Attributes:
      kernel: W [R, C, P].
      bias: b [R, C].
      loss: J [R].
      gradient: Largest entry of the scaled gradient of J, [R].
    """

    kernel: jax.Array
    bias: jax.Array
    loss: jax.Array
    gradient: jax.Array


def coordinates(statistics: Statistics) -> tuple[jax.Array, np.ndarray]:
    """Return coordinates [N, P] in the dtype of the features, and variances v > 0."""
    z = statistics.coordinates
    variances = statistics.spectrum[0][::-1][: z.shape[1]] / statistics.num_images
    return jnp.asarray(z), variances


def fit(
    z: jax.Array,
    labels: np.ndarray,
    num_classes: int,
    variances: np.ndarray,
    ridges: np.ndarray,
    *,
    max_steps: int,
    tolerance: float = 0.0,
) -> Solution:
    """Minimize J for every ridge.

    Args:
      z: float [N, P].
      labels: int [N], or bool [N, L].
      num_classes: C or L.
      variances: v [P].
      ridges: r [R], positive.
      max_steps: Maximum number of L-BFGS steps.
      tolerance: Converged if no entry of the scaled gradient is larger. It is raised to
        the resolution of the dtype.

    Returns:
      The solutions, with the remaining gradients.
    """
    dtype = z.dtype
    tolerance = max(tolerance, 2e-6 if dtype == np.float32 else 1e-10)
    is_matrix = labels.ndim == 2
    outcomes = _SIGMOID_OUTCOMES if is_matrix else num_classes
    scales = 1 / np.sqrt(variances / outcomes + np.asarray(ridges)[:, None])
    # If float64 is enabled, Optax's line search mixes it with float32.
    with jax.enable_x64(dtype == np.float64):
        return _fit(
            z,
            jnp.asarray(labels, dtype if is_matrix else jnp.int32),
            jnp.asarray(scales, dtype),
            jnp.asarray(ridges, dtype),
            num_classes,
            max_steps,
            tolerance,
        )


def logits(z: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """Return W z + b of one solution: [N, C]."""
    return blocks.dot(z, kernel.T) + bias[None]


@functools.partial(jax.jit, static_argnames=("num_classes", "max_steps", "tolerance"))
def _fit(
    z: jax.Array,
    labels: jax.Array,
    scales: jax.Array,
    ridges: jax.Array,
    num_classes: int,
    max_steps: int,
    tolerance: float,
) -> Solution:
    dtype, count = z.dtype, len(z)
    size = min(_BLOCK, count)
    padding = -count % size
    # Padding has weight 0.
    weights = jnp.full(count, 1 / count, dtype)
    data = tuple(
        jnp.pad(a, ((0, padding), *((0, 0),) * (a.ndim - 1))).reshape(
            -1, size, *a.shape[1:]
        )
        for a in (z, labels, weights)
    )
    # p (1 - p) of an image is about 1 / C, for the bias as for the kernel.
    outcomes = _SIGMOID_OUTCOMES if labels.ndim == 2 else num_classes
    bias_scale = jnp.sqrt(jnp.asarray(outcomes, dtype))

    def cross_entropies(logits: jax.Array, labels: jax.Array) -> jax.Array:
        if labels.ndim == 2:
            each = optax.sigmoid_binary_cross_entropy(logits, labels)
            return jnp.sum(each, axis=1)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)

    def solve(
        before: tuple[jax.Array, jax.Array], problem: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], Solution]:
        scale, ridge = problem

        def unscaled(theta: Any) -> Any:
            return scale[None] * theta[0], bias_scale * theta[1]

        def loss(theta: Any) -> jax.Array:
            kernel, bias = unscaled(theta)

            def add(total: jax.Array, block: tuple[jax.Array, ...]) -> Any:
                z, labels, weights = block
                each = cross_entropies(logits(z, kernel, bias), labels)
                return total + jnp.sum(weights * each), None

            total, _ = jax.lax.scan(add, jnp.zeros((), dtype), data)
            return total + ridge / 2 * jnp.sum(kernel**2)

        # Backtracking from a unit step, which is nearly always accepted at once. A zoom
        # line search needs as many evaluations and compiles ten times as long.
        search = optax.scale_by_backtracking_linesearch(
            12, decrease_factor=0.3, rtol=_LOSS_ROUNDING[dtype.name], store_grad=True
        )
        solver = optax.lbfgs(linesearch=search)

        def is_running(carry: Any) -> jax.Array:
            _, _, value, _, largest, gains, count = carry
            # In float32 the loss stops decreasing before the gradient is small. A
            # single step can be short by chance.
            moving = jnp.max(gains) > _LEAST_GAIN[dtype.name] * value
            return (count < max_steps) & (largest > tolerance) & moving

        def step(carry: Any) -> Any:
            theta, state, value, gradient, _, gains, count = carry
            updates, state = solver.update(
                gradient, state, theta, value=value, grad=gradient, value_fn=loss
            )
            theta = optax.apply_updates(theta, updates)
            # The line search evaluated the accepted point last.
            reached, after = (optax.tree.get(state, key) for key in ("value", "grad"))
            largest = jnp.maximum(*(jnp.max(jnp.abs(g)) for g in after))
            gains = jnp.stack([gains[1], value - reached])
            return theta, state, reached, after, largest, gains, count + 1

        theta = before[0] / scale[None], before[1] / bias_scale
        infinite = jnp.asarray(jnp.inf, dtype)
        none = jnp.zeros((), jnp.int32)
        first = jax.value_and_grad(loss)(theta)
        gains = jnp.stack([infinite, infinite])
        start = (theta, solver.init(theta), *first, infinite, gains, none)
        end = jax.lax.while_loop(is_running, step, start)
        theta, _, value, _, largest, _, _ = end
        kernel, bias = unscaled(theta)
        return (kernel, bias), Solution(kernel, bias, value, largest)

    zeros = jnp.zeros((num_classes, z.shape[1]), dtype)
    start = zeros, jnp.zeros(num_classes, dtype)
    return jax.lax.scan(solve, start, (scales, ridges))[1]
