"""Peak rates and memory of devices, for lower bounds of times before a run.

Sources, per chip:

    TPU v3 to v6e, TPU7x  docs.cloud.google.com/tpu/docs/v3, v4, v5e, v5p, v6e, tpu7x
    H200, H100, A100      NVIDIA's data sheets of the SXM modules, without sparsity

A TPU multiplies float32 in bfloat16 passes: one at the default precision, three at
high and six at the highest. It emulates float64, which nothing here uses on a TPU.
JAX multiplies float32 on such a GPU in TensorFloat-32, except at the highest precision.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from rankckpt_jax.devices import mapping, target
from rankckpt_jax.devices import memory as memory_lib
from rankckpt_jax.devices.work import KINDS, Work


@dataclasses.dataclass(frozen=True)
class Peak:
    """Peak rates and memory of one device.

    Attributes:
      name: Its kind, as JAX names it.
      flops: FLOP per second of each kind of `work.KINDS`.
      bandwidth: Bytes per second of its memory.
      memory: Bytes that a program may use.
      is_measured: Whether the rates were measured here, and not published.
    """

    name: str
    flops: Mapping[str, float]
    bandwidth: float
    memory: float
    is_measured: bool = False

    def seconds(self, work: Work) -> float:
        """Return the roofline time, which no run can fall below.

        It is the larger one of the times that arithmetic and memory need at their
        peaks.
        """
        arithmetic = sum(flop / self.flops[kind] for kind, flop in work.flop.items())
        return max(arithmetic, work.bytes / self.bandwidth)


_GIB = 2**30
# The compiler for v5e and v6e refuses programs above 15.75 and 31.25 GiB.
_USABLE = 0.975
# Share of a GPU's memory that JAX allocates, unless it is set otherwise.
_GPU_SHARE = 0.75


def _tpu(tera_flops: float, gigabytes_per_second: float, gib: float, cores: int) -> Any:
    rate = tera_flops * 1e12 / cores
    passes = (1, 1, 3, 6, math.inf)
    flops = {kind: rate / n for kind, n in zip(KINDS, passes, strict=True)}
    memory = _USABLE * gib * _GIB / cores
    return flops, gigabytes_per_second * 1e9 / cores, memory


def _gpu(rates: Sequence[float], bandwidth: float, gigabytes: float) -> Any:
    half, tf32, single, double = (rate * 1e12 for rate in rates)
    flops = dict(zip(KINDS, (half, tf32, single, single, double), strict=True))
    return flops, bandwidth * 1e12, _GPU_SHARE * gigabytes * 1e9


_HOPPER = (989, 494, 67, 67)

PUBLISHED: Mapping[str, tuple[Mapping[str, float], float, float]] = {
    # Two devices share a chip of v3, v4 and TPU7x.
    "TPU v3": _tpu(123, 900, 32, 2),
    "TPU v4": _tpu(275, 1228, 32, 2),
    "TPU v5 lite": _tpu(197, 819, 16, 1),
    "TPU v5": _tpu(459, 2765, 95, 1),
    "TPU v6 lite": _tpu(918, 1638, 32, 1),
    "TPU7x": _tpu(2307, 7380, 192, 2),
    "NVIDIA H200": _gpu(_HOPPER, 4.8, 150.7),
    "NVIDIA H100": _gpu(_HOPPER, 3.35, 85.0),
    "NVIDIA A100": _gpu((312, 156, 19.5, 19.5), 2.039, 85.0),
}
"""(FLOP/s by kind, bytes/s, usable bytes) of one device, by its kind."""


def of_target() -> Peak:
    """Return the peaks of one device of `target`.

    Published rates are used if the device is known. Rates of other devices of this
    machine, such as its CPU, are measured, which takes about a second.
    """
    device = target.local_devices()[0]
    kind = device.device_kind
    known = max(filter(kind.startswith, PUBLISHED), default="", key=len)
    if known:
        flops, bandwidth, memory = PUBLISHED[known]
        return Peak(kind, flops, bandwidth, _limit(device) or memory)
    rate, bandwidth = _measure(tuple(target.local_devices()))
    memory = _limit(device) or memory_lib.of_machine() / len(target.local_devices())
    flops = dict.fromkeys(KINDS, rate) | {"float64": rate / 2}
    return Peak(kind, flops, bandwidth, memory, is_measured=True)


def _limit(device: jax.Device) -> float:
    """Return the bytes that JAX may allocate on a device; 0 if unknown."""
    if target.absent_devices():
        return 0.0
    return (device.memory_stats() or {}).get("bytes_limit", 0.0)


@functools.cache
def _measure(devices: Sequence[jax.Device]) -> tuple[float, float]:
    """Return FLOP/s of float32 and bytes/s of one device while all of them work."""
    size, rows = 1024, 1 << 14
    # pmap needs an argument that differs between the devices.
    zeros = jnp.zeros(len(devices))
    square = mapping.replicate(jnp.ones((size, size)))
    tall = mapping.replicate(jnp.ones((rows, size)))
    multiply = mapping.map_devices(_multiply, (0, None))
    read = mapping.map_devices(_read, (0, None))
    rate = 2 * size**3 / _best_time(lambda: multiply(zeros, square))
    return rate, tall.nbytes / _best_time(lambda: read(zeros, tall))


def _multiply(zero: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.matmul(x, x, precision="highest") + zero


def _read(zero: jax.Array, x: jax.Array) -> jax.Array:
    # Sums, because memory for larger results would take the most time on a CPU.
    return jnp.sum(x, axis=0) + zero


def _best_time(call: Callable[[], Any]) -> float:
    """Return the shortest of some times, which other work disturbs least."""
    times = []
    for _ in range(6):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    # The first call compiles.
    return min(times[1:])
