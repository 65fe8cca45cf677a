"""Correlations of accuracies, inputs and relatives on recorded tasks.

They are kept as sums that add up over tables, so that published tables and the tasks of
a user are combined by adding them, and few numbers are kept of many tables.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from rankckpt_jax.evaluation.table import STATICS, Table, TaskTable
from rankckpt_jax.evaluation.table_lines import rename
from rankckpt_jax.prediction import standardize as st

ACCURACY, ELSEWHERE = "accuracy", "accuracy_elsewhere"
"""The accuracy on a task, and the mean of a checkpoint over all other tasks."""

PROBES = ("linear", "lda_accuracy", "knn")
"""Measures that are held-out accuracies, from which the level of a task follows."""

SAME, OTHER = "relatives, same task", "relatives, other task"
OWN_SAME, OWN_OTHER = "own, same task", "own, other task"

Pair = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Sum:
    """A sum of values with weights, and the sum of their squares."""

    weight: float = 0.0
    total: float = 0.0
    squares: float = 0.0

    def add(self, value: float, weight: float = 1.0) -> Sum:
        """Return the sum with one more value."""
        return self + Sum(weight, weight * value, weight * value * value)

    def __add__(self, other: Sum) -> Sum:
        """Return the sum over both."""
        return Sum(
            self.weight + other.weight,
            self.total + other.total,
            self.squares + other.squares,
        )

    def shrunk_mean(self, target: float, strength: float) -> float:
        """Return the mean, drawn to `target` as if it were `strength` more values."""
        return (self.total + strength * target) / (self.weight + strength)

    def predictive(
        self, center: float, deviation: float, strength: float
    ) -> tuple[float, float]:
        """Return mean and standard deviation of the next value.

        The values are normal. Mean and variance are those of the recorded ones and of
        `strength` more, with mean `center` and standard deviation `deviation`.
        """
        mean = self.shrunk_mean(center, strength)
        around = self.squares - 2 * mean * self.total + self.weight * mean * mean
        around += strength * (deviation**2 + (center - mean) ** 2)
        weight = self.weight + strength
        return mean, math.sqrt(max(around, 0.0) / weight * (1 + 1 / weight))


@dataclasses.dataclass(frozen=True)
class Relations:
    """Sums over recorded tasks; `fit` makes them of tables.

    Attributes:
      pairs: By pair of variables in alphabetical order, their correlation within a
        task. A variable is `ACCURACY`, `ELSEWHERE`, a key of `STATICS` or a measure.
        Relatives count as one, and the weight is the number of families minus one.
      relatives: Mean products of the standardized accuracies of two relatives, on the
        same task (`SAME`) and on two tasks (`OTHER`), and those of a checkpoint that
        has relatives with itself. Each family counts once.
      scale: Logarithm of the standard deviation of a task's accuracies, as logits.
      levels: By probe, mean accuracy of the pool minus mean of the probe, as logits.
      num_tasks: Number of recorded tasks.
    """

    pairs: Mapping[Pair, Sum] = dataclasses.field(default_factory=dict)
    relatives: Mapping[str, Sum] = dataclasses.field(default_factory=dict)
    scale: Sum = Sum()
    levels: Mapping[str, Sum] = dataclasses.field(default_factory=dict)
    num_tasks: int = 0

    def __add__(self, other: Relations) -> Relations:
        """Return the relations of both sets of tasks."""
        return Relations(
            _add(self.pairs, other.pairs),
            _add(self.relatives, other.relatives),
            self.scale + other.scale,
            _add(self.levels, other.levels),
            self.num_tasks + other.num_tasks,
        )


def _add(one: Mapping, other: Mapping) -> dict:
    return {
        key: one.get(key, Sum()) + other.get(key, Sum())
        for key in dict.fromkeys([*one, *other])
    }


def relations_of(table: Table) -> Relations:
    """Return the sums over the tasks of a table."""
    names = list(table.checkpoints)
    place = {name: i for i, name in enumerate(names)}
    inputs = [*STATICS, *(m for m in table.measures if rename(m) not in STATICS)]
    count = len(table.tasks)
    values = np.full((count, 1 + len(inputs), len(names)), np.nan)
    weights = np.zeros((count, len(names)))
    scale = Sum()
    levels: dict[str, Sum] = collections.defaultdict(Sum)
    for t, task in enumerate(table.tasks):
        at = [place[name] for name in task.checkpoints]
        families = [table.checkpoints[n].family or f"\0{n}" for n in task.checkpoints]
        sizes = collections.Counter(families)
        weights[t, at] = [1 / sizes[family] for family in families]
        accuracies = st.logit(task.accuracies, task.num_test)
        values[t, 0, at], spread = st.standardize(accuracies)
        if np.isfinite(spread):
            scale = scale.add(math.log(spread))
        for j, key in enumerate(inputs, 1):
            values[t, j, at], _ = st.standardize(raw_input(table, task, key))
        for probe in PROBES:
            difference = level_above_probe(accuracies, task.scores.get(probe))
            if difference is not None:
                levels[probe] = levels[probe].add(difference)
    pairs = _pairs(values, weights, [ACCURACY, *inputs])
    families = [c.family or f"\0{c.name}" for c in table.checkpoints.values()]
    relatives = _relatives(values[:, 0], families)
    return Relations(pairs, relatives, scale, dict(levels), count)


def raw_input(table: Table, task: TaskTable, key: str) -> np.ndarray:
    """Return an input of a task before it is standardized, float64 [n]."""
    if key in STATICS:
        return transform_static(key, table.statics(task, key))
    return np.asarray(task.scores[key], np.float64)


def transform_static(key: str, values: np.ndarray) -> np.ndarray:
    """Return the logarithm of sizes, which differ by factors; others unchanged."""
    if key == "source_accuracy":
        return values
    return np.log(np.where(values > 0, values, np.nan))


def level_above_probe(accuracies: np.ndarray, probe: np.ndarray | None) -> float | None:
    """Return the mean accuracy [n] minus the mean of a probe [n], both as logits."""
    if probe is None:
        return None
    known = np.isfinite(probe) & (probe > 0) & (probe <= 1)
    if 2 * known.sum() < len(probe):
        return None
    return float(np.mean(accuracies[known] - st.logit(probe[known])))


def _relatives(values: np.ndarray, families: Sequence[str]) -> dict[str, Sum]:
    """Return the mean products of the accuracies [T, C] of relatives.

    Standardized values of n checkpoints have the mean product -1 / (n - 1) if they are
    independent. So the mean over pairs without a relative is subtracted. The weight is
    the number of families.
    """
    codes = np.unique(families, return_inverse=True)[1]
    same = codes[:, None] == codes
    result = dict.fromkeys((SAME, OTHER, OWN_SAME, OWN_OTHER), Sum())
    for t, s in itertools.product(range(len(values)), repeat=2):
        known = np.isfinite(values[t]) & np.isfinite(values[s])
        products = np.outer(values[t][known], values[s][known])
        inside = same[np.ix_(known, known)]
        outside = products[~inside]
        sizes = inside.sum(axis=1)
        if not (sizes > 1).any() or not outside.size:
            continue
        products = products - outside.mean()
        # Each family with relatives counts once.
        own = np.diag((sizes > 1) / sizes)
        weights = inside * (sizes > 1) / (sizes * np.maximum(sizes - 1, 1))
        np.fill_diagonal(weights, 0.0)
        total = float(own.sum())
        # Together, the other tasks have the weight of one.
        share = total if t == s else total / (len(values) - 1)
        for key, weight in zip(
            (SAME, OWN_SAME) if t == s else (OTHER, OWN_OTHER),
            (weights, own),
            strict=True,
        ):
            result[key] = result[key].add(
                float((weight * products).sum()) / total, share
            )
    return result


def _pairs(
    values: np.ndarray, weights: np.ndarray, variables: Sequence[str]
) -> dict[Pair, Sum]:
    """Return the correlations of all pairs of variables.

    Args:
      values: float64 [T, variables, C], standardized within a task; NaN if unknown.
      weights: float64 [T, C], 1 / the number of relatives in the task.
      variables: Their names; the first is `ACCURACY`.
    """
    pairs: dict[Pair, Sum] = collections.defaultdict(Sum)

    for t, rows in enumerate(values):
        r, weight = _correlate(rows, rows, weights[t])
        for a, b in itertools.combinations(range(len(variables)), 2):
            if weight[a, b]:
                key = pair(variables[a], variables[b])
                pairs[key] += Sum(float(weight[a, b]), float(weight[a, b] * r[a, b]))
        others = np.arange(len(values)) != t
        # Together, the other tasks have the weight of one.
        r, weight = _correlate(rows, values[others, 0], weights[t])
        weight = weight / max(others.sum(), 1)
        for name, of_tasks, rs in zip(variables, weight, r, strict=True):
            if of_tasks.any():
                total = float((of_tasks * rs).sum())
                pairs[pair(name, ELSEWHERE)] += Sum(float(of_tasks.sum()), total)
    return dict(pairs)


def pair(one: str, other: str) -> Pair:
    """Return the two names in alphabetical order."""
    return (one, other) if one < other else (other, one)


def _correlate(
    one: np.ndarray, other: np.ndarray, w: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return weighted correlations of rows [a, C] and [b, C], and their weights [a, b].

    Each is over the columns that both rows have. The weight is sum(w) - 1.
    """
    known_one, known_other = np.isfinite(one), np.isfinite(other)
    x, y = np.nan_to_num(one), np.nan_to_num(other)
    total = (w * known_one) @ known_other.T
    safe = np.where(total > 0, total, 1.0)
    mean_x, mean_y = (w * x) @ known_other.T / safe, known_one @ (w * y).T / safe
    products = (w * x) @ y.T / safe - mean_x * mean_y
    squares_x = (w * x * x) @ known_other.T / safe - mean_x**2
    squares_y = known_one @ (w * y * y).T / safe - mean_y**2
    known = (squares_x > 1e-12) & (squares_y > 1e-12) & (total > 1 + 1e-9)
    scale = np.sqrt(np.where(known, squares_x * squares_y, 1.0))
    return np.where(known, products / scale, 0.0), np.where(known, total - 1, 0.0)


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """The joint normal distribution of accuracy, elsewhere and inputs of a checkpoint.

    Attributes:
      inputs: Names of the inputs.
      covariance: float64 [2 + p, 2 + p] of accuracy, elsewhere and the inputs. The
        accuracy and the inputs have variance 1. Elsewhere has the variance that the
        accuracies of two tasks share.
      relatives: Correlation of two relatives in what all tasks share, and in the
        deviation on one task, both in [0, 1).
    """

    inputs: tuple[str, ...]
    covariance: np.ndarray
    relatives: tuple[float, float]


