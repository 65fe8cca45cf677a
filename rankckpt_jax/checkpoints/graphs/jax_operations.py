"""TensorFlow's operations in JAX: tf2jax's, and our own where its do not serve.

tf2jax 0.3.8 does not know of devices: the moments of its batch norm are those of one
device's images. It also takes a batch norm that was exported without
`exponential_avg_factor` for one that keeps all of its moving averages, and returns
zeros for its batch moments. While `convert` runs, ours stand in their place.

Imports TensorFlow, so that it is itself imported late.
"""

from __future__ import annotations

import functools
import unittest.mock
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rankckpt_jax.checkpoints.graphs import graph as graph_lib
from rankckpt_jax.data.lazy_tensorflow import tensorflow

_BATCH_NORMS = ("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3")


def supported(op: str) -> bool:
    """Whether `convert` knows the operation."""
    return op in _EXTRA or not _operations().get_unsupported_operations([op])


def convert(
    graph: graph_lib.Graph, axis_name: str | None = None
) -> Callable[..., tuple[jax.Array, dict[graph_lib.Path, jax.Array]]]:
    """Turns a graph into a JAX function.

    Args:
      graph: What to compute.
      axis_name: Mapped axis over which means over the batch, and with them all batch
        moments, are taken; None for those of one device.

    Returns:
      `function(values, images, key)`: `values` are the variables in the order of
      `graph.variables`, `images` are float32 [B, H, W, 3], and `key` is for what is
      random; it returns (features, variables' new values by their paths).
    """
    tf = tensorflow()
    definition = tf.compat.v1.GraphDef.FromString(graph.definition)
    dtypes = {
        node.name: node.attr["dtype"].type
        for node in definition.node
        if node.op == "Placeholder"
    }
    names = [name for name, _ in graph.variables]
    outputs = [graph.features, *(tensor for _, tensor in graph.updates)]

    def run(values: list[Any], images: Any) -> list[Any]:
        fed = dict(zip(names, values, strict=True)) | {graph_lib.IMAGES: images}
        return tf.graph_util.import_graph_def(
            definition, input_map=fed, return_elements=outputs, name=""
        )

    specs = [tf.TensorSpec(None, tf.as_dtype(dtypes[name])) for name in names]
    images = tf.TensorSpec([None, None, None, 3], tf.float32)
    converter = _tf2jax()
    with unittest.mock.patch.dict(_operations()._jax_ops, _overrides(axis_name)):
        function = converter.convert_functional(
            tf.function(run, autograph=False), specs, images
        )

    def apply(values: list[Any], images: jax.Array, key: jax.Array) -> Any:
        with converter.override_config("strict_shape_check", False):
            features, *updated = function(values, images, rng=key)
        paths = (path for path, _ in graph.updates)
        return features, dict(zip(paths, updated, strict=True))

    return apply


def _tf2jax() -> Any:
    tensorflow()
    import tf2jax

    return tf2jax


def _operations() -> Any:
    _tf2jax()
    # The table is not public; there is no other way to replace an entry.
    from tf2jax._src import ops

    return ops


def _overrides(axis_name: str | None) -> Mapping[str, Any]:
    batch_norm = functools.partial(_batch_norm, axis_name)
    overrides = {**_EXTRA, **dict.fromkeys(_BATCH_NORMS, batch_norm)}
    if axis_name is not None:
        overrides["Mean"] = functools.partial(_mean, axis_name)
    return overrides


def _batch_norm(axis_name: str | None, node: Any) -> Callable[..., Any]:
    """FusedBatchNorm, all versions; see `models.layers.BatchNorm` for the formulas."""
    channels_last = node.attr["data_format"].s.decode() != "NCHW"
    axes = (0, 1, 2) if channels_last else (0, 2, 3)
    epsilon = node.attr["epsilon"].f
    training = node.attr["is_training"].b
    # How far the second and third output go from the averages that are fed towards
    # the batch's moments. TensorFlow's default is all the way.
    given = "exponential_avg_factor" in node.attr
    factor = node.attr["exponential_avg_factor"].f if given else 1.0

    def broadcast(vector: jax.Array) -> jax.Array:
        return vector if channels_last else vector[:, None, None]

    def apply(
        x: jax.Array, scale: jax.Array, offset: jax.Array, mean: Any, var: Any
    ) -> tuple[jax.Array, ...]:
        moments = mean, var
        if training:
            wide = x.astype(jnp.float32)
            count = x.size // scale.size
            batch_mean = jnp.mean(wide, axes)
            if axis_name is not None:
                batch_mean = jax.lax.pmean(batch_mean, axis_name)
                count *= jax.lax.axis_size(axis_name)
            batch_var = jnp.mean(jnp.square(wide - broadcast(batch_mean)), axes)
            if axis_name is not None:
                batch_var = jax.lax.pmean(batch_var, axis_name)
            unbiased = batch_var * (count / max(count - 1, 1))
            moments = batch_mean, unbiased
            if factor != 1.0:
                moments = (
                    (1 - factor) * mean + factor * batch_mean,
                    (1 - factor) * var + factor * unbiased,
                )
            mean, var = batch_mean, batch_var
        slope = scale * jax.lax.rsqrt(var + epsilon)
        y = x * broadcast(slope) + broadcast(offset - mean * slope)
        # The outputs that only TensorFlow's own gradient reads are left empty.
        empty = jnp.zeros(0, jnp.float32)
        return (y.astype(x.dtype), *moments, empty, empty, empty)

    return apply


def _mean(axis_name: str, node: Any) -> Callable[..., Any]:
    """Mean; one that goes over the batch goes over all devices' images."""
    keep = node.attr["keep_dims"].b

    def apply(x: jax.Array, axis: np.ndarray) -> jax.Array:
        axes = tuple(int(a) % x.ndim for a in np.ravel(axis))
        mean = jnp.mean(x, axes, keepdims=keep)
        return jax.lax.pmean(mean, axis_name) if 0 in axes else mean

    return apply


def _mirror_pad(node: Any) -> Callable[..., Any]:
    mode = node.attr["mode"].s.decode().lower()
    return lambda x, pads: jnp.pad(x, np.asarray(pads).tolist(), mode=mode)


def _depth_to_space(node: Any) -> Callable[..., Any]:
    size = node.attr["block_size"].i

    def apply(x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height, width, size, size, channels // size**2)
        x = x.transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(batch, height * size, width * size, -1)

    return apply


def _space_to_depth(node: Any) -> Callable[..., Any]:
    size = node.attr["block_size"].i

    def apply(x: jax.Array) -> jax.Array:
        batch, height, width, _ = x.shape
        x = x.reshape(batch, height // size, size, width // size, size, -1)
        x = x.transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(batch, height // size, width // size, -1)

    return apply


# What tf2jax lacks and image networks have.
_EXTRA: Mapping[str, Callable[[Any], Callable[..., Any]]] = {
    "DepthToSpace": _depth_to_space,
    "MirrorPad": _mirror_pad,
    "Selu": lambda node: jax.nn.selu,
    "Softsign": lambda node: jax.nn.soft_sign,
    "SpaceToDepth": _space_to_depth,
}
