"""NCTI (Wang et al. 2023, ICCV): how near the features are to neural collapse.

N images, C classes; X [N, d] the features on their first 64 principal components. A
linear discriminant of X with the within-class scatter S_W / N shrunk by

    a = exp(-sum of the 32 largest variances)     (not at all where that is below 1e-10)

gives C - 1 directions, scaled to unit scatter within classes, and posteriors P [N, C].
Three terms stand for the three signs of neural collapse:

    seli   nuclear norm of the centered X along the directions     rises
    ncc    mean posterior P[i, y_i] of the true class             rises
    vc     log sum_c nuclear norm of the rows of P of class c     falls

and NCTI = seli' + ncc' - vc', each brought to [0, 1] over the checkpoints of a pool.
Alone a checkpoint has only its terms; the score is then their sum with the same signs,
which means nothing beside another pool's.

Cost: 2 N D^2 + O(D^3), shared, and N C min(n_c, C). Range: [-1, 2] in a pool. Higher is
better. The definition is that of the authors' code. It takes scikit-learn's
discriminant analysis, whose solver without shrinkage divided by N - C until version 1.8
and divides by N now, as this does: a factor that all of a pool share. The term `vc` is
not monotone: it also falls where nothing tells classes apart. Published
ports keep 16 components.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import scipy.linalg
import scipy.special

from rankckpt_jax.errors import InputError
from rankckpt_jax.measures.registry import Inputs, Result, register
from rankckpt_jax.measures.statistics import scaling, symmetric

_DIMENSIONS = 64
_SUMMED = 32
_LEAST_SHRINKAGE = 1e-10
_SIGNS = {"seli": 1, "ncc": 1, "vc": -1}


def combine(pool: Sequence[Mapping[str, float]]) -> list[float]:
    """Scores of checkpoints from the terms of each."""
    parts = [
        sign * scaling.min_max([terms[name] for terms in pool])
        for name, sign in _SIGNS.items()
    ]
    return np.sum(parts, axis=0).tolist()


@register("ncti", combine=combine, uses_weights=True)
def ncti(inputs: Inputs) -> Result:
    """NCTI's three terms, and in its details the shrinkage.

    Raises:
      InputError: No two images of a class differ.
    """
    statistics = inputs.statistics
    count, counts = statistics.total, statistics.counts
    values = statistics.spectrum[0][::-1][:_DIMENSIONS]
    kept = min(len(values), statistics.rank)
    vectors = statistics.spectrum[1][:, ::-1][:, :kept]
    variances = values[:kept] / count
    means = statistics.class_means @ vectors
    between = (counts[:, None] * means).T @ means / count
    within = np.diag(variances) - between
    precision = max(statistics.features.shape) * np.finfo(float).eps
    if not kept or np.trace(within) <= precision * np.sum(variances):
        raise InputError("ncti needs classes with images that differ")
    explained = np.sum(values[:_SUMMED]) / (count - 1)
    shrinkage = max(float(np.exp(-explained)), _LEAST_SHRINKAGE)
    if shrinkage > _LEAST_SHRINKAGE:
        # Of as many dimensions as are kept, whether or not anything varies in them.
        width = min(_DIMENSIONS, *statistics.features.shape)
        within = _shrunk(within, shrinkage, width)
        between = _shrunk(np.diag(variances), shrinkage, width) - within
    scatters, whitening = symmetric.eigh(within)
    kept_within = scatters > precision * scatters[-1]
    whitening = whitening[:, kept_within] / np.sqrt(scatters[kept_within])
    _, turned = symmetric.eigh(whitening.T @ between @ whitening)
    directions = (whitening @ turned[:, ::-1])[:, : len(counts) - 1]
    spread, _ = symmetric.eigh(directions.T @ (values[:kept, None] * directions))
    # W W' is the inverse of the scatter within classes.
    weights = (means @ whitening) @ whitening.T
    offsets = np.log(counts / count) - np.sum(means * weights, axis=1) / 2
    points = statistics.principal(kept)
    truth = nuclear = 0.0
    for label, group in enumerate(statistics.groups):
        posterior = scipy.special.softmax(points[group] @ weights.T + offsets, axis=1)
        often = statistics.weights[group]
        truth += float(often @ posterior[:, label])
        rows = np.sqrt(often)[:, None] * posterior
        nuclear += float(scipy.linalg.svdvals(rows).sum())
    terms = {
        "seli": float(np.sum(np.sqrt(np.maximum(spread, 0)))),
        "ncc": truth / count,
        "vc": float(np.log(nuclear)),
    }
    score = sum(sign * terms[name] for name, sign in _SIGNS.items())
    return Result(score, {"terms": terms, "shrinkage": shrinkage})


def _shrunk(scatter: np.ndarray, amount: float, dimensions: int) -> np.ndarray:
    scale = np.trace(scatter) / dimensions
    return (1 - amount) * scatter + amount * scale * np.eye(len(scatter))
