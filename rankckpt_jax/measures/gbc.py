"""GBC (Pandy et al. 2022, CVPR): Bhattacharyya coefficients between Gaussian classes.

N images, C classes. Features are reduced to their first 64 principal components. With
the mean m_c and variance v_c of class c, and s = (v_a + v_b) / 2,

    B(a, b) = 1/8 sum_d (m_a - m_b)_d^2 / s_d
              + 1/2 sum_d log(s_d / sqrt(v_a,d v_b,d))          (their equation 3)
    GBC     = - sum_{a != b} exp(-B(a, b))                      (their equation 4)

`covariance="spherical"`, the paper's choice, uses the mean variance over dimensions. As
in published code, its logarithm is then counted once. Variances divide by n_c and are
at least 1e-4 in each dimension. If most are smaller, a warning says so.

Cost: 2 N D^2 + O(D^3) FLOP, shared, and 64 C^2. Range: [-C (C - 1), 0]. Higher is
better.
"""

from __future__ import annotations

import math

import numpy as np

from rankckpt_jax.errors import unknown_name
from rankckpt_jax.measures import regimes
from rankckpt_jax.measures.registry import Evidence, Inputs, Result, Tolerance, register
from rankckpt_jax.measures.statistics import scaling

COVARIANCES = ("spherical", "diagonal")

_FLOOR = 1e-4


@register(
    "gbc",
    cost="N D^2 + D^3",
    evidence=Evidence(0.37, 28),
    bounds=(-math.inf, 0.0),
    tolerance=Tolerance(absolute=1e-12),
    regimes=(regimes.SINGLE_IMAGES,),
)
def gbc(inputs: Inputs, covariance: str = "spherical", dimensions: int = 64) -> Result:
    """Return GBC on the first principal components.

    Args:
      inputs: Features [N, D] and labels [N].
      covariance: "spherical" or "diagonal".
      dimensions: Number of principal components; 0 for the features themselves.
    """
    statistics = inputs.statistics
    if covariance not in COVARIANCES:
        where = "measure_options.gbc.covariance"
        raise unknown_name("covariance", covariance, COVARIANCES, where)
    if 0 < dimensions < statistics.features.shape[1]:
        x = statistics.principal(dimensions)
    else:
        x = statistics.centered.astype(np.float64)
    counts = statistics.sizes[:, None]
    means = statistics.class_sums(x) / counts
    variances = statistics.class_sums((x - means[statistics.labels]) ** 2) / counts
    several = statistics.sizes > 1
    # Classes with one image have no variance at any scale.
    floored = several.any() and np.mean(variances[several] < _FLOOR) > 0.5
    # As in published code, the minimum applies before averaging.
    variances = np.maximum(variances, _FLOOR)
    if covariance == "spherical":
        variances = variances.mean(axis=1, keepdims=True)
    total = 0.0
    for mean, variance in zip(means, variances, strict=True):
        average = (variance + variances) / 2
        distance = np.sum((mean - means) ** 2 / average, axis=1) / 8
        logs = np.log(average) - (np.log(variance) + np.log(variances)) / 2
        total += np.sum(np.exp(-distance - logs.sum(axis=1) / 2))
    # The sum includes a = b, with coefficient 1.
    warning = scaling.warn_if(bool(floored), f"the minimum {_FLOOR:g} of variances")
    score = float(inputs.num_classes - total)
    return Result(score, {"dimensions": x.shape[1]}, warning)
