"""Progress bars for long stages: seen on a terminal, silent in a log file."""

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
    """Shows `description`, the share done, the rate and the time left.

    Args:
      description: What is being done, "[2/5] resnet_v1_50: features of train".
      total: How many units there are.
      unit: Name of one, in the singular ("image", "step").

    Yields:
      A tqdm bar; call its `update(n)`. Nothing is written where standard error is
      not a terminal or by another process than the main one, and log lines do not
      break the bar.
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
    """Log lines that do not break a bar, of the records that were let through before.

    tqdm's handler takes the place of the one on the terminal, without its filters.
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
