"""TensorFlow's operations in JAX that tf2jax 0.3.8 lacks or computes differently.

tf2jax's batch norm computes its moments over one device's images. It also treats a
batch norm that was exported without `exponential_avg_factor` as one that keeps its
moving averages, and returns zeros as batch moments.

Each entry of a table maps a TensorFlow `NodeDef` to a JAX function of its inputs.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rankckpt_jax.data.lazy_tensorflow import tensorflow
from rankckpt_jax.models import ops

_BATCH_NORMS = ("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3")
_lock = threading.RLock()

Table = Mapping[str, Callable[[Any], Callable[..., Any]]]


def supported(op: str) -> bool:
    """Return whether an operation has a counterpart in JAX."""
    return op in _EXTRA or not _tf2jax_operations().get_unsupported_operations([op])


@contextlib.contextmanager
def overridden(axis_name: str | None) -> Iterator[None]:
    """Replace tf2jax's operations by ours, and restore them at the end.

    The table is global, so that one thread at a time may convert.

    Args:
      axis_name: Mapped axis over which means over the batch are taken, and with them
        all batch moments. None means one device.
    """
    # tf2jax's table is private, and its public functions cannot replace an entry.
    table = _tf2jax_operations()._jax_ops
    replacements = _replacements(axis_name)
    with _lock:
        originals = {name: table.get(name) for name in replacements}
        table.update(replacements)
        try:
            yield
        finally:
            for name, original in originals.items():
                if original is None:
                    del table[name]
                else:
                    table[name] = original


def _tf2jax_operations() -> Any:
    tensorflow()
    # Imported late, since tf2jax imports TensorFlow.
    from tf2jax._src import ops as operations

    return operations


def _replacements(axis_name: str | None) -> Table:
    batch_norm = functools.partial(_batch_norm, axis_name)
    table: dict[str, Callable[[Any], Callable[..., Any]]]
    table = {**_EXTRA, **dict.fromkeys(_BATCH_NORMS, batch_norm)}
    if axis_name is not None:
        table["Mean"] = functools.partial(_mean, axis_name)
    return table


def _batch_norm(axis_name: str | None, node: Any) -> Callable[..., Any]:
    """Convert FusedBatchNorm; `models.layers.BatchNorm` has the formulas."""
    channels_last = node.attr["data_format"].s.decode() != "NCHW"
    axes = (0, 1, 2) if channels_last else (0, 2, 3)
    epsilon = node.attr["epsilon"].f
    training = node.attr["is_training"].b
    # Weight of the batch moments in the second and third output; the rest is the weight
    # of the averages that are passed in. TensorFlow's default is 1.
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
        # Only TensorFlow's own gradient reads the other outputs.
        empty = jnp.zeros(0, jnp.float32)
        return (y.astype(x.dtype), *moments, empty, empty, empty)

    return apply


def _mean(axis_name: str, node: Any) -> Callable[..., Any]:
    """Convert Mean; average over devices if it includes the batch axis."""
    keep = node.attr["keep_dims"].b

    def apply(x: jax.Array, axis: np.ndarray) -> jax.Array:
        axes = tuple(int(a) % x.ndim for a in np.ravel(axis))
        mean = jnp.mean(x, axes, keepdims=keep)
        return jax.lax.pmean(mean, axis_name) if 0 in axes else mean

    return apply


def _conv(node: Any) -> Callable[..., Any]:
    """Convert Conv2D and DepthwiseConv2dNative; tf2jax lacks explicit pads of Conv2D.

    tf2jax's form of a depthwise convolution is slow on a CPU.
    """
    channels_last = node.attr["data_format"].s.decode() != "NCHW"
    spatial = slice(1, 3) if channels_last else slice(2, 4)
    strides = tuple(node.attr["strides"].list.i)[spatial]
    dilations = tuple(node.attr["dilations"].list.i)[spatial] or (1, 1)
    padding: ops.Padding = node.attr["padding"].s.decode()
    if padding == "EXPLICIT":
        pads = np.reshape(node.attr["explicit_paddings"].list.i, (4, 2))
        padding = pads[spatial].tolist()

    def apply(x: jax.Array, kernel: jax.Array) -> jax.Array:
        options: Any = {
            "stride": strides,
            "padding": padding,
            "dilation": dilations,
            "dtype": x.dtype,
            "precision": None,  # That of `jax.default_matmul_precision`.
        }
        if not channels_last:
            x = jnp.moveaxis(x, 1, -1)
        channels, height, width = x.shape[-1], *kernel.shape[:2]
        groups = channels // kernel.shape[2]
        if node.op == "DepthwiseConv2dNative" or groups == channels > 1:
            kernel = kernel.reshape(height, width, channels, -1)
            y = ops.depthwise_conv(x, kernel, **options)
        else:
            y = ops.conv(x, kernel, groups=groups, **options)
        return y if channels_last else jnp.moveaxis(y, -1, 1)

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


def _average_pool(node: Any) -> Callable[..., Any]:
    """Convert AvgPool; tf2jax counts values in an array that XLA folds for seconds."""
    size = tuple(node.attr["ksize"].list.i)
    strides = tuple(node.attr["strides"].list.i)
    padding = node.attr["padding"].s.decode()

    def apply(x: jax.Array) -> jax.Array:
        total = jax.lax.reduce_window(
            x, np.zeros((), x.dtype), jax.lax.add, size, strides, padding
        )
        pads = jax.lax.padtype_to_pads(x.shape, size, strides, padding)
        counts = np.ones((1,) * x.ndim, np.float32)
        for axis, (before, _) in enumerate(pads):
            start = np.arange(total.shape[axis]) * strides[axis] - before
            end = np.minimum(start + size[axis], x.shape[axis])
            along = end - np.maximum(start, 0)
            sides = [-1 if a == axis else 1 for a in range(x.ndim)]
            counts = counts * along.reshape(sides)
        # Counts are equal along the batch and the channels.
        counts = counts[tuple(slice(None, 1) if k == 1 else slice(None) for k in size)]
        return total / jnp.asarray(counts, x.dtype)

    return apply


# Operations of image networks that tf2jax lacks, or that are slow.
_EXTRA: Table = {
    "AvgPool": _average_pool,
    "Conv2D": _conv,
    "DepthToSpace": _depth_to_space,
    "DepthwiseConv2dNative": _conv,
    "MirrorPad": _mirror_pad,
    "Selu": lambda node: jax.nn.selu,
    "Softsign": lambda node: jax.nn.soft_sign,
    "SpaceToDepth": _space_to_depth,
}
