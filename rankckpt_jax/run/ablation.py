"""How a ranking by NLEEP depends on its two choices, from features that are stored.

The paper keeps 80 % of the variance and takes five components per class. Here each is
varied while the other stays: the scores are kept beside the checkpoint's others.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping

from etils import epath

from rankckpt_jax import evaluation
from rankckpt_jax.results.ablation import Ablation
from rankckpt_jax.results.row import Row
from rankckpt_jax.run import scoring

MEASURE = "nleep"

GRID: Mapping[str, tuple[float, ...]] = {
    "energy": (0.5, 0.6, 0.7, 0.8, 0.9),
    "components_per_class": (1, 2, 3, 4, 5, 6, 7),
}
"""By option of NLEEP, its values; the paper's tables go over the same."""

TITLES = {
    "energy": "share of the variance that PCA keeps",
    "components_per_class": "Gaussian components per class",
}


def settings(base: scoring.Settings, option: str, value: float) -> scoring.Settings:
    """The settings of a single point of the grid."""
    options = dict(base.options.get(MEASURE, {}))
    # One start each: the grid is about the options, not about the noise.
    options = {**options, option: value, "num_restarts": 1}
    return dataclasses.replace(
        base, measures=(MEASURE,), options={MEASURE: options}, num_bootstrap=0
    )


def place(directory: epath.Path, option: str, value: float) -> epath.Path:
    """Where the scores of a point are kept, below the checkpoint's `scores`."""
    return directory / "ablation" / f"{option}_{value:g}"


def evaluate(
    scores: Mapping[tuple[str, float], Mapping[str, float]],
    rows: Iterable[Row],
    base: scoring.Settings,
) -> tuple[Ablation, ...]:
    """Judges the grid's rankings.

    Args:
      scores: By (option, value), scores by checkpoint; points without any are left out.
      rows: The checkpoints, for their accuracies.
      base: The settings in use.

    Returns:
      One for each option of which two values or more are known.
    """
    accuracies = {
        row.checkpoint: accuracy
        for row in rows
        if (accuracy := row.finite_accuracy()) is not None
    }
    found = []
    for option, values in GRID.items():
        known = [value for value in values if scores.get((option, value))]
        if len(known) < 2:
            continue
        default = float(base.options.get(MEASURE, {}).get(option, _default(option)))
        against = accuracies
        if len(accuracies) < 2:
            against = dict(scores.get((option, default), scores[option, known[-1]]))
        evaluations = []
        for value in known:
            common = scores[option, value].keys() & against.keys()
            evaluations.append(
                evaluation.score_ranking(
                    {name: scores[option, value][name] for name in common},
                    {name: against[name] for name in common},
                )
            )
        if all(math.isnan(e["kendall"]) for e in evaluations):
            continue
        found.append(
            Ablation(
                option,
                TITLES[option],
                tuple(known),
                tuple(scores[option, value] for value in known),
                tuple(evaluations),
                against is accuracies,
                default,
            )
        )
    return tuple(found)


def _default(option: str) -> float:
    return {"energy": 0.8, "components_per_class": 5}[option]
