"""SFDA (Shao et al. 2022, arXiv 2207.03036): self-challenging Fisher discriminant.

N images, D dimensions, C classes with means g_c and frequencies pi_c; S_W = W / N. A
linear discriminant with the shrunk within-class scatter

    S = (1 - a) S_W + a tr(S_W) / D I,   a = max(exp(-5 l), 1e-10)      (section 4.2)

where l is the largest eigenvalue of S_W, has the posteriors p_i = softmax_c(x'S^-1 g_c
- 1/2 g_c'S^-1 g_c + log pi_c). The product of all eigenvectors is S^-1, so no
decomposition is needed. ConfMix then makes the classes harder to separate,

    x_i <- q_i x_i + (1 - q_i) o_y,   q_i = softmax(p_i)_y               (equation 9)

where o_y is the mean of the other classes' means. SFDA is the mean posterior of the
true class under a second discriminant with the same a.

Cost: twice 2 N D^2 + 2 N D C + O(D^3) FLOP. Range: (0, 1). Higher is better. As in
published code, l comes from three steps of power iteration, and the posterior is
averaged without a logarithm.
"""

from __future__ import annotations

import numpy as np

from rankckpt_jax.measures import regimes
from rankckpt_jax.measures.registry import Evidence, Inputs, Result, register
from rankckpt_jax.measures.statistics import (
    discriminant,
    remappings,
    scaling,
    symmetric,
)
from rankckpt_jax.measures.statistics.class_statistics import Statistics

_POWER_STEPS = 3
_LEAST_SHRINKAGE = 1e-10
_MOST_SHRINKAGE = 0.5
"""Above it the discriminant is mostly one of class means, whatever the scatter is."""


@register(
    "sfda",
    cost="N D^2 + D^3",
    evidence=Evidence(0.31, 11),
    bounds=(0.0, 1.0),
    check=remappings.check("sfda"),
    regimes=(regimes.INTERPOLATION, regimes.FEW_IMAGES),
)
def sfda(inputs: Inputs, remap: str = "none") -> Result:
    """Return SFDA of features [N, D] and labels [N].

    Args:
      inputs: Features [N, D] and labels [N].
      remap: "ped" or "sa" moves the classes first; see `remappings`.
    """
    statistics, num_classes = inputs.statistics, inputs.num_classes
    statistics = remappings.apply(statistics, remap)
    labels = statistics.labels
    within = statistics.within / statistics.num_images
    shrinkage = max(np.exp(-5 * _largest_eigenvalue(within)), _LEAST_SHRINKAGE)
    x = statistics.centered
    first = discriminant.true_class(x, labels, *_discriminant(statistics, shrinkage))
    means = statistics.class_means + statistics.rest
    others = (means.sum(axis=0) - means) / (num_classes - 1)
    keep = first.softened[:, None].astype(x.dtype)
    mixed = keep * x + (1 - keep) * others.astype(x.dtype)[labels]
    second = Statistics(mixed, labels, num_classes)
    result = discriminant.true_class(
        second.centered, labels, *_discriminant(second, shrinkage)
    )
    # Rounding can raise a mean of posteriors slightly above 1.
    score = min(float(result.posterior.mean()), 1.0)
    warning = scaling.warn_if(shrinkage > _MOST_SHRINKAGE, "the shrinkage")
    return Result(score, {"shrinkage": float(shrinkage)}, warning)


def _discriminant(
    statistics: Statistics, shrinkage: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return weights [C, D] and offsets [C] for the features `statistics.centered`."""
    count = statistics.num_images
    within = (1 - shrinkage) * statistics.within / count
    size = len(within)
    ridge = shrinkage * np.trace(statistics.within) / count / size
    # W is a difference from T. If each class has one image, it is rounding error of T.
    rounding = 8 * np.finfo(float).eps * np.trace(statistics.scatter) / count
    # The last minimum keeps the matrix invertible for constant features.
    least = max(rounding, np.finfo(float).tiny ** 0.5)
    within.flat[:: size + 1] += max(ridge, least)
    means = statistics.class_means + statistics.rest
    weights = symmetric.solve(within, means.T).T
    offsets = np.log(statistics.sizes / count) - np.sum(weights * means, axis=1) / 2
    return weights, offsets


def _largest_eigenvalue(matrix: np.ndarray) -> float:
    """Approximate the eigenvalue with the three power iterations of published code."""
    x = matrix.sum(axis=1)
    y = x
    for _ in range(_POWER_STEPS):
        y = _unit(matrix @ x)
        x = _unit(matrix @ y)
    return float(x @ matrix @ y)


def _unit(vector: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vector)
    return vector / length if length > 0 else vector
