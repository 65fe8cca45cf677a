"""Multinomial logistic regression on the device, by L-BFGS.

N images, D dimensions, C classes, weights W [D, C] and biases b [C]:

    J = sum_i w_i [logsumexp(W'x_i + b) - (W'x_i + b)_{y_i}] / sum_i w_i + r/2 |W|^2

is convex. Full-batch L-BFGS (Optax's, with its zoom line search) runs to its end in one
compiled loop, for several ridges r at once. Cost: about 6 N D C FLOP a step and ridge.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from rankckpt_jax.measures import blocks


class Logistic(NamedTuple):
    """A classifier, or several: with a leading axis over the ridges.

    Attributes:
      weights: [D, C].
      biases: [C].
    """

    weights: jax.Array
    biases: jax.Array


def logits(model: Logistic, x: jax.Array) -> jax.Array:
    """W'x + b for x [N, D]: [N, C]."""
    return blocks.dot(x, model.weights) + model.biases


def cross_entropy(
    model: Logistic, x: jax.Array, labels: jax.Array, mask: jax.Array
) -> jax.Array:
    """Mean of -log p(y_i | x_i) where mask [N] is 1."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits(model, x), labels)
    return jnp.sum(losses * mask) / jnp.sum(mask)


@functools.partial(jax.jit, static_argnums=(4, 5))
def fit(
    x: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    ridges: jax.Array,
    num_classes: int,
    num_steps: int = 100,
) -> Logistic:
    """Minimises J for each of several ridges.

    Args:
      x: [N, D].
      labels: int [N].
      mask: [N], 1 for an image that is learned from.
      ridges: [R].
      num_classes: C.
      num_steps: Most steps; it stops earlier where the gradient is rounding error.

    Returns:
      The classifiers, with a leading axis R.
    """
    optimizer = optax.lbfgs()
    tolerance = 10 * jnp.finfo(x.dtype).eps

    def fit_one(ridge: jax.Array) -> Logistic:
        def objective(model: Logistic) -> jax.Array:
            loss = cross_entropy(model, x, labels, mask)
            return loss + ridge / 2 * jnp.sum(model.weights**2)

        value_and_gradient = optax.value_and_grad_from_state(objective)

        def going_on(state: tuple) -> jax.Array:
            _, _, step, length = state
            return (step < num_steps) & (length > tolerance)

        def advance(state: tuple) -> tuple:
            model, carried, step, _ = state
            value, gradient = value_and_gradient(model, state=carried)
            updates, carried = optimizer.update(
                gradient,
                carried,
                model,
                value=value,
                grad=gradient,
                value_fn=objective,
            )
            length = optax.tree.norm(gradient)
            return optax.apply_updates(model, updates), carried, step + 1, length

        start = Logistic(
            jnp.zeros((x.shape[1], num_classes), x.dtype),
            jnp.zeros(num_classes, x.dtype),
        )
        infinite = jnp.asarray(jnp.inf, x.dtype)
        state = start, optimizer.init(start), jnp.int32(0), infinite
        return jax.lax.while_loop(going_on, advance, state)[0]

    return jax.vmap(fit_one)(ridges.astype(x.dtype))
