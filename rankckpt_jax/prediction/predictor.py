"""Predicts accuracies after fine-tuning from measures, properties and earlier results.

docs/predicting.md describes the model and its evidence.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from rankckpt_jax.errors import InputError
from rankckpt_jax.evaluation.intervals import UNDEFINED, Interval
from rankckpt_jax.evaluation.table import Table
from rankckpt_jax.prediction import level as levels
from rankckpt_jax.prediction import standardize as st
from rankckpt_jax.prediction.belief import believe
from rankckpt_jax.prediction.candidates import (
    Candidate,
    Early,
    Record,
    check_candidates,
    check_fractions,
    check_measured,
    fill_families,
    inputs_of,
    move_statics,
    similar_names,
)
from rankckpt_jax.prediction.outcome import LEVEL, CheckpointPrediction, Prediction
from rankckpt_jax.prediction.published import published_relations
from rankckpt_jax.prediction.relations import (
    ACCURACY,
    PROBES,
    Relations,
    build_model,
    pair,
    relations_of,
)

SHRINKAGE = 100.0
RIDGE = 0.5
"""Settings chosen on published tasks; see docs/predicting.md."""

FINE_TUNED_HERE = "fine-tuned here"
"""The contribution of accuracies of the task itself, complete or early."""

_FEW = 5
"""Smaller pools have a note."""


@dataclasses.dataclass(frozen=True, eq=False)
class Predictor:
    """Recorded tasks, in a form that predicts the next one; made by `fit`.

    Attributes:
      relations: Correlations of accuracies and inputs over recorded tasks.
      records: Accuracies on earlier tasks, by the names of checkpoints.
      shrinkage: Shrinkage of the correlations; see `relations.build_model`.
      ridge: Noise of the inputs; see `relations.build_model`.
    """

    relations: Relations = Relations()
    records: tuple[Record, ...] = ()
    shrinkage: float = SHRINKAGE
    ridge: float = RIDGE


def fit(
    tables: Iterable[Table] = (),
    *,
    prior: Relations | None = None,
) -> Predictor:
    r"""Return a predictor from tables of earlier tasks.

    The tables give the weights of the inputs, added to those of the prior, and the
    earlier results of checkpoints, which are found by name. Each table is one way to
    fine-tune: results of different protocols should not be mixed.

    Example:
      >>> from rankckpt_jax import evaluation
      >>> table = evaluation.parse_table(
      ...     "task,checkpoint,accuracy,nleep\npets,a,.91,-.4\npets,b,.85,-.9\n"
      ... )
      >>> predictor = fit([table])
      >>> prediction = predict(predictor, [Candidate("b"), Candidate("a")])
      >>> prediction.best.checkpoint
      'a'

    Args:
      tables: Tables of accuracies and scores, such as those of a history.
      prior: Relations to start from; those of published tasks if None. `Relations()`
        uses the tables only.

    Raises:
      InputError: Two tables contradict each other about an accuracy or a family, or an
        accuracy is not a fraction of 1.
    """
    tables = list(tables)
    check_tables(tables)
    relations = published_relations() if prior is None else prior
    for table in tables:
        relations = relations + relations_of(table)
    return Predictor(relations, records_of(tables))


def check_tables(tables: Sequence[Table]) -> None:
    """Refuse tables that contradict each other, and accuracies outside [0, 1]."""
    accuracies: dict[tuple[str, str], tuple[float, str]] = {}
    families: dict[str, tuple[str, str]] = {}
    for table in tables:
        for task in table.tasks:
            by_name = task.by_name(task.accuracies)
            check_fractions(by_name, f"{table.name}, task {task.name!r}")
            for name, value in by_name.items():
                key = (task.name, name)
                earlier, where = accuracies.setdefault(key, (value, table.name))
                if not math.isclose(earlier, value, abs_tol=1e-6):
                    raise InputError(
                        "Two tables contradict each other about an accuracy",
                        where=f"{where} and {table.name}",
                        expected=f"the same accuracy of {name!r} on {task.name!r}",
                        found=f"{earlier:g} and {value:g}",
                        fix="rename the task in one of them if it is another task or "
                        "another way to fine-tune; put several runs into one table "
                        "with a column `seed`",
                    )
        for name, checkpoint in table.checkpoints.items():
            if not checkpoint.family:
                continue
            first = families.setdefault(name, (checkpoint.family, table.name))
            if first[0] != checkpoint.family:
                raise InputError(
                    "Two tables contradict each other about a family",
                    where=f"{first[1]} and {table.name}",
                    expected=f"the same family of {name!r}",
                    found=f"{first[0]} and {checkpoint.family}",
                    fix="rename the checkpoint in one of them, or correct its family",
                )


def records_of(tables: Iterable[Table]) -> tuple[Record, ...]:
    """Return the accuracies of all tasks, divided by the scale of each.

    The scale is the standard deviation of the logits. It is drawn to the median of the
    tasks as if that were of four more checkpoints, because that of a few checkpoints is
    uncertain. An accuracy that several tables have counts once.
    """
    found = []
    known: set[tuple[str, str]] = set()
    for table in tables:
        for task in table.tasks:
            new = [(task.name, name) not in known for name in task.checkpoints]
            known |= {(task.name, name) for name in task.checkpoints}
            names = [
                n for n, is_new in zip(task.checkpoints, new, strict=True) if is_new
            ]
            if names:
                values = st.winsorize(st.logit(task.accuracies, task.num_test))[new]
                families = tuple(table.checkpoints[name].family for name in names)
                found.append(Record(task.name, tuple(names), families, values))
    # Equal accuracies have no scale.
    spreads = [s for r in found if (s := float(r.values.std())) > 1e-9]
    typical = float(np.median(spreads)) if spreads else 1.0
    result = []
    for record in found:
        n = len(record.values)
        scale = math.sqrt((4 * typical**2 + n * record.values.var()) / (4 + n))
        result.append(dataclasses.replace(record, values=record.values / scale))
    return tuple(result)


def predict(
    predictor: Predictor,
    pool: Sequence[Candidate],
    measured: Mapping[str, float] | None = None,
    *,
    early: Mapping[str, Early] | None = None,
    num_test: int | None = None,
    num_samples: int = 10_000,
    seed: int = 0,
) -> Prediction:
    """Predict the accuracies of a pool after fine-tuning.

    Args:
      predictor: Earlier tasks; see `fit`.
      pool: The checkpoints of the task; see `candidates` for those of a table.
      measured: Accuracies in [0, 1] of checkpoints that were fine-tuned on the task.
      early: Accuracies after the first part of fine-tunings on the task, the same part
        for all. Those of checkpoints in `measured` tell how far accuracies rise from
        there to the end.
      num_test: Number of test images of the task. With it, measured accuracies are
        subject to the noise of so many images; without, they are exact.
      num_samples: Number of draws for probabilities, regret and intervals. With 10,000,
        a probability has a standard error of at most 0.005.
      seed: Seed of the draws. The same seed gives the same prediction.

    Raises:
      InputError: The pool has fewer than two checkpoints or two of the same name, or a
        measured or early accuracy is of no checkpoint of the pool, or not a fraction
        of 1.
    """
    measured, early = dict(measured or {}), dict(early or {})
    check_candidates(pool)
    check_measured(measured, pool)
    check_measured({name: value.accuracy for name, value in early.items()}, pool)
    pool, notes = fill_families(map(move_statics, pool), predictor.records)
    names = [candidate.name for candidate in pool]
    relations = predictor.relations
    model = build_model(
        relations, inputs_of(pool), predictor.shrinkage, predictor.ridge
    )
    belief = believe(model, pool, predictor.records)
    level = levels.predict_level(relations, pool)
    logits_of = {name: levels.observe(a, num_test) for name, a in measured.items()}
    first_parts = {
        name: levels.observe(a.accuracy, a.num_images) for name, a in early.items()
    }
    observed = {**logits_of, **levels.foresee(logits_of, first_parts)}
    posterior = levels.update(
        belief,
        levels.predict_scale(relations),
        level,
        {names.index(name): logit for name, logit in observed.items()},
    )
    standardized, logits = posterior.draw(num_samples, seed)
    is_level_known = level is not None or bool(observed)
    accuracies = 1 / (1 + np.exp(-logits))
    values = accuracies if is_level_known else standardized
    mean = posterior.logits if is_level_known else posterior.standardized
    order = np.argsort(-mean, kind="stable")
    first, first_three = (share_of_first(values, k) for k in (1, 3))
    known = [names.index(name) for name in measured]
    gains = expected_gains(values, known) if known else None
    tails = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    # The scale of the pool is uncertain too, which leaves its order as it is.
    center = posterior.standardized
    quantiles = np.quantile(standardized, tails, axis=0)
    intervals = (center + widening(len(pool)) * (quantiles - center)).T
    accuracy_intervals = np.quantile(accuracies, tails, axis=0).T
    contributions = dict(belief.contributions)
    if observed:
        contributions[FINE_TUNED_HERE] = posterior.standardized - belief.mean
    rows = []
    for i in order:
        rows.append(
            CheckpointPrediction(
                checkpoint=names[i],
                standardized=float(posterior.standardized[i]),
                standardized_interval=Interval(*map(float, intervals[i])),
                accuracy=float(1 / (1 + np.exp(-mean[i])))
                if is_level_known
                else math.nan,
                interval=Interval(*map(float, accuracy_intervals[i]))
                if is_level_known
                else UNDEFINED,
                probability_best=float(first[i]),
                probability_first_three=float(first_three[i]),
                gain=None if gains is None else float(gains[i]),
                contributions={k: float(v[i]) for k, v in contributions.items()},
                measured=measured.get(names[i]),
            )
        )
    best_of_first = np.maximum.accumulate(values[:, order], axis=1)
    regret = (values.max(axis=1, keepdims=True) - best_of_first).mean(axis=0)
    num_earlier = sum(bool(set(names) & set(r.checkpoints)) for r in predictor.records)
    notes += _notes(predictor, pool, is_level_known, num_earlier)
    return Prediction(
        tuple(rows),
        tuple(map(float, regret)),
        is_level_known,
        relations.num_tasks,
        num_earlier,
        tuple(notes),
    )


def widening(n: int) -> float:
    """Return the factor of intervals of values standardized within n checkpoints.

    Mean and standard deviation of the scores come from the same few checkpoints. A
    standardized normal value then has a t distribution with n - 1 degrees of freedom,
    which is sqrt(n / (n - 3)) as wide as the centered normal one. For n < 6, where this
    grows without limit, the factor is that of n = 6.
    """
    n = max(n, 6)
    return math.sqrt(n / (n - 3))


def share_of_first(values: np.ndarray, k: int) -> np.ndarray:
    """Return how often each column is among the k highest of its row, float64 [n]."""
    n = values.shape[1]
    if k >= n:
        return np.ones(n)
    first = np.argpartition(-values, k - 1, axis=1)[:, :k]
    return np.bincount(first.ravel(), minlength=n) / len(values)


def expected_gains(values: np.ndarray, known: Sequence[int]) -> np.ndarray:
    """Return by how much each column exceeds the best known column on average.

    This is the expected improvement of Bayesian optimization (Jones et al. 1998,
    equation 15) over draws of the posterior.

    Args:
      values: float64 [S, n], draws of the accuracies.
      known: Columns that were measured, one or more.

    Returns:
      float64 [n], at least 0.
    """
    best = values[:, known].max(axis=1, keepdims=True)
    gains = np.maximum(values - best, 0).mean(axis=0)
    # With several, the noise of test images can put the order of two in doubt.
    gains[known] = 0.0
    return gains


def _notes(
    predictor: Predictor,
    pool: Sequence[Candidate],
    is_level_known: bool,
    num_earlier: int,
) -> list[str]:
    """Return warnings about the limits of a prediction."""
    notes = []
    if not is_level_known:
        usable = [p for p in PROBES if p in predictor.relations.levels]
        compute = f", or compute the measure {' or '.join(usable)}" if usable else ""
        notes.append(
            "The level of the task is unknown, so predictions are ranks only. "
            f"Fine-tune one checkpoint{compute} to predict accuracies."
        )
    inputs = inputs_of(pool)
    if not num_earlier:
        notes.append(
            "No earlier result of these checkpoints is recorded: the order rests on "
            "measures and properties only."
        )
    elif num_earlier == 1:
        notes.append(
            "These checkpoints have results on one earlier task only, which may have "
            "little in common with this one."
        )
    unused = [m for m in inputs if pair(m, ACCURACY) not in predictor.relations.pairs]
    if unused:
        notes.append(
            f"Not used, because no recorded task has them: {', '.join(unused)}."
        )
    if len(unused) == len(inputs) and not num_earlier:
        notes.append("Nothing usable is known, so all checkpoints are predicted equal.")
    if len(pool) < _FEW:
        notes.append(
            f"The pool has {len(pool)} checkpoints. Scores are standardized within the "
            "pool, so with so few their differences count as large."
        )
    recorded = {name for record in predictor.records for name in record.checkpoints}
    return notes + similar_names([c.name for c in pool], recorded)
