"""A `PureGraph` as a JAX function, through tf2jax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from rankckpt_jax.checkpoints.graphs import jax_operations
from rankckpt_jax.checkpoints.graphs.pure_graph import IMAGES, Path, PureGraph
from rankckpt_jax.data.lazy_tensorflow import tensorflow


def convert(
    graph: PureGraph, axis_name: str | None = None
) -> Callable[..., tuple[jax.Array, dict[Path, jax.Array]]]:
    """Return a graph as a JAX function.

    Args:
      graph: The function to convert.
      axis_name: Mapped axis over which batch moments are averaged. None means one
        device.

    Returns:
      `function(values, images, key)` -> (features, new values of variables by path).
      `values` are the variables in the order of `graph.variables`, `images` is float32
      [B, H, W, 3], and `key` seeds random operations.
    """
    tf = tensorflow()
    # Imported late, since tf2jax imports TensorFlow.
    import tf2jax

    definition = tf.compat.v1.GraphDef.FromString(graph.definition)
    dtypes = {
        node.name: node.attr["dtype"].type
        for node in definition.node
        if node.op == "Placeholder"
    }
    names = [name for name, _ in graph.variables]
    outputs = [graph.features, *(tensor for _, tensor in graph.updates)]

    def run(values: list[Any], images: Any) -> list[Any]:
        inputs = dict(zip(names, values, strict=True)) | {IMAGES: images}
        return tf.graph_util.import_graph_def(
            definition, input_map=inputs, return_elements=outputs, name=""
        )

    specs = [tf.TensorSpec(None, tf.as_dtype(dtypes[name])) for name in names]
    images = tf.TensorSpec([None, None, None, 3], tf.float32)
    with jax_operations.overridden(axis_name):
        function = tf2jax.convert_functional(
            tf.function(run, autograph=False), specs, images
        )

    def apply(values: list[Any], images: jax.Array, key: jax.Array) -> Any:
        with tf2jax.override_config("strict_shape_check", False):
            features, *updated = function(values, images, rng=key)
        paths = (path for path, _ in graph.updates)
        return features, dict(zip(paths, updated, strict=True))

    return apply
