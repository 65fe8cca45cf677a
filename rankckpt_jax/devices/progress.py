"""Progress bars for long stages: visible on a terminal, silent in a log file."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator

import tqdm
import tqdm.contrib.logging

from rankckpt_jax.devices import processes


@contextlib.contextmanager
def bar(description: str, total: int, unit: str) -> Iterator[tqdm.tqdm]:
    """Show the description, the share done, the rate and the remaining time.

    Args:
      description: What is being done, "[2/5] resnet_v1_50: features of train".
      total: Number of units.
      unit: Name of a unit in the singular ("image", "step").

    Yields:
      A tqdm bar; call its `update(n)`. Nothing is written if standard error is not a
      terminal, or by another process than process 0. Log lines do not break the bar.
    """
    shown = sys.stderr.isatty() and processes.is_main_process()
    with (
        tqdm.tqdm(
            desc=description,
            total=total,
            unit=f" {unit}",
            disable=not shown,
            dynamic_ncols=True,
            leave=False,
        ) as progress,
        _lines_above_bars() if shown else contextlib.nullcontext(),
    ):
        yield progress


@contextlib.contextmanager
def _lines_above_bars() -> Iterator[None]:
    """Write log lines above a bar, with the filters of the terminal's handler.

    tqdm's handler replaces that handler, but does not copy its filters.
    """
    root = logging.getLogger()
    filters = [rule for handler in root.handlers for rule in handler.filters]
    before = list(root.handlers)
    with tqdm.contrib.logging.logging_redirect_tqdm([root]):
        for handler in root.handlers:
            if handler not in before:
                for rule in filters:
                    handler.addFilter(rule)
        yield
