"""Mutual information (Belghazi et al. 2018, ICML): MINE's lower bound.

N images, C classes with frequencies pi_c. For any critic T(x, y), the Donsker-Varadhan
bound (their theorem 1, and definition 3.1 with sample means) is

    I(X; Y) >= 1/N sum_i T(x_i, y_i) - log 1/N sum_i sum_c pi_c exp T(x_i, c)

The product of the marginals is summed over all classes instead of being sampled. The
critic is a network with one hidden layer and one output per class. Its inputs are the
first 64 principal components of the features, scaled to a mean variance of 1.

On its own training images, a critic finds information even in noise, and so does early
stopping on the images that are scored. Images are therefore split into two halves,
class by class. A critic is trained on four fifths of one half, stopped where the bound
on the last fifth is largest, and evaluated on the other half. The score is the mean
over both directions and over the restarts. The last layer of a critic starts at zero,
where the bound is 0.

Cost: 2 N D^2 FLOP, shared, and 6 N (64 + C) 128 per step of four critics. Range: at
most log C, in nats; about 0 for noise. Higher is better. Li et al. (2021) name this
measure but do not specify a critic; this one is our choice. Published critics sample
the product of the marginals by shuffling labels, and evaluate on the training images.
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
from rankckpt_jax.measures.registry import UNIT_SCALE, Inputs, Regime, Result, register
from rankckpt_jax.measures.statistics import blocks, sampling

_DIMENSIONS = 64
_HIDDEN = 128
_LEARNING_RATE = 1e-2
_WEIGHT_DECAY = 1e-2
_BLOCK = 512
"""Images that a critic evaluates at once."""
_VALIDATION = 5
"""One in this many images of a half is used for early stopping."""


def _chance(inputs: Inputs, result: Result) -> str:
    # As for log likelihoods, see `regimes.CHANCE`.
    if len(inputs.labels) * result.score >= 0.5:
        return ""
    return (
        "The estimate is not above 0, so features and labels seem independent, and the "
        "score cannot order checkpoints. Add images, or use another measure."
    )


@register(
    "mutual_information",
    cost="N D^2 + D^3",
    holds_out=True,
    tolerance=UNIT_SCALE,
    regimes=(Regime("chance", _chance, saturates=True),),
)
def mutual_information(
    inputs: Inputs,
    num_steps: int = 200,
    num_restarts: int = 2,
    max_images: int = 10_000,
) -> Result:
    """Return a lower bound of the mutual information of features and labels.

    Args:
      inputs: Features [N, D] and labels [N]; the seed selects halves and initial
        critics.
      num_steps: Steps of AdamW, each over half of the images.
      num_restarts: Number of critics per half.
      max_images: Maximum number of images, see `sampling.subset`.

    Returns:
      The estimate. Its details hold the `scores` of the restarts and, for two or more,
      the standard deviation of their mean as `spread`.

    Raises:
      InputError: No class has four images.
    """
    statistics, seed, dtype = inputs.statistics, inputs.seed, inputs.features.dtype
    if statistics.sizes.max() < 4:
        raise InputError(
            "mutual_information needs a class with at least four images",
            expected="at least four images in some class",
            found=f"{statistics.sizes.max()}",
        )
    rows = sampling.subset(statistics.labels, max_images, seed)
    labels = statistics.labels[rows]
    x = statistics.principal(_DIMENSIONS)
    variance = np.mean(x**2)
    x = (x / np.sqrt(variance) if variance > 0 else x)[rows]
    # The signs of principal components are arbitrary; third moments fix them.
    x = x * np.where(np.sum(x**3, axis=0) < 0, -1, 1)
    part = parts(labels, seed)
    # AdamW multiplies numbers of several dtypes.
    with jax.numpy_dtype_promotion("standard"):
        critics = _critics(
            jnp.asarray(x, dtype),
            jnp.asarray(labels),
            jnp.asarray(part),
            init_hidden(x.shape[1], dtype, seed, num_restarts),
            inputs.num_classes,
            num_steps,
        )
    critics = np.asarray(critics, np.float64)

    # The critic of each half is evaluated on the other half.
    evaluated = part % 2 == 1, part % 2 == 0
    bounds = [
        [_bound(pair[half][mask], labels[mask]) for half, mask in enumerate(evaluated)]
        for pair in critics
    ]
    scores = np.mean(bounds, axis=1)
    details: dict[str, Any] = {"scores": scores.tolist(), "num_images": len(rows)}
    if num_restarts > 1:
        details["spread"] = sampling.standard_error(scores)
    return Result(float(scores.mean()), details)


def parts(labels: np.ndarray, seed: int) -> np.ndarray:
    """Return the half (0 or 1) of each image, plus 2 for early stopping: [N]."""
    part = np.zeros(len(labels), np.int32)
    start = 0
    for group in sampling.shuffled_classes(labels, seed):
        # Counting continues across classes, so that small classes reach every part.
        place = start + np.arange(len(group))
        start += len(group)
        part[group] = place % 2 + 2 * (place // 2 % _VALIDATION == 0)
    return part


def init_hidden(dimensions: int, dtype: Any, seed: int, count: int) -> jax.Array:
    """Return the initial hidden layers of critics: [count, min(D, 64), 128]."""
    shape = min(dimensions, _DIMENSIONS), _HIDDEN
    normal = jax.nn.initializers.he_normal()
    keys = jax.random.split(jax.random.key(seed), count)
    return jnp.stack([normal(key, shape, dtype) for key in keys])


def _bound(critic: np.ndarray, labels: np.ndarray) -> float:
    """Return the Donsker-Varadhan bound of T [n, C] on images [n]."""
    priors = np.bincount(labels, minlength=critic.shape[1]) / len(labels)
    joint = np.mean(np.take_along_axis(critic, labels[:, None], axis=1))
    product = scipy.special.logsumexp(critic, b=priors / len(labels))
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
    """Return T of all images for each restart and half: [restarts, 2, N, C]."""
    optimizer = optax.adamw(_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    truth = jax.nn.one_hot(labels, num_classes, dtype=x.dtype)

    size = min(_BLOCK, len(x))
    rows = jnp.pad(x, ((0, -len(x) % size), (0, 0))).reshape(-1, size, x.shape[1])

    def critic(params: Any) -> jax.Array:
        def values(x: jax.Array) -> jax.Array:
            hidden = blocks.dot(x, params["hidden"]) + params["bias"][None]
            return blocks.dot(jax.nn.relu(hidden), params["output"])

        # In blocks, because a TPU's compiler takes long for a single product.
        return jax.lax.map(values, rows).reshape(-1, num_classes)[: len(x)]

    def bound(values: jax.Array, mask: jax.Array) -> jax.Array:
        weight = mask / jnp.maximum(jnp.sum(mask), 1)
        priors = jnp.sum(weight[:, None] * truth, axis=0)
        logs = jnp.log(jnp.maximum(priors, 1e-30))
        joint = jnp.sum(weight * jnp.sum(values * truth, axis=1))
        rows = jax.nn.logsumexp(values + logs[None], axis=1)
        return joint - jax.nn.logsumexp(rows, b=weight)

    def learn(hidden: jax.Array, half: jax.Array) -> jax.Array:
        own = part % 2 == half
        train = (own & (part < 2)).astype(x.dtype)
        stopping = (own & (part >= 2)).astype(x.dtype)
        params = {
            "hidden": hidden,
            "bias": jnp.zeros(_HIDDEN, x.dtype),
            "output": jnp.zeros((_HIDDEN, num_classes), x.dtype),
        }

        def loss(params: Any) -> tuple[jax.Array, jax.Array]:
            values = critic(params)
            return -bound(values, train), values

        def step(_: Any, state: Any) -> Any:
            params, optimizer_state, best, best_params = state
            gradient, values = jax.grad(loss, has_aux=True)(params)
            current = bound(values, stopping)
            best_params = jax.tree.map(
                lambda a, b: jnp.where(current > best, a, b), params, best_params
            )
            updates, optimizer_state = optimizer.update(
                gradient, optimizer_state, params
            )
            params = optax.apply_updates(params, updates)
            return params, optimizer_state, jnp.maximum(best, current), best_params

        worst = jnp.asarray(-jnp.inf, x.dtype)
        state = params, optimizer.init(params), worst, params
        return critic(jax.lax.fori_loop(0, num_steps, step, state)[3])

    halves = jnp.arange(2)
    return jax.vmap(lambda start: jax.vmap(lambda h: learn(start, h))(halves))(hidden)
