"""Restores the moments of batch norm in a checkpoint whose batch norm was folded.

Converters for mobile phones fold batch norm into the kernels before it. The result has
kernels and offsets only, so a checkpoint made from it has means of 0 and variances of 1
instead of the moments of its activations. In evaluation mode the function is the same.
In training mode it is not: batch norm divides by the batch's standard deviation, which
destroys the pre-trained function.

One pass in evaluation mode measures the mean m and variance v of each batch norm's
input. With

    gamma' = gamma sqrt((v + eps) / (v0 + eps)),
    beta' = beta + gamma (m - m0) / sqrt(v0 + eps)

and m, v instead of the stored m0, v0, the function in evaluation mode stays the same.
Training mode differs from it only as much as a batch's moments differ from m, v.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from rankckpt_jax import models
from rankckpt_jax.checkpoints import backbone as backbone_lib
from rankckpt_jax.data import pipeline
from rankckpt_jax.data import preprocess as preprocess_lib
from rankckpt_jax.data.image_cache import ImageCache
from rankckpt_jax.data.splits import Split
from rankckpt_jax.devices import mapping, processes
from rankckpt_jax.models import layers

# Number of images whose activations are measured. With hundreds of pixels per image the
# moments are accurate to about a percent.
_NUM_IMAGES = 512
_BATCH_SIZE = 64


def restore(
    backbone: backbone_lib.Backbone,
    split: Split,
    *,
    preprocess: str,
    cache: ImageCache,
) -> backbone_lib.Backbone:
    """Return the same network with the moments of its activations on `split`."""
    count = processes.process_count()
    per_process = mapping.round_up_to_devices(_BATCH_SIZE // count or 1)
    images = min(_NUM_IMAGES, split.num_examples)
    steps = max(1, images // (per_process * count))
    variables, _ = backbone_lib.split_head(backbone.variables)
    variables = jax.tree.map(np.asarray, variables)
    on_device = mapping.replicate(variables)
    scaling = mapping.replicate(
        preprocess_lib.scaling(backbone.input_range, backbone.input_mean)
    )
    measure = _input_moments(backbone.architecture)
    totals: dict[Any, np.ndarray] = collections.defaultdict(lambda: np.zeros(()))
    for batch in pipeline.training_batches(
        split,
        size=backbone.image_size,
        preprocess=preprocess,
        batch_size=per_process,
        seed=0,
        first_step=0,
        last_step=steps,
        cache=cache,
    ):
        moments = measure(on_device, scaling, mapping.shard(batch.images))
        for path, values in jax.tree.map(np.float64, moments).items():
            totals[path] = totals[path] + np.stack(values) / steps
    flat = flax.traverse_util.flatten_dict(variables)
    for path, (mean, square, epsilon) in totals.items():
        variance = square - mean**2
        stats, params = ("batch_stats", *path), ("params", *path)
        scale, bias = flat[*params, "scale"], flat[*params, "bias"]
        old_deviation = np.sqrt(flat[*stats, "var"] + epsilon)
        new_deviation = np.sqrt(variance + epsilon)
        offset = scale * (mean - flat[*stats, "mean"]) / old_deviation
        flat[*params, "scale"] = np.float32(scale * new_deviation / old_deviation)
        flat[*params, "bias"] = np.float32(bias + offset)
        flat[*stats, "mean"] = np.float32(mean)
        flat[*stats, "var"] = np.float32(variance)
    return dataclasses.replace(
        backbone, variables=flax.traverse_util.unflatten_dict(flat)
    )


@mapping.bounded_cache
def _input_moments(architecture: str) -> Callable[..., Any]:
    """Compile a pass that measures the input of each batch norm.

    Returns:
      measure(variables, scaling, images) -> {path: (E[x], E[x^2], epsilon), each [C]}.
    """
    module = models.create(architecture)

    def measure(variables: Any, scaling: Any, raw: jax.Array) -> Any:
        moments = {}

        def record(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            if isinstance(context.module, layers.BatchNorm):
                x = args[0].astype(jnp.float32)
                axes = tuple(range(x.ndim - 1))
                mean = jnp.mean(x, axes)
                epsilon = jnp.full_like(mean, context.module.config.epsilon)
                moments[context.module.path] = mean, jnp.mean(x * x, axes), epsilon
            return call(*args, **kwargs)

        with nn.intercept_methods(record):
            module.apply(variables, preprocess_lib.to_input_range(raw, *scaling))
        return jax.lax.pmean(moments, mapping.AXIS)

    return mapping.map_devices(measure, in_axes=(None, None, 0), out_axes=None)
