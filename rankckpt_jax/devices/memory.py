"""Memory: that of this machine, whether a program fits, and the largest batch."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Callable

# Memory limits of control groups, versions 2 and 1.
_CONTAINER_LIMITS = (
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)

TIGHT = 0.9
"""Share of the memory above which a program is TIGHT, as fragmentation can end it."""


def of_machine() -> int:
    """Return the memory of this machine, or of its container if that has less."""
    sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for place in _CONTAINER_LIMITS:
        # Absent outside a container, and "max" without a limit.
        with contextlib.suppress(OSError, ValueError):
            sizes.append(int(pathlib.Path(place).read_text()))
    return min(sizes)


def verdict(peak_bytes: float, memory: float) -> str:
    """Return "FITS", "TIGHT" (over 90 % of the memory) or "OOM".

    Example:
      >>> [verdict(peak, 100.0) for peak in (90.0, 91.0, 100.0, 101.0)]
      ['FITS', 'TIGHT', 'TIGHT', 'OOM']
    """
    if peak_bytes > memory:
        return "OOM"
    return "TIGHT" if peak_bytes > TIGHT * memory else "FITS"


@dataclasses.dataclass(frozen=True)
class LargestBatch:
    """The largest batch that fits.

    Attributes:
      size: Images; 0 if not even the smallest batch fits.
      is_verified: Whether it was compiled. Otherwise it was extrapolated.
    """

    size: int
    is_verified: bool


def largest_batch(
    peak_of: Callable[[int], float], batch_size: int, step: int, memory: float
) -> LargestBatch:
    """Return the largest batch that fits, for a batch that does not.

    The memory of two smaller batches, an eighth and a quarter of it, is extrapolated
    linearly. The result is compiled once; if it does not fit, a twentieth less is
    returned without another look.

    Args:
      peak_of: Compiles for a batch and returns its bytes; infinite if the compiler
        refuses it.
      batch_size: The batch that does not fit.
      step: The batch is a multiple of this number, such as that of the devices.
      memory: Bytes that a program may use.
    """

    def round_down(size: float) -> int:
        return max(int(size / step) * step, step)

    def fits(size: int) -> bool:
        return peak_of(size) <= memory

    large = round_down(batch_size / 4)
    while large > step and not fits(large):
        large = round_down(large / 2)
    small = round_down(large / 2)
    if small == large:
        size = step if fits(step) else 0
        return LargestBatch(size, True)
    low, high = peak_of(small), peak_of(large)
    slope = (high - low) / (large - small)
    if slope <= 0:
        return LargestBatch(large, True)
    size = round_down(min(large + (memory - high) / slope, batch_size - step))
    if size <= large or fits(size):
        return LargestBatch(max(size, large), True)
    return LargestBatch(max(round_down(0.95 * size), large), False)
