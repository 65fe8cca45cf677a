"""Rows in blocks of one static shape, divided among the devices.

What a measure does with N rows it does block by block, so that no [N, K] array need
exist, and every device takes the same number of blocks. The shape of a block does not
depend on the devices: the same products are formed whatever their number.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rankckpt_jax.devices import mapping, processes

_BLOCK_ELEMENTS = 1 << 20
"""Elements of a block's largest array: a few MB, which caches hold."""

_BLOCK_ROWS = 512, 8192
"""Fewest rows, for products to be worth their name, and most."""

_FEWEST_BLOCKS = 8
"""So many devices find work without a change of the block's shape."""

_DIMENSIONS = 16
"""Dimensions are padded to a multiple of this, to share compiled programs."""


def num_devices() -> int:
    """Devices of all processes, over which the rows are divided."""
    return processes.process_count() * mapping.local_device_count()


def shape(num_rows: int, num_columns: int) -> tuple[int, int]:
    """Number of blocks and rows of each, for N rows of so many intermediate values.

    The number is a multiple of the devices; blocks x rows is at least N.
    """
    fewest, most = _BLOCK_ROWS
    most = max(fewest, min(most, _BLOCK_ELEMENTS // num_columns))
    count = _round_up(math.ceil(num_rows / most), _FEWEST_BLOCKS)
    rows = _round_up(math.ceil(num_rows / count), 8)
    return _round_up(math.ceil(num_rows / rows), num_devices()), rows


def split(array: Any, blocks: tuple[int, int], fill: float = 0) -> np.ndarray:
    """Pads [N, ...] and reshapes it to [blocks, rows, ...], on the host."""
    array = np.asarray(array)
    padding = blocks[0] * blocks[1] - len(array)
    widths = [(0, padding)] + [(0, 0)] * (array.ndim - 1)
    padded = np.pad(array, widths, constant_values=fill)
    return padded.reshape(*blocks, *array.shape[1:])


def for_devices(array: np.ndarray) -> np.ndarray:
    """This process's part of [blocks, ...] as [local devices, blocks a device, ...]."""
    parts = array.reshape(num_devices(), -1, *array.shape[1:])
    local = mapping.local_device_count()
    start = processes.process_index() * local
    return parts[start : start + local]


def row_mask(num_rows: int, blocks: tuple[int, int], dtype: Any) -> np.ndarray:
    """1 for a row that stands for a point, 0 for padding: [blocks, rows]."""
    return split(np.ones(num_rows, dtype), blocks)


def pad_dimensions(x: np.ndarray) -> np.ndarray:
    """Appends columns of zeros, [N, D] to [N, D'], so that few D' are compiled for."""
    return np.pad(x, ((0, 0), (0, -x.shape[1] % _DIMENSIONS)))


def sum_over_devices(tree: Any) -> Any:
    """Sums every array of a pytree over the mapped axis."""
    return jax.tree.map(lambda a: jax.lax.psum(a, mapping.AXIS), tree)


def dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """Matrix product in the operands' own precision; a TPU would take bfloat16."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def maximum(x: jax.Array, axis: int = 1) -> tuple[jax.Array, jax.Array]:
    """The largest of a matrix along an axis, and where it first stands, int32.

    Two plain reductions: XLA's argmax is a loop over single numbers on a CPU.
    """
    value = jnp.max(x, axis=axis, keepdims=True)
    ranks = jax.lax.broadcasted_iota(jnp.int32, x.shape, axis)
    place = jnp.min(jnp.where(x == value, ranks, x.shape[axis]), axis=axis)
    return jnp.squeeze(value, axis), place


def _round_up(value: int, multiple: int) -> int:
    return math.ceil(value / multiple) * multiple