def build_model(
    relations: Relations, inputs: Iterable[str], shrinkage: float, ridge: float
) -> Model:
    """Return the normal distribution with shrunk correlations.

    A correlation r that was recorded with weight N becomes (N r + K t) / (N + K), where
    K is the shrinkage. The target t is the mean over measures, among which the source
    accuracy counts, and 0 for pairs with a size. So a measure that is rarely recorded
    counts as an average measure.

    Args:
      relations: Sums over recorded tasks.
      inputs: Names of inputs. Those that were never recorded with an accuracy are left
        out, since their direction is unknown.
      shrinkage: K > 0.
      ridge: Variance of noise that is added to each input, >= 0.
    """
    sums = relations.pairs
    inputs = tuple(m for m in inputs if pair(m, ACCURACY) in sums)
    kept = [ACCURACY, ELSEWHERE, *inputs]
    targets = _targets(sums)
    raw = np.eye(len(kept))
    for a, one in enumerate(kept):
        for b, other in enumerate(kept[:a]):
            target = targets.get(tuple(sorted((_kind(one), _kind(other)))), 0.0)
            r = sums.get(pair(one, other), Sum()).shrunk_mean(target, shrinkage)
            raw[a, b] = raw[b, a] = r
    # Of accuracy and elsewhere, the covariance is the variance of elsewhere.
    shared = float(np.clip(raw[1, 0], 0.05, 0.95))
    raw[1, 0] = raw[0, 1] = shared
    scale = np.ones(len(kept))
    scale[1] = math.sqrt(shared)
    correlation = raw / np.outer(scale, scale)
    np.fill_diagonal(correlation, 1.0)
    correlation = nearest_correlation(correlation)
    covariance = correlation * np.outer(scale, scale)
    covariance[2:, 2:] += ridge * np.eye(len(inputs))
    return Model(
        inputs,
        covariance,
        correlate_relatives(relations),
    )


