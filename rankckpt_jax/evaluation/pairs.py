"""Kendall's tau over some of the pairs of checkpoints: those that are comparable."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rankckpt_jax.errors import InputError
from rankckpt_jax.evaluation import batch
from rankckpt_jax.evaluation.intervals import (
    UNDEFINED,
    Families,
    Interval,
    family_codes,
    jackknife,
)
from rankckpt_jax.evaluation.scores import Values, align

MIN_GROUP = 4
"""Groups of fewer checkpoints have no tau of their own, only a part in the pooled one.
"""


class ResolvableKendall(NamedTuple):
    """Kendall's tau over pairs whose accuracies differ beyond the noise of the test.

    Attributes:
      kendall: Kendall's tau-b over these pairs; NaN if there are none.
      num_pairs: Number of these pairs.
      num_all: Number of all pairs.
    """

    kendall: float
    num_pairs: int
    num_all: int


def resolvable_kendall(
    scores: Values, accuracies: Values, num_test: int
) -> ResolvableKendall:
    """Return Kendall's tau over the pairs that m test images can resolve.

    These are the pairs with

        |a_i - a_j| > 1.96 sqrt(2 a (1 - a) / m),  a = (a_i + a_j) / 2,

    a two-sided test at 5 % of two independent shares. Both networks see the same
    images, so fewer images would suffice (McNemar, 1947), and this is conservative.
    If all pairs are resolvable, the result is tau-b.

    Args:
      scores: [n], as for `score_ranking`.
      accuracies: [n] accuracies as fractions in [0, 1].
      num_test: Number of test images, m.

    Raises:
      InputError: As for `score_ranking`; an accuracy is not a fraction; m < 1.
    """
    s, a = align(scores, accuracies)
    outside = a[(a < 0) | (a > 1)]
    if len(outside):
        raise InputError(
            "Accuracies are not fractions",
            expected="values in [0, 1]",
            found=str(outside[0]),
            fix="divide percentages by 100",
        )
    if num_test < 1:
        raise InputError(
            "Invalid number of test images", expected=">= 1", found=str(num_test)
        )
    i, j = np.triu_indices(len(s), 1)
    mean = (a[i] + a[j]) / 2
    noise = 1.96 * np.sqrt(2 * mean * (1 - mean) / num_test)
    known = np.abs(a[i] - a[j]) > noise
    signs = np.sign(s[i] - s[j])[known] * np.sign(a[i] - a[j])[known]
    untied = np.count_nonzero(signs)
    # No accuracies tie in these pairs, so tau-b divides by this root.
    tau = float(signs.sum()) / math.sqrt(untied * len(signs)) if untied else math.nan
    return ResolvableKendall(tau, len(signs), len(known))


def pooled_kendall(
    scores: Sequence[Values] | Mapping[Any, Values],
    accuracies: Sequence[Values] | Mapping[Any, Values],
) -> float:
    """Return tau pooled over the pairs within tasks, or within groups.

        sum_t (P_t - Q_t) / sum_t pairs_t

    P_t pairs of task t have the same order by score and accuracy, Q_t opposite orders.
    Pairs with equal accuracies do not count. Pairs with equal scores count in pairs_t
    only, as in Somers' D. No scores of different tasks are compared (Chaves et al.,
    "Back to the Basics", arXiv:2405.20420). A task of many checkpoints weighs more than
    in a mean of taus.

    Args:
      scores: The scores of each task; each as for `score_ranking`.
      accuracies: Those of the same tasks: a list in the same order, or a mapping with
        the same keys.

    Returns:
      A value in [-1, 1]; NaN without pairs.

    Raises:
      InputError: As for `score_ranking`; or the tasks differ.
    """
    if isinstance(scores, Mapping) and isinstance(accuracies, Mapping):
        if scores.keys() != accuracies.keys():
            raise InputError(
                "Scores and accuracies are of different tasks",
                expected="the same tasks in both",
                found=f"only in one: {sorted(scores.keys() ^ accuracies.keys())}",
            )
        accuracies = [accuracies[task] for task in scores]
        scores = list(scores.values())
    counts = [_count(*align(s, a)) for s, a in zip(scores, accuracies, strict=True)]
    pairs = sum(n for _, n in counts)
    return sum(agree for agree, _ in counts) / pairs if pairs else math.nan


@dataclasses.dataclass(frozen=True)
class GroupKendall:
    """Kendall's tau within groups of checkpoints.

    Attributes:
      by_group: For each group of at least `MIN_GROUP` checkpoints, their number and
        Kendall's tau-b.
      pooled: Tau over the pairs within all groups; see `pooled_kendall`.
      num_pairs: Number of pairs within groups whose accuracies differ.
      interval: 95 % jackknife interval of `pooled`; see `within_groups`.
    """

    by_group: Mapping[Hashable, tuple[int, float]]
    pooled: float
    num_pairs: int
    interval: Interval


def within_groups(
    scores: Values,
    accuracies: Values,
    groups: Families,
    families: Families | None = None,
) -> GroupKendall:
    """Return Kendall's tau within groups, such as families or networks of equal size.

    A measure that only tells large networks from small ones has no agreement within
    `size_groups`. The interval of the pooled tau is a jackknife that leaves out whole
    families, or single checkpoints if they are not given; see `intervals.jackknife`.

    Args:
      scores: [n], as for `score_ranking`.
      accuracies: [n], as for `score_ranking`.
      groups: [n], the group of each checkpoint, or a mapping from its name.
      families: [n], the family of each checkpoint, or a mapping from its name.

    Raises:
      InputError: As for `score_ranking`; or a checkpoint has no group or family.
    """
    s, a = align(scores, accuracies)
    codes, labels = family_codes(scores, groups)
    units = np.arange(len(a))
    if families is not None:
        units, _ = family_codes(scores, families)
    by_group = {}
    for code, label in enumerate(labels):
        inside = codes == code
        if inside.sum() >= MIN_GROUP:
            tau = float(batch.kendall(s[inside][None], a[inside][None])[0])
            by_group[label] = int(inside.sum()), tau

    def count(kept: np.ndarray) -> tuple[float, int]:
        parts = [kept[codes[kept] == code] for code in range(len(labels))]
        counts = [_count(s[part], a[part]) for part in parts]
        return sum(agree for agree, _ in counts), sum(n for _, n in counts)

    def pooled(kept: np.ndarray) -> float:
        agree, pairs = count(kept)
        return agree / pairs if pairs else math.nan

    everything = np.arange(len(a))
    _, num_pairs = count(everything)
    interval = jackknife(pooled, units) if num_pairs else UNDEFINED
    return GroupKendall(by_group, pooled(everything), num_pairs, interval)


def size_groups(sizes: Mapping[str, float], num_groups: int = 3) -> dict[str, int]:
    """Return groups of checkpoints of similar size, from 0 for the smallest.

    The groups are tertiles by default, of sizes that differ by at most one checkpoint.
    Checkpoints of equal size are in one group, so groups may differ more.

    Args:
      sizes: The number of parameters of each checkpoint.
      num_groups: Number of groups.
    """
    # Imported here for start-up time.
    from scipy.stats import rankdata

    ranks = rankdata(list(sizes.values()), method="min") - 1
    return {
        name: int(rank * num_groups / len(sizes))
        for name, rank in zip(sizes, ranks, strict=True)
    }


def _count(s: np.ndarray, a: np.ndarray) -> tuple[float, int]:
    """Return P - Q, and the number of pairs with different accuracies."""
    i, j = np.triu_indices(len(s), 1)
    signs = np.sign(a[i] - a[j])
    return float(np.sign(s[i] - s[j]) @ signs), int(np.count_nonzero(signs))
