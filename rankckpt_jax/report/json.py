"""The ranking as JSON."""

from __future__ import annotations

import json

from rankckpt_jax.report.columns import Value, columns
from rankckpt_jax.results.row import finite
from rankckpt_jax.results.summary import Summary


def to_json(summary: Summary) -> str:
    """Return the task, the conclusions, the evaluation and all columns of each row.

    Numbers that are unknown or not finite are null.
    """
    ranking = summary.ranking
    rows = [
        {column.name: _clean(column.value(row)) for column in columns(ranking)}
        for row in ranking.rows
    ]
    evaluation = {
        measure: {name: finite(value) for name, value in scores.items()}
        for measure, scores in ranking.evaluation.items()
    }
    content = {
        "task": ranking.task,
        "description": ranking.task_description,
        "measures": ranking.measures,
        "conclusions": summary.sentences,
        "evaluation": evaluation,
        "rows": rows,
    }
    return json.dumps(content, indent=2) + "\n"


def _clean(value: Value) -> Value:
    return value if isinstance(value, str | int) else finite(value)
