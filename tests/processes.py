"""Environments of the processes that tests start."""

import os

# Compiling takes most of their time, and optimising most of that. Programs made so are
# kept apart: others, which compare bits, would load them from the store.
_UNOPTIMISED = "--xla_backend_optimization_level=0"


def unoptimised(*flags: str, **more: str) -> dict[str, str]:
    """This process's environment, with XLA that compiles in half the time."""
    given = os.environ.get("XLA_FLAGS", "")
    return {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": f"{os.environ['JAX_COMPILATION_CACHE_DIR']}/quick",
        "XLA_FLAGS": " ".join(filter(None, [given, *flags, _UNOPTIMISED])),
        **more,
    }


def with_devices(count: int, **more: str) -> dict[str, str]:
    """As `unoptimised`, with so many devices on the CPU."""
    flag = f"--xla_force_host_platform_device_count={count}"
    return unoptimised(flag, **more)
