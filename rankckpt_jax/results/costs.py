"""The cost of ranking compared with the cost of fine-tuning."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

from rankckpt_jax.results.ranking import Ranking
from rankckpt_jax.results.row import Row, finite

Times = tuple[tuple[str, tuple[float | None, ...]], ...]
"""Name of each step, and its time in seconds for each row; None if unknown."""


@dataclasses.dataclass(frozen=True)
class CostComparison:
    """One cost of ranking by the first measure, and of fine-tuning.

    Attributes:
      name: `"seconds"`, `"images"` or `"operations"`.
      num_checkpoints: Number of checkpoints for which both costs are known.
      ranking: Sum over these checkpoints.
      finetuning: Sum over these checkpoints.
      ranking_compiling: The part of `ranking` that was spent on compiling, if it is
        a time.
      finetuning_compiling: The same for `finetuning`.
    """

    name: str
    num_checkpoints: int
    ranking: float
    finetuning: float
    ranking_compiling: float = 0.0
    finetuning_compiling: float = 0.0

    @property
    def factor(self) -> float | None:
        """How many times as much fine-tuning costs; None if it costs no more."""
        if not 0 < 1.05 * self.ranking < self.finetuning:
            return None
        return self.finetuning / self.ranking


@dataclasses.dataclass(frozen=True)
class Costs:
    """The costs of a ranking.

    Attributes:
      comparisons: The comparisons that at least one checkpoint allows.
      rows: The checkpoints that did not fail.
      seconds: For each of `"features"`, the measures and `"fine-tuning"`, the time of
        each row; None if unknown.
      compile_seconds: The same for the part that was spent on compiling.
    """

    comparisons: tuple[CostComparison, ...]
    rows: tuple[Row, ...]
    seconds: Times
    compile_seconds: Times


def sum_rows(times: Times) -> tuple[float | None, ...]:
    """Return the sum of each column; None if no time is known."""
    return tuple(_sum_known(column) for _, column in times)


def sum_measures(times: Times) -> Times:
    """Return the times with one column for the sum of all measures."""
    features, *measures, finetuning = times
    lines = zip(*(column for _, column in measures), strict=True)
    return features, ("all measures", tuple(map(_sum_known, lines))), finetuning


def _sum_known(seconds: Sequence[float | None]) -> float | None:
    known = [second for second in seconds if second is not None]
    return sum(known) if known else None


def compare_costs(ranking: Ranking) -> Costs | None:
    """Return the costs of a ranking, or None if no time is known."""
    rows = tuple(row for row in ranking.rows if not row.failure)
    columns: list[tuple[str, Callable[[Row], float | None]]] = [
        ("features", lambda row: row.extract_seconds),
        *((m, lambda row, m=m: row.score_seconds.get(m)) for m in ranking.measures),
        ("fine-tuning", lambda row: row.finetune_seconds),
    ]
    seconds = tuple(
        (name, tuple(finite(value(row)) for row in rows)) for name, value in columns
    )
    compile_seconds = tuple(
        (name, tuple(finite(row.compile_seconds.get(name)) for row in rows))
        for name, _ in columns
    )
    if all(second is None for _, column in seconds for second in column):
        return None
    comparisons = []
    for name, (of_ranking, of_finetuning) in _COSTS.items():
        pairs = [
            (a, b, *_compiling(name, row, ranking.measures[0]))
            for row in rows
            if (a := finite(of_ranking(row, ranking.measures[0]))) is not None
            and (b := finite(of_finetuning(row))) is not None
        ]
        if pairs:
            sums = (sum(column) for column in zip(*pairs, strict=True))
            comparisons.append(CostComparison(name, len(pairs), *sums))
    return Costs(tuple(comparisons), rows, seconds, compile_seconds)


def _compiling(name: str, row: Row, measure: str) -> tuple[float, float]:
    """Return the parts of a row's two costs that were spent on compiling."""
    if name != "seconds":
        return 0.0, 0.0
    finetuning = finite(row.compile_seconds.get("fine-tuning"))
    return row.ranking_compile_seconds(measure) or 0.0, finetuning or 0.0


def _product(*factors: float | None) -> float | None:
    return None if None in factors else math.prod(f for f in factors if f is not None)


_COSTS: Mapping[
    str,
    tuple[Callable[[Row, str], float | None], Callable[[Row], float | None]],
] = {
    "seconds": (
        lambda row, measure: row.ranking_seconds(measure),
        lambda row: row.finetune_seconds,
    ),
    "images": (
        lambda row, measure: row.extract_images,
        lambda row: row.finetune_images,
    ),
    "operations": (
        # A multiply-add is two operations. A backward pass costs two forward passes.
        lambda row, measure: _product(2, row.multiply_adds, row.extract_images),
        lambda row: _product(6, row.multiply_adds, row.finetune_images),
    ),
}
"""Name of each cost, its value for ranking and its value for fine-tuning."""
