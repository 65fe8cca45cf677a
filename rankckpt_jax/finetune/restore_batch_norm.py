"""Gives a checkpoint whose batch norm was folded away the moments of its activations.

Converters for phones fold batch norm into the kernels before it: what is left are
kernels and offsets, and a checkpoint restored from that has means of 0 and variances of
1 where it should have its activations'. In evaluation mode that is the same function.
In training mode it is not: there batch norm divides by the batch's own deviation, and
the network would be fine-tuned from ruins.

One pass in evaluation mode tells the moments m, v of what each batch norm is fed. With

    gamma' = gamma sqrt((v + eps) / (v0 + eps)),
    beta' = beta + gamma (m - m0) / sqrt(v0 + eps)

and m, v in place of m0, v0 the function in evaluation mode stays what it is, and
training mode starts as near to it as a batch's moments are to those of all images.
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
from rankckpt_jax.data.tasks import Split
from rankckpt_jax.devices import mapping, processes
from rankckpt_jax.models import layers

# Images whose activations are measured; moments of hundreds of images, with hundreds
# of pixels each, are known to a percent.
_NUM_IMAGES = 512
_BATCH = 64


def is_folded(backbone: backbone_lib.Backbone) -> bool:
    """Whether a network's moving averages are still those of its initialization.

    Its offsets must not be: those of a network that was never trained are zero too,
    and it is to be trained from its initialization as it is.
    """
    if not isinstance(backbone.apply, backbone_lib.Apply):
        return False
    flat = flax.traverse_util.flatten_dict(backbone.variables["batch_stats"])
    means = [value for path, value in flat.items() if path[-1] == "mean"]
    variances = [value for path, value in flat.items() if path[-1] == "var"]
    params = flax.traverse_util.flatten_dict(backbone.variables["params"])
    norms = {path[:-1] for path in flat}
    if not norms or any((*norm, "scale") not in params for norm in norms):
        return False
    return (
        not any(np.any(mean) for mean in means)
        and all(np.ptp(variance) == 0 for variance in variances)
        and any(np.any(params[*norm, "bias"]) for norm in norms)
    )


def unfold(
    backbone: backbone_lib.Backbone,
    split: Split,
    *,
    preprocess: str,
    cache: pipeline.ImageCache,
) -> backbone_lib.Backbone:
    """Returns the same network with the moments of its activations on `split`."""
    per_process = mapping.round_up_to_devices(_BATCH // processes.process_count() or 1)
    images = min(_NUM_IMAGES, split.num_examples)
    steps = max(1, images // (per_process * processes.process_count()))
    variables, _ = backbone_lib.split_head(backbone.variables)
    variables = jax.tree.map(np.asarray, variables)
    on_device = mapping.replicate(variables)
    scaling = mapping.replicate(
        preprocess_lib.scaling(backbone.input_range, backbone.input_mean)
    )
    measure = _moments(backbone.architecture)
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
        found = measure(on_device, scaling, mapping.shard(batch.images))
        for path, sums in jax.tree.map(np.float64, found).items():
            totals[path] = totals[path] + np.stack(sums) / steps
    flat = flax.traverse_util.flatten_dict(variables)
    for path, (mean, square, epsilon) in totals.items():
        variance = square - mean**2
        stats, params = ("batch_stats", *path), ("params", *path)
        scale, bias = flat[*params, "scale"], flat[*params, "bias"]
        before = np.sqrt(flat[*stats, "var"] + epsilon)
        after = np.sqrt(variance + epsilon)
        offset = scale * (mean - flat[*stats, "mean"]) / before
        flat[*params, "scale"] = np.float32(scale * after / before)
        flat[*params, "bias"] = np.float32(bias + offset)
        flat[*stats, "mean"] = np.float32(mean)
        flat[*stats, "var"] = np.float32(variance)
    return dataclasses.replace(
        backbone, variables=flax.traverse_util.unflatten_dict(flat)
    )


@mapping.bounded_cache
def _moments(architecture: str) -> Callable[..., Any]:
    """Compiles a pass that tells what each batch norm is fed.

    Returns:
      measure(variables, scaling, images) -> {path: (E[x], E[x^2], epsilon), each [C]}.
    """
    module = models.create(architecture)

    def measure(variables: Any, scaling: Any, raw: jax.Array) -> Any:
        found = {}

        def watch(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            if isinstance(context.module, layers.BatchNorm):
                x = args[0].astype(jnp.float32)
                axes = tuple(range(x.ndim - 1))
                mean = jnp.mean(x, axes)
                epsilon = jnp.full_like(mean, context.module.style.epsilon)
                found[context.module.path] = mean, jnp.mean(x * x, axes), epsilon
            return call(*args, **kwargs)

        with nn.intercept_methods(watch):
            module.apply(variables, preprocess_lib.to_input_range(raw, *scaling))
        return jax.lax.pmean(found, mapping.AXIS)

    return mapping.map_devices(measure, in_axes=(None, None, 0), out_axes=None)
