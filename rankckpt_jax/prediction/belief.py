"""The distribution of the accuracies of a pool before any of them is measured.

The accuracies of a pool, standardized within a task, and their means over all tasks are
jointly normal. Inputs and earlier results are observations, on which the distribution
is conditioned in closed form.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from rankckpt_jax.evaluation.table import STATICS
from rankckpt_jax.prediction import standardize as st
from rankckpt_jax.prediction.candidates import Candidate, Record
from rankckpt_jax.prediction.relations import Model, transform_static

HISTORY = "history"
"""The contribution of earlier results."""

_FLAT = 100.0
"""Variance of the unknown level of an earlier task, far above that of a checkpoint."""


@dataclasses.dataclass(frozen=True, eq=False)
class Belief:
    """A normal distribution of the standardized accuracies of a pool.

    Attributes:
      mean: float64 [n], with mean 0 over the pool.
      covariance: float64 [n, n].
      contributions: By input or `HISTORY`, float64 [n]; they add up to the mean.
    """

    mean: np.ndarray
    covariance: np.ndarray
    contributions: Mapping[str, np.ndarray]


def believe(
    model: Model, pool: Sequence[Candidate], records: Sequence[Record] = ()
) -> Belief:
    """Return the distribution of the accuracies of a pool given all that is known.

    With v_i = (accuracy, mean over all tasks) of checkpoint i and x_i its known inputs,

        E[v_i | x_i] = S_vx S_xx^-1 x_i,   S_i = S_vv - S_vx S_xx^-1 S_xv.

    Relatives share a part of S_i: with S_i of the mean and the deviation on the task,
    Cov(i, j | x) = S_i^(1/2) diag(r) S_j^(1/2), r the correlations `model.relatives`.
    The accuracy on an earlier task is its unknown level, plus the mean over all tasks,
    plus a deviation. The pool is conditioned on these, and then centered, since only
    differences within the pool matter.

    Args:
      model: The joint distribution.
      pool: n candidates.
      records: Earlier tasks.
    """
    n = len(pool)
    records = relevant(pool, records)
    families = {c.name: c.family or f"\0{c.name}" for c in pool}
    for record in records:
        for name, family in zip(record.checkpoints, record.families, strict=True):
            families.setdefault(name, family or f"\0{name}")
    place = {name: i for i, name in enumerate(families)}
    codes = np.unique(list(families.values()), return_inverse=True)[1]
    same_family = codes[:, None] == codes
    related = np.array([np.where(same_family, r, 0.0) for r in model.relatives])
    related[:, np.arange(len(codes)), np.arange(len(codes))] = 1.0
    means, roots = regress(model, pool, len(families))
    # [checkpoint, accuracy or mean over tasks] twice
    prior = np.einsum("cij,iac,jbc->iajb", related, roots, roots)
    total = {key: values[:, 0].copy() for key, values in means.items()}
    covariance = prior[:n, 0, :n, 0]
    if records:
        at = np.array([place[c] for r in records for c in r.checkpoints])
        task = np.concatenate([[t] * len(r.values) for t, r in enumerate(records)])
        z = np.concatenate([r.values - np.mean(r.values) for r in records])
        same = task[:, None] == task
        own = 1 - model.covariance[1, 1]
        noise = np.where(same, own * related[1][np.ix_(at, at)] + _FLAT, 0.0)
        observed = prior[:, 1, :, 1][np.ix_(at, at)] + noise
        cross = prior[:n, 0][:, :, 1][:, at]
        gain = np.linalg.solve(observed + 1e-9 * np.eye(len(z)), cross.T).T
        padded = np.zeros(len(families))
        for key, values in means.items():
            padded[:n] = values[:, 1]
            total[key] = total[key] - gain @ padded[at]
        total[HISTORY] = gain @ z
        covariance = covariance - gain @ cross.T
    total = {key: values - values.mean() for key, values in total.items()}
    center = np.eye(n) - 1 / n
    covariance = center @ covariance @ center
    mean = sum(total.values(), np.zeros(n))
    return Belief(mean, (covariance + covariance.T) / 2, total)


def relevant(pool: Sequence[Candidate], records: Sequence[Record]) -> list[Record]:
    """Return the records with a checkpoint of the pool or a relative of one."""
    names = {c.name for c in pool}
    families = {c.family for c in pool} - {""}
    return [
        r for r in records if names & set(r.checkpoints) or families & set(r.families)
    ]


def regress(
    model: Model, pool: Sequence[Candidate], count: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the means given the inputs, and roots of the conditional covariances.

    Args:
      model: The joint distribution.
      pool: n candidates.
      count: Number of checkpoints; those after the pool have no inputs.

    Returns:
      By input, its part of E[v_i | x_i], float64 [n, 2]; and roots of the conditional
      covariances S_i, float64 [count, 2, 2]. Their columns belong to what all tasks
      share and to the deviation on the task.
    """
    values, noise = standardized_inputs(model, pool)
    head, body = model.covariance[:2, :2], model.covariance[2:, 2:]
    cross = model.covariance[:2, 2:]
    parts = np.zeros((len(pool), 2, len(model.inputs)))
    left = np.repeat(head[None], count, axis=0)
    for i in range(len(pool)):
        known = np.flatnonzero(np.isfinite(values[i]))
        square = body[np.ix_(known, known)] + np.diag(noise[i, known])
        weights = np.linalg.solve(square, cross[:, known].T).T
        parts[i][:, known] = weights * values[i, known]
        left[i] -= weights @ cross[:, known].T
    # From (accuracy, mean) to (mean, deviation) and back.
    forth, back = (
        np.array([[0.0, 1.0], [1.0, -1.0]]),
        np.array([[1.0, 1.0], [1.0, 0.0]]),
    )
    eigenvalues, vectors = np.linalg.eigh(forth @ left @ forth.T)
    roots = vectors * np.sqrt(np.maximum(eigenvalues, 0.0))[:, None]
    roots = back @ roots @ np.swapaxes(vectors, 1, 2)
    used = np.isfinite(values).any(axis=0)
    named = zip(model.inputs, np.moveaxis(parts, 2, 0), used, strict=True)
    return {key: part for key, part, is_used in named if is_used}, roots


def standardized_inputs(
    model: Model, pool: Sequence[Candidate]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the inputs [n, p] standardized within the pool, and their noise [n, p]."""
    shape = len(pool), len(model.inputs)
    values, noise = np.full(shape, np.nan), np.zeros(shape)
    for j, key in enumerate(model.inputs):
        is_static = key in STATICS
        known = [(c.statics if is_static else c.scores).get(key, np.nan) for c in pool]
        raw = np.where(np.isfinite(known), known, np.nan)
        if is_static:
            raw = transform_static(key, raw)
        values[:, j], scale = st.standardize(raw)
        if not is_static and np.isfinite(scale):
            spreads = np.array([c.spreads.get(key, 0.0) for c in pool])
            noise[:, j] = np.square(np.nan_to_num(spreads) / scale)
    return values, noise
