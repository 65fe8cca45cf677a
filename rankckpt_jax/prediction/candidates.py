"""Candidates: what is known of the checkpoints of a task before fine-tuning them."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from rankckpt_jax.errors import InputError, some
from rankckpt_jax.evaluation.table import STATICS, Table, TaskTable
from rankckpt_jax.evaluation.table_lines import rename


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A checkpoint of the task that is predicted.

    Attributes:
      name: Its name, as in the tables of earlier tasks.
      family: Checkpoints of one family are relatives; may be empty.
      statics: Values of some of `evaluation.STATICS`.
      scores: Scores of measures on the task; higher means better transfer.
      spreads: Standard deviations of some of the scores.
    """

    name: str
    family: str = ""
    statics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)
    spreads: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Early:
    """An accuracy after the first part of a fine-tuning.

    Attributes:
      accuracy: In [0, 1], on held-out images.
      num_images: Number of these images.
    """

    accuracy: float
    num_images: int


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """The accuracies of checkpoints on one earlier task.

    Attributes:
      task: Its name.
      checkpoints: Names of the checkpoints, n.
      families: The family of each, n; may be empty.
      values: float64 [n], logits of the accuracies, divided by the task's scale. Their
        level is arbitrary.
    """

    task: str
    checkpoints: tuple[str, ...]
    families: tuple[str, ...]
    values: np.ndarray


def candidates(table: Table, task: TaskTable) -> list[Candidate]:
    """Return the checkpoints of a task of a table, without their accuracies."""

    def known(values: Mapping[str, np.ndarray], i: int) -> dict[str, float]:
        return {m: float(x[i]) for m, x in values.items() if np.isfinite(x[i])}

    return [
        Candidate(
            name,
            table.checkpoints[name].family,
            table.checkpoints[name].statics,
            known(task.scores, i),
            known(task.spreads, i),
        )
        for i, name in enumerate(task.checkpoints)
    ]


def move_statics(candidate: Candidate) -> Candidate:
    """Return a candidate whose static properties are not among its scores.

    The package has measures of these names, such as `num_parameters`.
    """
    statics, scores = dict(candidate.statics), {}
    for name, score in candidate.scores.items():
        if (static := rename(name)) in STATICS:
            statics.setdefault(static, score)
        else:
            scores[name] = score
    return dataclasses.replace(candidate, statics=statics, scores=scores)


def check_candidates(pool: Sequence[Candidate]) -> None:
    """Refuse a pool that cannot be predicted.

    Raises:
      InputError: There are fewer than two candidates, or two have the same name.
    """
    names = [candidate.name for candidate in pool]
    if len(names) < 2:
        raise InputError(
            "Nothing to predict: the pool has fewer than two checkpoints",
            expected="at least two checkpoints",
            found=some(names) or "none",
            fix="add checkpoints; the accuracy of one alone is found by fine-tuning it",
        )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(
            "Two checkpoints of the pool have the same name",
            expected="a name of its own for each checkpoint",
            found=some(twice),
            fix="rename one of them, since earlier results are found by name",
        )


def check_measured(measured: Mapping[str, float], pool: Sequence[Candidate]) -> None:
    """Refuse measured accuracies that are of no candidate or not fractions of 1."""
    unknown = sorted(measured.keys() - {candidate.name for candidate in pool})
    if unknown:
        raise InputError(
            "Measured accuracies are of checkpoints outside the pool",
            where="measured",
            expected="names of the pool",
            found=some(unknown),
        )
    check_fractions(measured, "measured")


def check_fractions(accuracies: Mapping[str, float], where: str) -> None:
    """Refuse accuracies that are not fractions of 1, such as percentages."""
    for name, value in accuracies.items():
        if not 0 <= value <= 1:
            is_percent = math.isfinite(value) and 1 < value <= 100
            raise InputError(
                "An accuracy is out of range",
                where=where,
                expected="a fraction from 0 to 1",
                found=f"{value:g} for {name!r}",
                fix="divide percentages by 100" if is_percent else "",
            )


def inputs_of(pool: Iterable[Candidate]) -> list[str]:
    """Return the names of all inputs that at least one candidate has."""
    pool = list(pool)
    known = [key for key in STATICS if any(key in c.statics for c in pool)]
    return [*known, *dict.fromkeys(m for c in pool for m in c.scores)]


def fill_families(
    pool: Iterable[Candidate], records: Iterable[Record]
) -> tuple[list[Candidate], list[str]]:
    """Return candidates with the recorded families, and notes on contradictions.

    A candidate without a family has that of its record. If both have one and they
    differ, that of the candidate counts.
    """
    recorded = {
        name: family
        for record in records
        for name, family in zip(record.checkpoints, record.families, strict=True)
        if family
    }
    result, notes = [], []
    for candidate in pool:
        family = recorded.get(candidate.name, "")
        if candidate.family and family and family != candidate.family:
            notes.append(
                f"{candidate.name!r} has the family {candidate.family!r} here and "
                f"{family!r} in earlier results: rename one if they are different."
            )
        result.append(
            candidate
            if candidate.family
            else dataclasses.replace(candidate, family=family)
        )
    return result, notes


def similar_names(names: Iterable[str], recorded: Iterable[str]) -> list[str]:
    """Return warnings of names without a record that differ from one by a suffix.

    Example:
      >>> similar_names(["resnet50", "vit"], ["resnet50.a1_in1k"])
      ["'resnet50' has no earlier results, 'resnet50.a1_in1k' has. They count as \
different checkpoints: rename one if they are the same."]

    Args:
      names: Names of the candidates.
      recorded: Names of checkpoints with earlier results.
    """
    recorded = sorted(set(recorded))
    result = []
    for name in names:
        if name in recorded:
            continue
        near = [other for other in recorded if _differ_by_suffix(name, other)]
        if near:
            listed = some([repr(other) for other in near], 3)
            result.append(
                f"{name!r} has no earlier results, {listed} "
                f"{'has' if len(near) == 1 else 'have'}. They count as different "
                "checkpoints: rename one if they are the same."
            )
    return result


def _differ_by_suffix(one: str, other: str) -> bool:
    """Whether one name continues the other after a separator."""
    short, long = sorted((one.lower(), other.lower()), key=len)
    rest = long[len(short) :]
    # "resnet50" and "resnet501" are different networks.
    return long.startswith(short) and (
        not rest or re.match(r"[^a-z0-9]", rest) is not None
    )
