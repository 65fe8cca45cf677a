"""Exports a fine-tuned model as a program that needs only JAX to run.

The program maps images, uint8 [b, S, S, 3], to probabilities, float32 [b, C], for any
batch size b. It holds the weights and runs on a CPU, a GPU or a TPU. Images must be
resized as `model.json` states.

    import jax.export
    import numpy as np

    with open("model/serving.bin", "rb") as file:
        model = jax.export.deserialize(bytearray(file.read()))
    images = np.zeros((2, 96, 96, 3), np.uint8)
    probabilities = np.asarray(model.call(images))

JAX reads a program for six months of its releases after the one that wrote it.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from rankckpt_jax.data import preprocess as preprocess_lib
from rankckpt_jax.data import targets
from rankckpt_jax.devices import target
from rankckpt_jax.finetune.model import Model

PLATFORMS = ("cpu", "cuda", "tpu")
"""The platforms that a program is exported for."""

_log = logging.getLogger(__name__)


def export(model: Model) -> bytes:
    """Return the program of a model, as `jax.export` serializes it.

    Operations with a special form for a CPU have it there only. Float32 products have
    the highest precision on every platform.

    A network whose operations need a known batch size runs one image after the other.
    """
    size = model.backbone.image_size
    (batch,) = jax.export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((batch, size, size, 3), np.uint8)
    forward = _forward(model)
    try:
        exported = _export(forward, images)
    except Exception as error:  # Networks raise errors of many types for symbols.
        _log.debug("%s: exporting single images: %s", model.backbone.name, error)

        def one_by_one(images: jax.Array) -> jax.Array:
            return jax.lax.map(lambda image: forward(image[None])[0], images)

        exported = _export(one_by_one, images)
    return bytes(exported.serialize())


def _export(forward: Callable[..., Any], images: Any) -> jax.export.Exported:
    return jax.export.export(jax.jit(forward), platforms=PLATFORMS)(images)


def _forward(model: Model) -> Callable[[jax.Array], jax.Array]:
    """Return the function from images in [0, 255] to probabilities."""
    backbone = model.backbone
    # On the host, because the program of each platform holds a copy otherwise.
    variables = jax.tree.map(np.asarray, backbone.variables)
    apply = dataclasses.replace(backbone.apply, dtype=model.dtype, precision="highest")
    scaling: Any = preprocess_lib.scaling(backbone.input_range, backbone.input_mean)

    def outputs(images: jax.Array) -> jax.Array:
        logits = apply(
            variables, preprocess_lib.to_input_range(images, *scaling)
        ).logits
        if model.target == targets.REGRESSION:
            return logits[:, 0] * model.scale[1] + model.scale[0]
        if model.target == targets.MULTI_LABEL:
            return jax.nn.sigmoid(logits)
        return jax.nn.softmax(logits)

    def of_platform(name: str) -> Callable[[jax.Array], jax.Array]:
        def traced(images: jax.Array) -> jax.Array:
            with target.assume(name):
                return outputs(images)

        return traced

    def forward(images: jax.Array) -> jax.Array:
        images = jnp.asarray(images)
        return jax.lax.platform_dependent(
            images, cpu=of_platform("cpu"), default=of_platform("gpu")
        )

    return forward
