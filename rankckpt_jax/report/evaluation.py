"""The agreement of measures and baselines with fine-tuning, as a table of text."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rankckpt_jax import measures
from rankckpt_jax.results.formatting import printable
from rankckpt_jax.results.summary import Summary

METRICS = ("kendall", "recall@1", "rel@1", "pearson", "recall@3", "rel@3")
"""Keys of `evaluation.score_ranking`, the most important first."""

LEGEND = (
    "Agreement with fine-tuning; higher is better. In parentheses: baselines that do "
    "not read the images, and the mean over random orders."
)


def lines(summary: Summary) -> list[list[str]]:
    """Return the header and a line for each measure, baseline and a random order.

    Each line has a name, the number n of checkpoints and the value of each metric.
    Every baseline occurs once.
    """

    def line(name: str, n: int, scores: Mapping[str, float]) -> list[str]:
        values = [scores[key] for key in METRICS]
        cells = ["-" if math.isnan(value) else f"{value:.2f}" for value in values]
        return [name, str(n), *cells]

    agreement = summary.agreement
    return [
        ["measure", "n", *METRICS],
        *(
            line(printable(name), of_measure.n, of_measure.scores)
            for name in agreement.by_agreement
            for of_measure in [agreement.measures[name]]
            if measures.reads_images(name)
        ),
        *(
            line(f"({baseline.name})", baseline.n, baseline.scores)
            for baseline in (*agreement.all_baselines, agreement.random_order)
        ),
    ]
