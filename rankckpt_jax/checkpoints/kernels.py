"""The kernels of a checkpoint's layers as matrices, whatever its format."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import flax.traverse_util
import numpy as np

from rankckpt_jax.checkpoints.backbone import Backbone, split_head
from rankckpt_jax.checkpoints.graphs.graph_apply import GraphApply
from rankckpt_jax.checkpoints.torch_modules.host import HostApply

# Arrays of two or more dimensions that multiply no features.
_NO_KERNEL = re.compile("bias|embed|token")


def kernels(backbone: Backbone) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name and the matrices of each dense layer and convolution.

    The classifier is left out, as from `Backbone.num_parameters`: fine-tuning replaces
    it, and not every checkpoint has one. Biases, norms and position embeddings are
    left out too.

    Args:
      backbone: A checkpoint of any kind.

    Yields:
      (name, [n, m]) for a dense layer and (name, [K, n, m]) for a convolution with K
      positions, where n and m are the channels that go in and out, in any order. A
      depthwise convolution has an n or m of 1, and so has a norm of a graph.
    """
    is_torch = bool(backbone.engine)
    for path, value in _parameters(backbone):
        shape = np.shape(value)
        if _NO_KERNEL.search(path[-1]) or not 2 <= len(shape) <= 4:
            continue
        array = np.asarray(value)
        if not np.issubdtype(array.dtype, np.floating):
            continue
        if len(shape) == 4:
            # PyTorch has the positions last, the others first.
            size = shape[2:] if is_torch else shape[:2]
            if is_torch:
                array = array.transpose(2, 3, 0, 1)
            array = array.reshape(size[0] * size[1], *array.shape[2:])
        elif len(shape) == 3:
            if is_torch or "kernel" not in path[-1]:
                continue
            # Attention: [heads, size, D] of its last layer, [D, heads, size] of others.
            is_output = len(path) > 1 and "out" in path[-2]
            array = array.reshape(
                (-1, shape[2]) if is_output else (shape[0], shape[1] * shape[2])
            )
        yield "/".join(path), array


def _parameters(backbone: Backbone) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield (path, value) of the arrays that can hold kernels, without the head."""
    variables, _ = split_head(backbone.variables)
    if backbone.engine:
        host = backbone.apply if isinstance(backbone.apply, HostApply) else None
        named = variables["params"] if host is None else host.parameters
        for name, value in named.items():
            yield tuple(name.split(".")), value
        return
    names = ["params"]
    if isinstance(backbone.apply, GraphApply):
        # A graph that was saved for inference only can have no trainable variables.
        names.append("batch_stats")
    for name in names:
        flat = flax.traverse_util.flatten_dict(dict(variables[name]))
        yield from flat.items()
