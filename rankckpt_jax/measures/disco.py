"""DISCO (Zhang et al. 2025, arXiv 2412.19085), in our own form: spectral components.

N images, F [N, D] features with mean m, singular value decomposition F - m = U S V':

    DISCO = sum_g s_g t_g / sum_g s_g

where t_g is the fraction of the images whose class has the nearest class mean among the
projections on the principal component v_g.

This form is uncertain. The abstract and the opening of the paper describe the weights
and the nearest class mean, but there is no authors' code. The paper groups components
and samples hard images; both are left out here, so that a component is a group and all
images count. Published restatements by others disagree with each other.

Cost: 2 N D^2 + 4 D^3 FLOP, shared, and N D. Range: (0, 1]. Higher is better. Images are
classified by means that contain them.
"""

from __future__ import annotations

import math

import numpy as np

from rankckpt_jax.errors import InputError
from rankckpt_jax.measures import regimes
from rankckpt_jax.measures.registry import Inputs, Regime, Result, register

_BLOCK = 4096
"""Rows that are classified at once."""

_DEVIATIONS = 2
"""Standard deviations above chance up to which a score is at chance."""


def _chance(inputs: Inputs, result: Result) -> str:
    chance = 1 / inputs.num_classes
    deviation = math.sqrt(chance * (1 - chance) / len(inputs.labels))
    if result.score > chance + _DEVIATIONS * deviation:
        return ""
    return (
        f"The score is not above that of random labels, {chance:.3g}, so it is at "
        "chance. Check the preprocessing and the image size, or use another measure."
    )


CHANCE = Regime("chance", _chance)


@register(
    "disco",
    cost="N D^2 + D^3",
    bounds=(0.0, 1.0),
    regimes=(CHANCE, regimes.FEW_IMAGES, regimes.SINGLE_IMAGES),
)
def disco(inputs: Inputs) -> Result:
    """Return DISCO of features [N, D] and labels [N].

    Raises:
      InputError: All rows of the features are equal.
    """
    statistics = inputs.statistics
    z = statistics.coordinates
    values, vectors = (a[..., ::-1][..., : z.shape[1]] for a in statistics.spectrum)
    singular = np.sqrt(values)
    if singular.sum() == 0:
        raise InputError(
            "All rows of the features are equal, so disco is not defined",
            fix="check the weights and the input range of the network",
        )
    low, high = _nearest_intervals(statistics.class_means @ vectors)
    accuracy = np.zeros(len(singular))
    for label, group in enumerate(statistics.groups):
        for start in range(0, len(group), _BLOCK):
            rows = group[start : start + _BLOCK]
            own = z[rows]
            is_nearest = (own >= low[label]) & (own <= high[label])
            accuracy += is_nearest.sum(axis=0)
    accuracy /= statistics.num_images
    return Result(float(singular @ accuracy / singular.sum()))


def _nearest_intervals(means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the lower and upper end of the values nearest to each mean.

    Args:
      means: float64 [C, G], in each column the means of C classes.
    """
    order = np.argsort(means, axis=0)
    middle = np.take_along_axis(means, order, axis=0)
    middle = (middle[1:] + middle[:-1]) / 2
    infinite = np.full((1, means.shape[1]), np.inf)
    low, high = np.empty_like(means), np.empty_like(means)
    np.put_along_axis(low, order, np.concatenate([-infinite, middle]), axis=0)
    np.put_along_axis(high, order, np.concatenate([middle, infinite]), axis=0)
    return low, high
