"""Every figure of a judgment as CSV and JSON."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Mapping
from typing import Any

from rankckpt_jax.evaluation import FIGURES, Judgment
from rankckpt_jax.report.csv import text_cell
from rankckpt_jax.report.judgment import sentences

SCHEMA = 1
"""Raised when a key is removed or changes its meaning; new keys do not raise it."""

_ENDS = ("pool_low", "pool_high", "tasks_low", "tasks_high")


def to_csv(judgment: Judgment) -> str:
    """Return a line for each measure and baseline: their means, then each task.

    The columns are `FIGURES`, the same for a random order, and the 95 % intervals of
    Kendall's tau. Regret is a fraction of 1. Unknown cells are empty.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    random = [f"random_{key}" for key in FIGURES]
    ends = [f"kendall_{end}" for end in _ENDS]
    writer.writerow(
        ["measure", "kind", "task", "checkpoints", "families", *FIGURES, *random, *ends]
    )
    for row in judgment.all_rows:
        figures = row.figures
        kind = "baseline" if row.is_baseline else "measure"
        tau = figures["kendall"]
        writer.writerow(
            [
                *map(text_cell, (row.name, kind, "mean")),
                "",
                "",
                *(_cell(figures[key].value) for key in FIGURES),
                *(_cell(figures[key].random) for key in FIGURES),
                *map(_cell, (*tau.pool, *tau.tasks)),
            ]
        )
        for task, agreement in row.by_task.items():
            writer.writerow(
                [
                    *map(text_cell, (row.name, kind, task)),
                    agreement.n,
                    agreement.num_families or "",
                    *(_cell(agreement.values[key]) for key in FIGURES),
                    *(_cell(agreement.random[key]) for key in FIGURES),
                    *map(_cell, (*agreement.interval, math.nan, math.nan)),
                ]
            )
    return file.getvalue()


def to_json(judgment: Judgment) -> str:
    """Return the conclusions and all figures. Numbers that are unknown are null."""
    table = judgment.table
    content = {
        "schema": SCHEMA,
        "name": table.name,
        "conclusions": sentences.conclusions(judgment),
        "cautions": sentences.cautions(judgment),
        "protocol": dict(sentences.protocol(judgment)),
        "notes": table.notes,
        "default": judgment.default,
        "best_baseline": judgment.best_baseline,
        "dropping_criterion": judgment.criterion,
        "rank_dispersion": judgment.dispersion,
        "null_deviation": judgment.deviation,
        "noise_ceiling": judgment.ceilings,
        "measures": judgment.measures,
        "baselines": judgment.baselines,
    }
    return json.dumps(_plain(content), indent=2) + "\n"


def _plain(value: Any) -> Any:
    """Return nested plain data for JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _plain(getattr(value, field.name))
            for field in dataclasses.fields(value)
        }
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return _plain(value._asdict())
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _cell(value: float) -> str:
    return "" if math.isnan(value) else repr(float(value))
