"""Number of multiplications of a network, from shapes alone."""

from __future__ import annotations

import functools
import math

import flax.traverse_util
import jax
import jax.numpy as jnp

from rankckpt_jax.models import architecture, layers


def multiply_adds(name: str, image_size: int | None = None) -> int:
    """Count the multiplications in the convolutions of the network `name`, per image.

    Args:
      name: As for `create`.
      image_size: Side in pixels; by default the network's own.
    """
    size = image_size or architecture.get(name).image_size
    module = architecture.create(name)
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), images)
    apply = functools.partial(module.apply, mutable=["intermediates"])
    _, state = jax.eval_shape(apply, variables, images)
    outputs = {
        tuple(scope.split("/")): value.shape
        for scope, value in layers.endpoints(state["intermediates"]).items()
    }
    total = 0
    for path, leaf in flax.traverse_util.flatten_dict(variables["params"]).items():
        *scope, kind = path
        if kind.endswith("kernel"):
            # Each element of a kernel is used once per output pixel.
            _, height, width, _ = outputs[tuple(scope)]
            total += height * width * math.prod(leaf.shape)
    return total
