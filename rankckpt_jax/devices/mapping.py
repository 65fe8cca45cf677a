"""Maps per-device code over all devices.

Code elsewhere is written for one device, with a named axis `AXIS` for its collectives
(`jax.lax.psum(x, AXIS)`). `map_devices` runs it on every local device of every process.
One process with one device is the same code path with an axis of size one.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

AXIS = "batch"
"""Name of the mapped axis: the devices, over which a batch is divided."""

MAPPING = "pmap"
"""How `map_devices` maps: "pmap" or "shard_map"; the results are equal."""

PROGRAMS_KEPT = 32
"""Compiled functions of a kind that are kept: as many as a pool may well mix
architectures; see `bounded_cache`."""

_CPU_DEVICES = 8
"""Most devices that the cores of a CPU are divided into: each holds the weights."""

Tree = TypeVar("Tree")


def num_cores() -> int:
    """Processor cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def split_cpu_devices() -> None:
    """Makes a device of each core of a CPU; before JAX is asked for a device.

    One device works on a batch with all cores, but what it does between two large
    products is often done by one of them. Where each core takes its share of a batch
    none waits: on two cores features are extracted 13 to 19 % faster.
    Accelerators are not concerned, and a number of CPU devices that the environment
    sets (XLA_FLAGS or JAX_NUM_CPU_DEVICES) stands.
    """
    said = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not said and "JAX_NUM_CPU_DEVICES" not in os.environ:
        jax.config.update("jax_num_cpu_devices", min(num_cores(), _CPU_DEVICES))


def local_device_count() -> int:
    """Number of devices attached to this process."""
    return jax.local_device_count()


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
    mapping = {"pmap": _pmap, "shard_map": _shard_map}[MAPPING]
    return mapping(function, in_axes, out_axes, tuple(donate_argnums))


def bounded_cache(make: Callable[..., Callable[..., Any]]) -> Any:
    """`functools.cache` for functions that compile, so that memory stays bounded.

    JAX holds on to whatever pmap has compiled, also where nobody else does; it can only
    be told to drop everything. This is done after each `PROGRAMS_KEPT` of a kind: what
    is used again after that is compiled again.

    Args:
      make: Called as `make(*hashable)`; returns a function that `map_devices` made, or
        that such functions call.
    """
    known: dict[Any, Callable[..., Any]] = {}

    @functools.wraps(make)
    def get(*key: Any) -> Callable[..., Any]:
        if key not in known:
            if len(known) >= PROGRAMS_KEPT:
                known.clear()
                jax.clear_caches()
            known[key] = make(*key)
        return known[key]

    get.cache_clear = known.clear  # type: ignore[attr-defined]
    return get


def _pmap(
    function: Callable[..., Any], in_axes: Any, out_axes: Any, donate: tuple[int, ...]
) -> Callable[..., Any]:
    return jax.pmap(
        function,
        axis_name=AXIS,
        in_axes=in_axes,
        out_axes=out_axes,
        donate_argnums=donate,
    )


def _shard_map(
    function: Callable[..., Any], in_axes: Any, out_axes: Any, donate: tuple[int, ...]
) -> Callable[..., Any]:
    """As `_pmap`: the same axes, with a leading axis of local devices where it is 0."""

    def on_one(*arguments: Any) -> Any:
        arguments = _where_mapped(in_axes, arguments, lambda x: jnp.squeeze(x, 0))
        result = function(*arguments)
        return _where_mapped(out_axes, result, lambda x: jnp.expand_dims(x, 0))

    # In the order in which the processes count them.
    devices = sorted(jax.devices(), key=lambda d: (d.process_index, d.id))
    mesh = jax.sharding.Mesh(np.asarray(devices), (AXIS,))
    in_specs, out_specs = _specs(in_axes), _specs(out_axes)
    mapped = jax.jit(
        jax.shard_map(
            on_one, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        ),
        donate_argnums=donate,
    )
    if jax.process_count() == 1:
        return mapped

    def call(*arguments: Any) -> Any:
        given = multihost_utils.host_local_array_to_global_array(
            arguments, mesh, in_specs
        )
        return multihost_utils.global_array_to_host_local_array(
            mapped(*given), mesh, out_specs
        )

    return call


def _is_none(axis: Any) -> bool:
    return axis is None


def _specs(axes: Any) -> Any:
    spec = jax.sharding.PartitionSpec
    return jax.tree.map(
        lambda axis: spec() if axis is None else spec(AXIS), axes, is_leaf=_is_none
    )


def _where_mapped(axes: Any, tree: Any, change: Callable[[Any], Any]) -> Any:
    def part(axis: Any, subtree: Any) -> Any:
        return subtree if axis is None else jax.tree.map(change, subtree)

    return jax.tree.map(part, axes, tree, is_leaf=_is_none)


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
