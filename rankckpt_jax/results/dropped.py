"""Sentences on the checkpoints whose fine-tuning was not completed."""

from __future__ import annotations

from rankckpt_jax.errors import some
from rankckpt_jax.results.formatting import format_metric, printable
from rankckpt_jax.results.ranking import Ranking


def describe_dropped(ranking: Ranking) -> str:
    """Return the sentence on the checkpoints that successive halving dropped."""
    tries = [(row.tried, printable(row.checkpoint)) for row in ranking.rows]
    dropped = [(t, name) for t, name in tries if t is not None and not t.is_left]
    if not dropped:
        return ""
    parts = []
    for tried, name in sorted(dropped, key=lambda pair: -pair[0].steps):
        value = "diverged"
        if tried.accuracy is not None:
            value = format_metric(tried.accuracy, ranking.metric)
        parts.append(f"{name} after {tried.steps:,} ({value})")
    total = dropped[0][0].total_steps
    return (
        f"Dropped by successive halving, with their steps of {total:,} and held-out "
        f"{ranking.metric_title}: {some(parts)}. These values are of fewer steps and "
        "are not compared with complete fine-tunings."
    )


def describe_started(ranking: Ranking) -> str:
    """Return the sentence on the checkpoints that a plan only began to fine-tune."""
    left = [
        (row.started, printable(row.checkpoint))
        for row in ranking.rows
        if row.started is not None and row.finetune_seconds is None
    ]
    if not left:
        return ""
    parts = []
    for start, name in sorted(left, key=lambda pair: -(pair[0].accuracy or 0.0)):
        value = "diverged"
        if start.accuracy is not None:
            value = format_metric(start.accuracy, ranking.metric)
        parts.append(f"{name} ({value})")
    start, _ = left[0]
    return (
        f"Fine-tuned for the first {start.steps:,} of {start.num_steps:,} steps only, "
        f"with the held-out {ranking.metric_title} there: {some(parts)}. These values "
        "count in the predictions, and are not compared with complete fine-tunings."
    )
