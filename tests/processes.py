"""Environments of processes that tests start."""

import os


def with_devices(count: int, **more: str) -> dict[str, str]:
    """Return this environment with a number of CPU devices."""
    flags = os.environ.get("XLA_FLAGS", "")
    flags = f"{flags} --xla_force_host_platform_device_count={count}"
    return {**os.environ, "XLA_FLAGS": flags.strip(), **more}
