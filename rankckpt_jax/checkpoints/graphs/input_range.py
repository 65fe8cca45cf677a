"""Find the range of pixels that a graph expects, from the arithmetic on its images.

A network that scales pixels itself shows their range: `x / 127.5 - 1` reads pixels in
[0, 255], and `2 * x - 1` reads pixels in [0, 1].
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rankckpt_jax.checkpoints.graphs.flat_graph import FlatGraph
from rankckpt_jax.checkpoints.graphs.network import Network
from rankckpt_jax.data.lazy_tensorflow import tensorflow

# Operations that move pixels, but keep their values.
_MOVING = (
    *("Cast", "GatherV2", "MirrorPad", "Pad", "PadV2", "ResizeBilinear"),
    *("ResizeNearestNeighbor", "ReverseV2", "StridedSlice", "Transpose"),
)
_IDENTITIES = ("Identity", "IdentityN", "PreventGradient", "CheckNumerics")
_NO_READERS = (*_IDENTITIES, "EnsureShape", "Shape", "ShapeN", "Assert", "NoOp")
_BATCH_NORMS = ("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3")
# Constants are followed through so many operations at most.
_MAX_DEPTH = 12

Constant = Callable[[str], np.ndarray | None]


def find(network: Network) -> tuple[float, float] | None:
    """Return the range of pixels that a network scales itself, or None."""
    function = network.evaluation
    flat = function.flat
    readers = collections.defaultdict(list)
    for node in flat.nodes.values():
        if node.op not in _NO_READERS:
            for tensor in {flat.value(i) for i in node.input}:
                readers[tensor].append(node)

    def constant(tensor: str) -> np.ndarray | None:
        return _constant(network, flat, tensor, _MAX_DEPTH)

    tensor = flat.value(function.images)
    scale, offset = np.ones(1), np.zeros(1)
    while len(readers[tensor]) == 1:
        [node] = readers[tensor]
        step = _step(flat, node, tensor, constant)
        if step is None:
            break
        scale, offset = scale * step[0], offset * step[0] + step[1]
        tensor = f"{node.name}:0"
    return _range(float(np.mean(scale)), float(np.mean(offset)))


def _range(scale: float, offset: float) -> tuple[float, float] | None:
    """Return the pixels for which scale * pixel + offset is a usual input, or None."""
    scale, offset = abs(scale), offset if scale > 0 else -offset
    if 0 < scale <= 0.1 or (0.5 <= scale <= 2 and abs(offset) >= 50):
        return 0.0, 255.0
    share = offset / scale if scale else 0.0
    if 0.4 <= scale <= 150 and 0.9 <= share <= 1.1 and not 0.6 < scale < 50:
        # (x + 1) / 2 and 127.5 * (x + 1).
        return -1.0, 1.0
    if scale >= 0.8 and -0.8 <= share <= -0.25:
        # 2 * x - 1, x - 0.5, and (x - mean) / deviation.
        return 0.0, 1.0
    if scale >= 200 and abs(share) <= 0.05:
        return 0.0, 1.0
    return None


def _step(
    flat: FlatGraph, node: Any, tensor: str, constant: Constant
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return (scale, offset) of an operation on pixels, or None for another one."""
    inputs = [flat.value(i) for i in node.input]
    one, zero = np.ones(1), np.zeros(1)
    if node.op in _MOVING:
        return (one, zero) if inputs[0] == tensor else None
    if node.op in _BATCH_NORMS and inputs[0] == tensor:
        gamma, beta, mean, variance = map(constant, inputs[1:5])
        if gamma is None or beta is None or mean is None or variance is None:
            return None
        slope = gamma / np.sqrt(variance + node.attr["epsilon"].f)
        return slope, beta - mean * slope
    if len(inputs) != 2 or node.op not in (*_ARITHMETIC, "BiasAdd"):
        return None
    is_first = inputs[0] == tensor
    value = constant(inputs[1] if is_first else inputs[0])
    if value is None:
        return None
    if node.op in ("Add", "AddV2", "BiasAdd"):
        return one, value
    if node.op == "Mul":
        return value, zero
    if node.op == "Sub":
        return (one, -value) if is_first else (-one, value)
    if node.op in ("RealDiv", "Div") and is_first and np.all(value):
        return 1 / value, zero
    return None


_ARITHMETIC: Mapping[str, Callable[[Any, Any], Any]] = {
    "Add": np.add,
    "AddV2": np.add,
    "Div": np.divide,
    "Maximum": np.maximum,
    "Minimum": np.minimum,
    "Mul": np.multiply,
    "RealDiv": np.divide,
    "Sub": np.subtract,
}
_UNARY: Mapping[str, Callable[[Any], Any]] = {
    "Cast": np.asarray,
    "ExpandDims": np.asarray,
    "Neg": np.negative,
    "Reciprocal": np.reciprocal,
    "Reshape": np.asarray,
    "Rsqrt": lambda x: 1 / np.sqrt(x),
    "Sqrt": np.sqrt,
    "Square": np.square,
    "Squeeze": np.asarray,
}


def _constant(
    network: Network, flat: FlatGraph, tensor: str, depth: int
) -> np.ndarray | None:
    """Return a tensor of one value, or one per channel, as an array [1] or [3]."""
    variable = flat.variable(tensor)
    if variable is not None:
        return _channels(network.read([variable])[variable])
    node = flat.producer(tensor)
    if node.op == "Const":
        return _channels(tensorflow().make_ndarray(node.attr["value"].tensor))
    operation: Any = _UNARY.get(node.op) or _ARITHMETIC.get(node.op)
    if operation is None or depth == 0:
        return None
    count = 1 if node.op in _UNARY else 2
    values = [_constant(network, flat, i, depth - 1) for i in node.input[:count]]
    if any(value is None for value in values):
        return None
    with np.errstate(all="ignore"):
        result = np.asarray(operation(*values))
    return result if np.isfinite(result).all() else None


def _channels(value: np.ndarray) -> np.ndarray | None:
    if value.size not in (1, 3) or value.dtype.kind not in "fiu":
        return None
    return value.astype(np.float64).reshape(-1)
