"""NCTI (Wang et al. 2023, ICCV): how close the features are to neural collapse.

N images, C classes, X [N, d] the first 64 principal components of the features. A
linear discriminant of X is computed with the within-class scatter S_W / N shrunk by

    a = exp(-sum of the 32 largest variances)     (not shrunk if a < 1e-10)

It gives C - 1 directions, scaled to unit within-class scatter, and posteriors P [N, C].
Three terms measure the three properties of neural collapse:

    seli   nuclear norm of the centered X along the directions     increases
    ncc    mean posterior P[i, y_i] of the true class              increases
    vc     log sum_c nuclear norm of the rows of P of class c      decreases

and NCTI = seli' + ncc' - vc', where ' rescales linearly to [0, 1] over the checkpoints
of a pool. The score of a single checkpoint is seli + ncc - vc and cannot be compared
with scores from another pool.

Cost: 2 N D^2 + O(D^3) FLOP, shared, and N C min(n_c, C). Range: [-1, 2] in a pool.
Higher is better. The definition follows the authors' code, which uses scikit-learn's
discriminant analysis. Without shrinkage, scikit-learn divided by N - C up to version
1.8 and divides by N now, as this implementation does; the factor is common to a pool.
The term `vc` is not monotone: it is also low if the classes are not separated at all.
Published ports keep 16 components.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import scipy.linalg
import scipy.special

from rankckpt_jax.errors import InputError
from rankckpt_jax.measures.registry import (
    UNIT_SCALE,
    Evidence,
    Inputs,
    Result,
    register,
)
from rankckpt_jax.measures.statistics import scaling, symmetric

_DIMENSIONS = 64
_SUMMED = 32
_LEAST_SHRINKAGE = 1e-10
_MOST_SHRINKAGE = 1 - 1e-6
"""Above, the shrunk scatter has no digits of the scatter left."""
_SIGNS = {"seli": 1, "ncc": 1, "vc": -1}


def combine(pool: Sequence[Mapping[str, float]]) -> list[float]:
    """Return the scores of a pool's checkpoints from the terms of each."""
    parts = [
        sign * scaling.min_max([terms[name] for terms in pool])
        for name, sign in _SIGNS.items()
    ]
    return np.sum(parts, axis=0).tolist()


@register(
    "ncti",
    cost="N D^2 + D^3",
    evidence=Evidence(0.65, 11),
    combine=combine,
    tolerance=UNIT_SCALE,
)
def ncti(inputs: Inputs) -> Result:
    """Return NCTI's three terms, with the shrinkage in its details.

    Raises:
      InputError: All images of each class are equal.
    """
    statistics = inputs.statistics
    count, sizes = statistics.num_images, statistics.sizes
    values = statistics.spectrum[0][::-1][:_DIMENSIONS]
    kept = min(len(values), statistics.rank)
    vectors = statistics.spectrum[1][:, ::-1][:, :kept]
    variances = values[:kept] / count
    means = statistics.class_means @ vectors
    between = (sizes[:, None] * means).T @ means / count
    within = np.diag(variances) - between
    precision = max(statistics.features.shape) * np.finfo(float).eps
    if not kept or np.trace(within) <= precision * np.sum(variances):
        raise InputError(
            "ncti needs a class with images that differ",
            fix="check for constant features and for classes with a single image",
        )
    explained = np.sum(values[:_SUMMED]) / (count - 1)
    shrinkage = max(float(np.exp(-explained)), _LEAST_SHRINKAGE)
    if shrinkage > _LEAST_SHRINKAGE:
        # The trace is averaged over all kept dimensions, even constant ones.
        width = min(_DIMENSIONS, *statistics.features.shape)
        within = _shrunk(within, shrinkage, width)
        between = _shrunk(np.diag(variances), shrinkage, width) - within
    scatters, whitening = symmetric.eigh(within)
    kept_within = scatters > precision * scatters[-1]
    whitening = whitening[:, kept_within] / np.sqrt(scatters[kept_within])
    _, rotation = symmetric.eigh(whitening.T @ between @ whitening)
    directions = (whitening @ rotation[:, ::-1])[:, : len(sizes) - 1]
    spread, _ = symmetric.eigh(directions.T @ (values[:kept, None] * directions))
    # whitening whitening' is the inverse of the within-class scatter.
    weights = (means @ whitening) @ whitening.T
    offsets = np.log(sizes / count) - np.sum(means * weights, axis=1) / 2
    points = statistics.principal(kept)
    truth = nuclear = 0.0
    # Threads would wait for each other longer than these small products take.
    with symmetric.one_blas_thread():
        for label, group in enumerate(statistics.groups):
            joint = points[group] @ weights.T + offsets
            posterior = scipy.special.softmax(joint, axis=1)
            truth += float(posterior[:, label].sum())
            nuclear += float(scipy.linalg.svdvals(posterior).sum())
    terms = {
        "seli": float(np.sum(np.sqrt(np.maximum(spread, 0)))),
        "ncc": truth / count,
        "vc": float(np.log(nuclear)),
    }
    score = sum(sign * terms[name] for name, sign in _SIGNS.items())
    warning = scaling.warn_if(shrinkage > _MOST_SHRINKAGE, "the shrinkage")
    return Result(score, {"terms": terms, "shrinkage": shrinkage}, warning)


def _shrunk(scatter: np.ndarray, amount: float, dimensions: int) -> np.ndarray:
    """Return (1 - a) S + a tr(S) / d I."""
    scale = np.trace(scatter) / dimensions
    return (1 - amount) * scatter + amount * scale * np.eye(len(scatter))
