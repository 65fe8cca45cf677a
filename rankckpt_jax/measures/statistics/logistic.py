"""Multinomial logistic regression by L-BFGS (Optax) on the device, for several ridges.

N images, P coordinates, C classes, weights s_i of the images, a ridge r:

    J(W, b) = sum_i s_i xent(W'z_i + b, y_i) / sum_i s_i + r/2 |W|^2

z are coordinates along the eigenvectors of the scatter, with variances v [P]. The
Hessian of J in W is near v / C + r there, so that L-BFGS works on W / sqrt(v / C + r),
in which it is near the identity: what would take thousands of steps takes tens. All
ridges are solved at once, each step one product [N, P] x [P, R C].
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

_LOSS_ROUNDING = {"float32": 1e-6, "float64": 1e-14}
"""A step may raise the loss by this share of it, which is rounding."""


class Solution(NamedTuple):
    """Solutions of R ridges.

    Attributes:
      kernel: W [R, P, C].
      bias: b [R, C].
      loss: J [R].
      gradient: The largest entry of J's gradient, as scaled, [R].
      steps: Steps taken [R].
    """

    kernel: jax.Array
    bias: jax.Array
    loss: jax.Array
    gradient: jax.Array
    steps: jax.Array


def coordinates(statistics: Statistics) -> tuple[jax.Array, np.ndarray]:
    """Z [N, K] in the features' dtype, and variances v [K] that are not zero."""
    rank = max(statistics.rank, 1)
    z = statistics.principal(rank)
    variances = statistics.spectrum[0][::-1][: z.shape[1]] / statistics.total
    return jnp.asarray(z, statistics.features.dtype), variances


def fit(
    z: jax.Array,
    labels: np.ndarray,
    weights: np.ndarray,
    num_classes: int,
    variances: np.ndarray,
    ridges: np.ndarray,
    *,
    max_steps: int,
    tolerance: float = 0.0,
) -> Solution:
    """Minimizes J for every ridge.

    Args:
      z: float [N, P].
      labels: int [N].
      weights: s [N], not negative.
      num_classes: C.
      variances: v [P].
      ridges: r [R], positive.
      max_steps: Steps of L-BFGS after which it gives up.
      tolerance: It is done where no entry of the gradient, as scaled, is larger; at
        least what the features' dtype can tell from zero.

    Returns:
      The solutions; their gradients tell how far they are converged.
    """
    dtype = z.dtype
    tolerance = max(tolerance, 2e-6 if dtype == np.float32 else 1e-10)
    scales = 1 / np.sqrt(variances / num_classes + np.asarray(ridges)[:, None])
    # Optax's line search takes a constant for float64 wherever that is enabled.
    with jax.enable_x64(dtype == np.float64):
        return _fit(
            z,
            jnp.asarray(labels, jnp.int32),
            jnp.asarray(weights / weights.sum(), dtype),
            jnp.asarray(scales, dtype),
            jnp.asarray(ridges, dtype),
            num_classes,
            max_steps,
            tolerance,
        )


def logits(z: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """W'z + b of one solution: [N, C]."""
    return blocks.dot(z, kernel) + bias


@functools.partial(jax.jit, static_argnames=("num_classes", "max_steps", "tolerance"))
def _fit(
    z: jax.Array,
    labels: jax.Array,
    weights: jax.Array,
    scales: jax.Array,
    ridges: jax.Array,
    num_classes: int,
    max_steps: int,
    tolerance: float,
) -> Solution:
    dtype = z.dtype
    # An image's p (1 - p) is about 1 / C, for the bias as for the kernel.
    bias_scale = jnp.sqrt(jnp.asarray(num_classes, dtype))

    def solve(scale: jax.Array, ridge: jax.Array) -> Solution:
        def unscaled(theta: Any) -> Any:
            return scale[:, None] * theta[0], bias_scale * theta[1]

        def loss(theta: Any) -> jax.Array:
            kernel, bias = unscaled(theta)
            each = optax.softmax_cross_entropy_with_integer_labels(
                logits(z, kernel, bias), labels
            )
            return jnp.sum(weights * each) + ridge / 2 * jnp.sum(kernel**2)

        # From a unit step down: scaled as it is, nearly every first try is taken. The
        # usual zoom search takes as many evaluations and ten times as long to compile.
        search = optax.scale_by_backtracking_linesearch(
            12, decrease_factor=0.3, rtol=_LOSS_ROUNDING[dtype.name], store_grad=True
        )
        solver = optax.lbfgs(memory_size=20, linesearch=search)

        def goes_on(carry: Any) -> jax.Array:
            _, _, _, _, largest, gain, count = carry
            # In float32 the loss stops falling before the gradient is as small.
            moving = (gain > 0) | (count < 2)
            return (count < max_steps) & (largest > tolerance) & moving

        def step(carry: Any) -> Any:
            theta, state, value, gradient, _, _, count = carry
            # A ridge that is done waits for the others; with a gradient it would make
            # all of them search along a line on which there is nothing to gain.
            active = goes_on(carry)
            gradient = jax.tree.map(lambda g: jnp.where(active, g, 0), gradient)
            updates, state = solver.update(
                gradient, state, theta, value=value, grad=gradient, value_fn=loss
            )
            theta = optax.apply_updates(theta, updates)
            # What the search has evaluated last is where it went.
            reached, after = (optax.tree.get(state, key) for key in ("value", "grad"))
            largest = jnp.maximum(*(jnp.max(jnp.abs(g)) for g in after))
            return theta, state, reached, after, largest, value - reached, count + 1

        size = (len(scale), num_classes)
        theta = (jnp.zeros(size, dtype), jnp.zeros(num_classes, dtype))
        infinite = jnp.asarray(jnp.inf, dtype)
        none = jnp.zeros((), jnp.int32)
        first = jax.value_and_grad(loss)(theta)
        start = (theta, solver.init(theta), *first, infinite, infinite, none)
        found = jax.lax.while_loop(goes_on, step, start)
        theta, _, value, _, largest, _, count = found
        kernel, bias = unscaled(theta)
        return Solution(kernel, bias, value, largest, count)

    return jax.vmap(solve)(scales, ridges)
