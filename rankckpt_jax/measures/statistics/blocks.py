"""Rows in blocks of one static shape, divided among the devices.

Measures process N rows block by block, so that no [N, K] array exists and every device
gets the same number of blocks. The shape of a block does not depend on the number of
devices, so the same products are computed for any number of them.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rankckpt_jax.devices import mapping, processes

_BLOCK_ELEMENTS = 1 << 20
"""Elements of the largest array per block: a few MB, to fit into caches."""

_BLOCK_ROWS = 512, 8192
"""Minimum, for efficient products, and maximum number of rows."""

_FEWEST_BLOCKS = 8
"""Minimum number of blocks; up to this many devices share them evenly."""

_DIMENSIONS = 96, 2, 32
"""Dimensions are padded to 96, 192, 384, 768, ...: each twice the one before, rounded
up to a multiple of 32. Three programs then suffice for up to 384 dimensions."""


def num_devices() -> int:
    """Return the number of devices of all processes."""
    return processes.process_count() * mapping.local_device_count()


def shape(num_rows: int, num_columns: int) -> tuple[int, int]:
    """Return the number of blocks and of rows per block.

    The number of blocks is a multiple of the number of devices.

    Args:
      num_rows: N; blocks x rows is at least N.
      num_columns: Size of the largest array per row.
    """
    fewest, most = _BLOCK_ROWS
    most = max(fewest, min(most, _BLOCK_ELEMENTS // num_columns))
    count = _round_up(math.ceil(num_rows / most), _FEWEST_BLOCKS)
    rows = _round_up(math.ceil(num_rows / count), 8)
    return _round_up(math.ceil(num_rows / rows), num_devices()), rows


def split(array: Any, blocks: tuple[int, int], fill: float = 0) -> np.ndarray:
    """Pad [N, ...] and reshape it to [blocks, rows, ...], on the host."""
    array = np.asarray(array)
    padding = blocks[0] * blocks[1] - len(array)
    widths = [(0, padding)] + [(0, 0)] * (array.ndim - 1)
    padded = np.pad(array, widths, constant_values=fill)
    return padded.reshape(*blocks, *array.shape[1:])


def for_devices(array: np.ndarray) -> np.ndarray:
    """Return this process's part of [blocks, ...]: [local devices, blocks, ...]."""
    parts = array.reshape(num_devices(), -1, *array.shape[1:])
    local = mapping.local_device_count()
    start = processes.process_index() * local
    return parts[start : start + local]


def row_mask(num_rows: int, blocks: tuple[int, int], dtype: Any) -> np.ndarray:
    """Return 1 for the first `num_rows` rows and 0 for padding: [blocks, rows]."""
    return split(np.ones(num_rows, dtype), blocks)


def pad_dimensions(x: np.ndarray) -> np.ndarray:
    """Append columns of zeros, [N, D] to [N, D'], so that few D' are compiled."""
    return np.pad(x, ((0, 0), (0, padded_size(x.shape[1]) - x.shape[1])))


def padded_size(dimensions: int) -> int:
    """Return D' of `pad_dimensions`."""
    size, ratio, multiple = _DIMENSIONS
    while size < dimensions:
        size = _round_up(math.ceil(ratio * size), multiple)
    return size


def sum_over_devices(tree: Any) -> Any:
    """Sum every array of a pytree over all devices."""
    return jax.tree.map(lambda a: jax.lax.psum(a, mapping.AXIS), tree)


def dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return the matrix product in full precision; a TPU defaults to bfloat16."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def maximum(x: jax.Array, axis: int = 1) -> tuple[jax.Array, jax.Array]:
    """Return the maximum of a matrix along an axis, and its first index, int32.

    These are two plain reductions; XLA's argmax is a scalar loop on a CPU.
    """
    value = jnp.max(x, axis=axis, keepdims=True)
    ranks = jax.lax.broadcasted_iota(jnp.int32, x.shape, axis)
    place = jnp.min(jnp.where(x == value, ranks, x.shape[axis]), axis=axis)
    return jnp.squeeze(value, axis), place


def _round_up(value: int, multiple: int) -> int:
    return math.ceil(value / multiple) * multiple