def correlate_relatives(relations: Relations) -> tuple[float, float]:
    """Return the correlation of relatives over all tasks and on a task.

    With p the mean products of relatives and q those of a checkpoint with itself, they
    are p_other / q_other and (p_same - p_other) / (q_same - q_other). They are drawn
    to 0.5 and 0.2, as if 20 more families had these.
    """
    p_same, p_other, q_same, q_other = (
        relations.relatives.get(key, Sum())
        for key in (SAME, OTHER, OWN_SAME, OWN_OTHER)
    )
    lasting = (p_other.total + 20 * 0.5 * 0.7) / (q_other.total + 20 * 0.7)
    of_task = p_same.total - p_other.total + 20 * 0.2 * 0.3
    of_task /= q_same.total - q_other.total + 20 * 0.3
    return min(max(lasting, 0.0), 0.95), min(max(of_task, 0.0), 0.95)


def _kind(variable: str) -> str:
    if variable in (ACCURACY, ELSEWHERE):
        return variable
    # Like a measure, a higher source accuracy promises better transfer.
    is_static = variable in STATICS and variable != "source_accuracy"
    return "static" if is_static else "measure"


def _targets(sums: Mapping[Pair, Sum]) -> dict[tuple[str, ...], float]:
    """Return the mean correlation of pairs with measures, by the kinds of the pair."""
    means: dict[tuple[str, ...], Sum] = collections.defaultdict(Sum)
    for (one, other), value in sums.items():
        kinds = tuple(sorted((_kind(one), _kind(other))))
        if "measure" in kinds and "static" not in kinds:
            means[kinds] += value
    targets = {kinds: value.total / value.weight for kinds, value in means.items()}
    return {**targets, (ACCURACY, ELSEWHERE): 0.5}


def nearest_correlation(matrix: np.ndarray, least: float = 0.02) -> np.ndarray:
    """Return a positive definite matrix with unit diagonal near a symmetric one.

    Eigenvalues below `least` are set to it, and the diagonal is rescaled to 1.
    """
    eigenvalues, vectors = np.linalg.eigh(matrix)
    if eigenvalues[0] >= least:
        return matrix
    fixed = (vectors * np.maximum(eigenvalues, least)) @ vectors.T
    scale = np.sqrt(np.diag(fixed))
    return fixed / np.outer(scale, scale)
