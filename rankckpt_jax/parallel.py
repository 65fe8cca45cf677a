"""The only room that knows devices and hosts.

Per-example code elsewhere is written for one device, with a named axis `AXIS` for
its collectives (`jax.lax.psum(x, AXIS)`); `map_devices` runs it on every local
device of every process. One process with one device is the same path with an axis
of size one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

AXIS = "batch"
"""Name of the mapped axis: the devices, over which a batch is divided."""

Tree = TypeVar("Tree")


def local_device_count() -> int:
    """Number of devices attached to this process."""
    return jax.local_device_count()


def process_index() -> int:
    """This process's rank among all, from 0."""
    return jax.process_index()


def process_count() -> int:
    """Number of processes that take part in this run."""
    return jax.process_count()


def is_main_process() -> bool:
    """Whether this is the one process that prints and writes results."""
    return jax.process_index() == 0


def describe_devices() -> str:
    """One line for a log or a report: "4 x TPU v5 lite in 1 process"."""
    device = jax.devices()[0]
    processes = jax.process_count()
    noun = "process" if processes == 1 else "processes"
    return f"{jax.device_count()} x {device.device_kind} in {processes} {noun}"


def map_devices(
    function: Callable[..., Any],
    in_axes: Any = 0,
    out_axes: Any = 0,
    *,
    donate_argnums: Sequence[int] = (),
) -> Callable[..., Any]:
    """Compiles `function` for one device and maps it over all of them.

    Args:
      function: Per-device code; may use collectives over `AXIS`.
      in_axes: As in `jax.pmap`: None for a value that all devices share, 0 for one
        whose leading axis is the local device (see `shard`).
      out_axes: Likewise; None for a result that is equal on every device.
      donate_argnums: Arguments whose memory may be reused for the results.

    Returns:
      The mapped function. Keep it: a new one compiles again.
    """
    return jax.pmap(
        function,
        axis_name=AXIS,
        in_axes=in_axes,
        out_axes=out_axes,
        donate_argnums=tuple(donate_argnums),
    )


def shard(tree: Tree) -> Tree:
    """Splits each array's leading axis [n * b, ...] into [n, b, ...] for n devices."""
    devices = local_device_count()

    def split(array: Any) -> Any:
        return array.reshape(devices, array.shape[0] // devices, *array.shape[1:])

    return jax.tree.map(split, tree)


def unshard(tree: Tree) -> Tree:
    """Undoes `shard`, onto the host: [n, b, ...] to NumPy [n * b, ...]."""

    def join(array: Any) -> np.ndarray:
        array = np.asarray(array)
        return array.reshape(-1, *array.shape[2:])

    return jax.tree.map(join, tree)


def round_up_to_devices(batch_size: int) -> int:
    """Smallest multiple of the local device count that is at least `batch_size`."""
    devices = local_device_count()
    return math.ceil(batch_size / devices) * devices


def replicate(tree: Tree) -> Tree:
    """Puts a pytree on every local device once, for arguments with `in_axes=None`.

    Without this each call would copy the value from the first device to the others.
    """
    mesh = jax.sharding.Mesh(np.asarray(jax.local_devices()), (AXIS,))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.tree.map(lambda x: jax.device_put(jnp.asarray(x), everywhere), tree)
