"""Mutual information of features and labels, by MINE (Belghazi et al. 2018, ICML).

N images, C classes. For any critic T(x, y) the Donsker-Varadhan bound (their theorem 1,
and definition 3.1 with sample means) is

    I(X; Y) >= 1/N sum_i T(x_i, y_i) - log 1/N sum_i sum_c pi_c exp T(x_i, c)

with pi_c the share of class c: the labels are few, and the product of the marginals is
summed over them instead of being sampled. The critic, a network with one hidden layer
and an output for each class, reads the features' first 64 principal components, scaled
to unit mean variance.

On the images it learned from a critic finds information in noise, and so does one that
is stopped where it looks best. So images are divided in halves, class by class: a
critic learns from four fifths of one half, is stopped where the bound on the last fifth
is largest, and the bound on the other half is one estimate. The score is the mean over
both ways round and over the restarts. A critic's last layer starts at zero, where the
bound is 0.

Cost: 2 N D^2, shared, and 6 N (64 + C) 128 FLOP for each step of four critics. Range:
at most log C, in nats; near 0 or below for noise. Higher is better. Li et al. (2021)
name the measure and not their critic; this one is ours. Published critics draw the
product of the marginals by shuffling the labels, and measure on what they learned from.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.special

from rankckpt_jax.errors import InputError
from rankckpt_jax.measures.registry import Inputs, Result, register
from rankckpt_jax.measures.statistics import blocks, sampling

_DIMENSIONS = 64
_HIDDEN = 128
_LEARNING_RATE = 1e-2
_WEIGHT_DECAY = 1e-2
_VALIDATION = 5
"""One in so many images of a half decides where its critic stops."""


@register("mutual_information")
def mutual_information(
    inputs: Inputs,
    num_steps: int = 200,
    num_restarts: int = 2,
    max_images: int = 10_000,
) -> Result:
    """A lower bound of I(features; labels).

    Args:
      inputs: Features [N, D] and labels [N]; the seed decides halves and starts.
      num_steps: Steps of Adam, each over half of the images.
      num_restarts: Critics for each half.
      max_images: More are not learned from, see `sampling.subset`.

    Returns:
      The estimate; in its details the `scores` of the restarts and, of two or more,
      their standard deviation `spread`.

    Raises:
      InputError: No class has four images, which the halves need.
    """
    features = inputs.features
    num_classes = inputs.num_classes
    seed = inputs.seed
    statistics = inputs.statistics
    if statistics.sizes.max() < 4:
        raise InputError(
            "Mutual information is learned on one half and measured on the other",
            expected="at least four images in some class",
            found=f"{statistics.sizes.max()}",
        )
    rows = sampling.subset(statistics.labels, max_images, seed)
    labels = statistics.labels[rows]
    x = statistics.principal(_DIMENSIONS)
    variance = np.mean(x**2)
    x = (x / np.sqrt(variance) if variance > 0 else x)[rows]
    # A decomposition leaves the signs open; the third moments decide them.
    x = x * np.where(np.sum(x**3, axis=0) < 0, -1, 1)
    part = parts(labels, seed)
    critics = np.asarray(
        _critics(
            jnp.asarray(x, features.dtype),
            jnp.asarray(labels),
            jnp.asarray(part),
            starts(x.shape[1], features.dtype, seed, num_restarts),
            num_classes,
            num_steps,
        ),
        np.float64,
    )

    asked = part % 2 == 1, part % 2 == 0

    def scores(weights: np.ndarray) -> np.ndarray:
        often = weights[rows]
        # The critic of one half is asked about the other.
        bounds = [
            [_bound(pair[half][a], labels[a], often[a]) for half, a in enumerate(asked)]
            for pair in critics
        ]
        return np.mean(bounds, axis=1)

    found = scores(statistics.weights)
    details: dict[str, Any] = {"scores": found.tolist(), "num_images": len(rows)}
    if num_restarts > 1:
        details["spread"] = float(np.std(found, ddof=1))
    return Result(
        float(found.mean()),
        details,
        reweighted=lambda weights: float(scores(weights).mean()),
    )


def parts(labels: np.ndarray, seed: int) -> np.ndarray:
    """The half, 0 or 1, of each image; 2 more where it decides when to stop: [N]."""
    part = np.zeros(len(labels), np.int32)
    start = 0
    for group in sampling.shuffled_classes(labels, seed):
        # Counted on from class to class, so that small ones fall into every part.
        place = start + np.arange(len(group))
        start += len(group)
        part[group] = place % 2 + 2 * (place // 2 % _VALIDATION == 0)
    return part


def starts(dimensions: int, dtype: Any, seed: int, count: int) -> jax.Array:
    """The hidden layers with which critics start: [count, min(D, 64), 128]."""
    shape = min(dimensions, _DIMENSIONS), _HIDDEN
    normal = jax.nn.initializers.he_normal()
    keys = jax.random.split(jax.random.key(seed), count)
    return jnp.stack([normal(key, shape, dtype) for key in keys])


def _bound(critic: np.ndarray, labels: np.ndarray, often: np.ndarray) -> float:
    """Donsker and Varadhan's, of T [n, C] on images that count `often` times."""
    total = often.sum()
    shares = np.bincount(labels, often, critic.shape[1]) / total
    joint = often @ np.take_along_axis(critic, labels[:, None], axis=1)[:, 0] / total
    product = scipy.special.logsumexp(critic, b=np.outer(often / total, shares))
    return float(joint - product)


