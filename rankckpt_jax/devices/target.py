"""The platform and devices that programs are made for.

Some programs have a special form for a CPU, or another dtype on a TPU. Code that
chooses asks `platform` here, and nothing else asks JAX. Programs are normally made for
the devices of this process. `compile_for` selects devices that are absent, for
ahead-of-time compilation (see `topologies`):

    with target.compile_for(topologies.load("v5e:2x4")):
        compiled = mapping.lower(function, *shapes).compile()
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator, Sequence

import jax

from rankckpt_jax.devices import compilation

_ABSENT: contextvars.ContextVar[tuple[jax.Device, ...]] = contextvars.ContextVar(
    "absent devices", default=()
)
_ASSUMED: contextvars.ContextVar[str] = contextvars.ContextVar(
    "assumed platform", default=""
)


def platform() -> str:
    """Return the platform that programs are made for: "cpu", "gpu" or "tpu"."""
    if assumed := _ASSUMED.get():
        return assumed
    absent = _ABSENT.get()
    name = absent[0].platform if absent else jax.default_backend()
    return "gpu" if name in ("cuda", "rocm") else name


def local_devices() -> Sequence[jax.Device]:
    """Return the devices of this process, or those of `compile_for`."""
    return _ABSENT.get() or jax.local_devices()


def absent_devices() -> tuple[jax.Device, ...]:
    """Return the devices of `compile_for`; empty outside of it."""
    return _ABSENT.get()


@contextlib.contextmanager
def assume(name: str) -> Iterator[None]:
    """Trace a part of a program that is exported for another platform.

    Args:
      name: "cpu", "gpu" or "tpu".
    """
    token = _ASSUMED.set(name)
    try:
        yield
    finally:
        _ASSUMED.reset(token)


@contextlib.contextmanager
def compile_for(devices: Sequence[jax.Device]) -> Iterator[None]:
    """Make programs for other devices, such as those of a topology.

    They can be lowered and compiled (`mapping.lower`), and not called. JAX keeps traces
    of functions without knowing what `platform` returned. All of them are therefore
    dropped at the start and at the end, and running programs are compiled again. The
    persistent compilation cache is off.

    Args:
      devices: At least one device, all of the same kind.
    """
    with compilation.disabled():
        jax.clear_caches()
        token = _ABSENT.set(tuple(devices))
        try:
            yield
        finally:
            _ABSENT.reset(token)
            jax.clear_caches()
