"""The stage `ablate`: NLEEP over its two options, from stored features.

The paper keeps 80 % of the variance and fits five components per class. The stage
varies one option while the other stays fixed, and caches every score.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping

from rankckpt_jax import evaluation, measures
from rankckpt_jax.results.ablation import Ablation
from rankckpt_jax.results.row import Row
from rankckpt_jax.run import checkpoint, scoring
from rankckpt_jax.run.context import RunContext
from rankckpt_jax.run.events import Events

MEASURE = "nleep"

GRID: Mapping[str, tuple[float, ...]] = {
    "energy": (0.5, 0.6, 0.7, 0.8, 0.9),
    "components_per_class": (1, 2, 3, 4, 5, 6, 7),
}
"""Values by option of NLEEP, the same as in the paper's tables."""

TITLES = {
    "energy": "share of the variance that PCA keeps",
    "components_per_class": "Gaussian components per class",
}


def run(context: RunContext, rows: Iterable[Row]) -> tuple[Ablation, ...]:
    """Score every point of GRID for every checkpoint, and evaluate the rankings.

    Without the stage `ablate` only stored scores are read.

    Args:
      context: The run.
      rows: The evaluated checkpoints.
    """
    if MEASURE not in context.settings.measures:
        return ()
    rows = [row for row in rows if not row.failure and row.dropped is None]
    points: dict[tuple[str, float], dict[str, float]] = {}
    for row in rows:
        name = row.checkpoint
        directory = context.directory / name / "scores" / "ablation"
        compute = "ablate" in context.stages and context.evaluates(name)
        if not compute and not directory.exists():
            continue
        loaded = checkpoint.load_features(context, name)
        if loaded is None:
            continue
        events = Events(f"{name}, ablation")
        for option, value in ((o, v) for o, values in GRID.items() for v in values):
            add = functools.partial(_add_point, events, f"{option} {value:g}")
            scored = scoring.score_row(
                Row(name),
                loaded,
                _settings(context.settings, option, value),
                directory=directory / f"{option}_{value:g}",
                compute=compute,
                title=f"{events.title}, {option} {value:g}",
                on_result=add,
            )
            if (score := scored.score(MEASURE)) is not None:
                points.setdefault((option, value), {})[name] = score
        events.log()
    return evaluate(points, rows, context.settings)


def _add_point(events: Events, point: str, measure: str, seconds: float | None) -> None:
    events.add(point, seconds)


def _settings(base: scoring.Settings, option: str, value: float) -> scoring.Settings:
    """Return the settings of one point of the grid."""
    # One start each, because the grid is about the options and not about noise.
    options = {**base.options.get(MEASURE, {}), option: value, "num_restarts": 1}
    return dataclasses.replace(
        base, measures=(MEASURE,), options={MEASURE: options}, num_bootstrap=0
    )


def evaluate(
    scores: Mapping[tuple[str, float], Mapping[str, float]],
    rows: Iterable[Row],
    base: scoring.Settings,
) -> tuple[Ablation, ...]:
    """Evaluate the rankings of the grid.

    Args:
      scores: Scores by checkpoint, by (option, value). Points may be missing.
      rows: The checkpoints, for their accuracies.
      base: The settings of the run.

    Returns:
      One ablation per option with at least two scored values.
    """
    accuracies = {
        row.checkpoint: accuracy
        for row in rows
        if (accuracy := row.finite_accuracy()) is not None
    }
    tolerance = measures.tolerance(MEASURE)
    scores = {
        point: dict(zip(known, tolerance.resolve(list(known.values())), strict=True))
        for point, known in scores.items()
    }
    ablations = []
    for option, values in GRID.items():
        scored = [value for value in values if scores.get((option, value))]
        if len(scored) < 2:
            continue
        default = float(base.options.get(MEASURE, {}).get(option, _default(option)))
        against = accuracies
        if len(accuracies) < 2:
            against = dict(scores.get((option, default), scores[option, scored[-1]]))
        evaluations = []
        for value in scored:
            common = scores[option, value].keys() & against.keys()
            evaluations.append(
                evaluation.score_ranking(
                    {name: scores[option, value][name] for name in common},
                    {name: against[name] for name in common},
                )
            )
        if all(math.isnan(e["kendall"]) for e in evaluations):
            continue
        ablations.append(
            Ablation(
                option,
                TITLES[option],
                tuple(scored),
                tuple(scores[option, value] for value in scored),
                tuple(evaluations),
                against is accuracies,
                default,
            )
        )
    return tuple(ablations)


def _default(option: str) -> float:
    return {"energy": 0.8, "components_per_class": 5}[option]