@functools.partial(jax.jit, static_argnames=("num_classes", "num_steps"))
def _critics(
    x: jax.Array,
    labels: jax.Array,
    part: jax.Array,
    hidden: jax.Array,
    num_classes: int,
    num_steps: int,
) -> jax.Array:
    """T of all images by a critic of each start and half: [restarts, 2, N, C]."""
    optimizer = optax.adamw(_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    truth = jax.nn.one_hot(labels, num_classes, dtype=x.dtype)

    def critic(params: Any) -> jax.Array:
        hidden = jax.nn.relu(blocks.dot(x, params["hidden"]) + params["bias"])
        return blocks.dot(hidden, params["output"])

    def bound(values: jax.Array, mask: jax.Array) -> jax.Array:
        weight = mask / jnp.maximum(jnp.sum(mask), 1)
        logs = jnp.log(jnp.maximum(blocks.dot(weight, truth), 1e-30))
        joint = jnp.sum(weight * jnp.sum(values * truth, axis=1))
        rows = jax.nn.logsumexp(values + logs, axis=1)
        return joint - jax.nn.logsumexp(rows, b=weight)

    def learn(hidden: jax.Array, half: jax.Array) -> jax.Array:
        own = part % 2 == half
        learned = (own & (part < 2)).astype(x.dtype)
        stopping = (own & (part >= 2)).astype(x.dtype)
        params = {
            "hidden": hidden,
            "bias": jnp.zeros(_HIDDEN, x.dtype),
            "output": jnp.zeros((_HIDDEN, num_classes), x.dtype),
        }

        def loss(params: Any) -> tuple[jax.Array, jax.Array]:
            values = critic(params)
            return -bound(values, learned), values

        def step(_: Any, state: Any) -> Any:
            params, carried, best, kept = state
            gradient, values = jax.grad(loss, has_aux=True)(params)
            found = bound(values, stopping)
            kept = jax.tree.map(
                lambda a, b: jnp.where(found > best, a, b), params, kept
            )
            updates, carried = optimizer.update(gradient, carried, params)
            params = optax.apply_updates(params, updates)
            return params, carried, jnp.maximum(best, found), kept

        worst = jnp.asarray(-jnp.inf, x.dtype)
        state = params, optimizer.init(params), worst, params
        return critic(jax.lax.fori_loop(0, num_steps, step, state)[3])

    halves = jnp.arange(2)
    return jax.vmap(lambda start: jax.vmap(lambda h: learn(start, h))(halves))(hidden)
