"""The ranking as JSON; docs/reading-a-ranking.md describes every key."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from rankckpt_jax.prediction import Prediction
from rankckpt_jax.report.columns import Value, columns
from rankckpt_jax.results.agreement import Agreement
from rankckpt_jax.results.conclusions import Conclusion
from rankckpt_jax.results.row import finite
from rankckpt_jax.results.summary import Summary

SCHEMA = 1
"""Raised when a key is removed or changes its meaning; new keys do not raise it."""


def to_json(summary: Summary) -> str:
    """Return the conclusion, the evaluation, the warnings and all columns of each row.

    Numbers that are unknown or not finite are null.
    """
    ranking = summary.ranking
    content = {
        "schema": SCHEMA,
        "task": ranking.task,
        "description": ranking.task_description,
        "measures": ranking.measures,
        "metric": ranking.metric,
        "conclusion": _conclusion(summary.conclusion),
        "evaluation": _evaluation(summary.agreement),
        "baselines": [
            {
                "name": baseline.name,
                "n": baseline.n,
                **_numbers(baseline.scores),
                **_numbers(dataclasses.asdict(baseline.judgment)),
            }
            for baseline in summary.agreement.baselines
        ],
        "other_metrics": [
            {**dataclasses.asdict(other), "kendall": finite(other.kendall)}
            | {"measures": _numbers(other.measures)}
            for other in summary.other_metrics
        ],
        "kept": dataclasses.asdict(ranking.kept) if ranking.kept else None,
        "prediction": _prediction(ranking.prediction),
        "warnings": [dataclasses.asdict(warning) for warning in summary.warnings],
        "rows": [
            {column.name: _clean(column.value(row)) for column in columns(ranking)}
            | {"tried": dataclasses.asdict(row.tried) if row.tried else None}
            | {"started": dataclasses.asdict(row.started) if row.started else None}
            | {"layer_scores": {m: _numbers(s) for m, s in row.layer_scores.items()}}
            for row in ranking.rows
        ],
    }
    return json.dumps(content, indent=2) + "\n"


def _conclusion(conclusion: Conclusion) -> dict[str, Any]:
    return {
        "checkpoint": conclusion.answer[1] or None,
        **dataclasses.asdict(conclusion),
        "answer": "".join(conclusion.answer),
        "figures": [
            {"name": name, "value": value, "note": note}
            for name, value, note in conclusion.figures
        ],
    }


def _prediction(predicted: Prediction | None) -> dict[str, Any] | None:
    """Return the prediction of the pool; those of its rows are columns."""
    if predicted is None:
        return None
    return {
        "checkpoints": [
            {
                "checkpoint": c.checkpoint,
                "standardized": c.standardized,
                "probability_first_three": c.probability_first_three,
                "contributions": _numbers(c.contributions),
            }
            for c in predicted.checkpoints
        ],
        "regret": [finite(loss) for loss in predicted.regret],
        "is_level_known": predicted.is_level_known,
        "num_tasks": predicted.num_tasks,
        "num_earlier": predicted.num_earlier,
        "notes": predicted.notes,
    }


def _evaluation(agreement: Agreement) -> dict[str, Any]:
    return {
        measure: {
            "n": summary.n,
            **_numbers(summary.scores),
            **_numbers(dataclasses.asdict(summary.judgment)),
            "kendall_low": finite(summary.interval.low),
            "kendall_high": finite(summary.interval.high),
            "p_value": finite(summary.p_value),
        }
        for measure, summary in agreement.measures.items()
    }


def _numbers(scores: Any) -> dict[str, float | None]:
    return {name: finite(value) for name, value in scores.items()}


def _clean(value: Value) -> Value:
    return value if isinstance(value, str | int) else finite(value)
