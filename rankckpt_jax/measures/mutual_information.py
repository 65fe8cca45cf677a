"""Mutual information of features and labels, by MINE (Belghazi et al. 2018, ICML).

N images, C classes. For any critic T(x, y) the Donsker-Varadhan bound is

    I(X; Y) >= 1/N sum_i T(x_i, y_i) - log 1/N sum_i sum_c pi_c exp T(x_i, c)
                                                                (their equation 10)

with pi_c the share of class c: the labels are few, and the product of the marginals is
summed over them instead of being sampled. The critic, a network with one hidden layer
and an output for each class, reads the features' first 64 principal components, scaled
to unit mean variance. It learns from one half of the images and the bound is taken on
the other, with the halves exchanged for the second of two estimates, whose mean is the
score: on the images it learned from a critic would find information in noise.

Cost: 2 N D^2, shared, and N (64 + C) 256 FLOP for each of 6 x `num_steps`. Range: at
most log C, in nats; near 0 or below for noise. Higher is better. The paper names the
measure and not its critic; this one is ours.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rankckpt_jax.errors import InputError
from rankckpt_jax.measures import blocks
from rankckpt_jax.measures.registry import Result, register
from rankckpt_jax.measures.statistics import Statistics

_DIMENSIONS = 64
_HIDDEN = 128
_WEIGHT_DECAY = 1e-2


@register("mutual_information")
def mutual_information(
    features: jax.Array,
    labels: jax.Array,
    num_classes: int,
    seed: int,
    statistics: Statistics,
    num_steps: int = 300,
    max_images: int = 10_000,
) -> Result:
    """A lower bound of I(features; labels); at most `max_images` are drawn."""
    count = len(statistics.labels)
    if count < 4:
        raise InputError(
            "Mutual information is learned on one half and measured on the other",
            expected="at least 4 images",
            found=f"{count}",
        )
    x = statistics.principal(_DIMENSIONS)
    variance = np.mean(x**2)
    x = x / np.sqrt(variance) if variance > 0 else x
    order = np.random.default_rng(seed).permutation(count)[:max_images]
    half = len(order) // 2
    halves = order[:half], order[half : 2 * half]
    key = jax.random.key(seed)
    dtype = features.dtype
    bounds = [
        float(
            _bound(
                jnp.asarray(x[learn], dtype),
                labels[learn],
                jnp.asarray(x[ask], dtype),
                labels[ask],
                jax.random.fold_in(key, i),
                num_classes,
                num_steps,
            )
        )
        for i, (learn, ask) in enumerate((halves, halves[::-1]))
    ]
    score = min(float(np.mean(bounds)), float(np.log(num_classes)))
    return Result(score, {"bounds": bounds})


@functools.partial(jax.jit, static_argnums=(5, 6))
def _bound(
    x: jax.Array,
    labels: jax.Array,
    held_out: jax.Array,
    held_out_labels: jax.Array,
    key: jax.Array,
    num_classes: int,
    num_steps: int,
) -> jax.Array:
    initialise = jax.nn.initializers.he_normal()
    first, second = jax.random.split(key)
    params = {
        "hidden": initialise(first, (x.shape[1], _HIDDEN), x.dtype),
        "bias": jnp.zeros(_HIDDEN, x.dtype),
        "output": initialise(second, (_HIDDEN, num_classes), x.dtype) / 10,
    }
    shares = jnp.bincount(labels, length=num_classes) / len(labels)
    log_shares = jnp.log(jnp.maximum(shares, 1e-30)).astype(x.dtype)

    def bound(params: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
        hidden = jax.nn.relu(blocks.dot(x, params["hidden"]) + params["bias"])
        critic = blocks.dot(hidden, params["output"])
        joint = jnp.mean(jnp.take_along_axis(critic, labels[:, None], axis=1))
        return joint - jax.nn.logsumexp(critic + log_shares) + jnp.log(len(x))

    optimizer = optax.adamw(1e-2, weight_decay=_WEIGHT_DECAY)

    def step(_: int, state: Any) -> Any:
        params, carried, best = state
        gradient = jax.grad(lambda p: -bound(p, x, labels))(params)
        updates, carried = optimizer.update(gradient, carried, params)
        params = optax.apply_updates(params, updates)
        # Each step's bound is one; the largest over few critics is hardly biased.
        return (
            params,
            carried,
            jnp.maximum(best, bound(params, held_out, held_out_labels)),
        )

    state = params, optimizer.init(params), jnp.asarray(-jnp.inf, x.dtype)
    return jax.lax.fori_loop(0, num_steps, step, state)[2]
