"""NLEEP (Li et al. 2021, arXiv 2011.11200): LEEP on Gaussian mixture components.

N images, D dimensions, C target classes:

    1. PCA of the centered features to the fewest d dimensions with more than 80 % of
       the variance;
    2. a Gaussian mixture with K = 5 C components on the projections [N, d];
    3. A[i, v] is the posterior of component v for image i;
    4. NLEEP = 1/N sum_i log sum_v P(y_i | v) A[i, v], with P from A and the labels as
       in LEEP (Nguyen et al. 2020, equations 1 to 3; see `prediction`).

Several of L labels per image: K = 5 max(L, 2), because the mixture does not see labels,
and step 4 is the mean over the labels of LEEP for having the label or not
(`label_prediction`). For one label this is NLEEP of two classes. The paper has no such
tasks.

Unlike LEEP, it needs no classifier in the checkpoint. Range: at most 0. Higher is
better. Only differences between checkpoints on the same task are meaningful: with 5 C
components and few images per class, even noise is predicted better than chance.

The paper does not specify covariances and EM. The defaults follow all faithful ports
and scikit-learn: full covariances, k-means initialization, tol 1e-3, ridge 1e-6, 100
iterations, fitted and scored on the same images. Published variants:

    paper, stable_transfer  as above
    sfda      (Shao et al. 2022; ETran, NCTI) step 4 without the logarithm, in [0, 1]
    pactran   (Ding et al. 2022) K = max(min(C, N/5), N/10), at most 8000 images, and
              log(p + 1e-10)
    spherical (Awesome-Model-Transferability) spherical covariances, ridge 1e-5, K
              reduced in steps of C until below N

Scale. A ridge of 1e-6 is for features of ordinary scale: the mean variance v of the d
dimensions lies in [1e3, 1e18] ridge, that is in [1e-3, 1e12]. Outside, projections are
first divided by the power of two nearest to sqrt(v), and the details and a warning name
it.

Cost: PCA 2 N D^2 + O(D^3) FLOP; N K d for k-means++ in K sequential steps; per EM
iteration N K d^2 and K d^3 for full covariances, N K d for others. With few images per
component nearly all A[i, v] are exactly 0, and an iteration costs about N d W, where W
is the number of images in a component (`sparse_em`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from rankckpt_jax.data.targets import MULTI_LABEL
from rankckpt_jax.errors import InputError, unknown_name
from rankckpt_jax.measures import regimes
from rankckpt_jax.measures.mixture import (
    fitting,
    kmeans,
    label_prediction,
    prediction,
)
from rankckpt_jax.measures.registry import (
    LABELS,
    UNIT_SCALE,
    Evidence,
    Inputs,
    Result,
    register,
)
from rankckpt_jax.measures.statistics import pca, sampling, scaling

VARIANTS = ("paper", "stable_transfer", "sfda", "pactran", "spherical")

_PACTRAN_IMAGES = 8000

_ORDINARY = 1e3, 1e18
"""Mean variance of the kept dimensions, in units of the ridge, for which the ridge is
that of published code. Below, the ridge would blur the components. Above, squares would
overflow in float32."""

_USUAL = 2.0**-8, 2.0**8
"""Deviations of features that need no warning when they are rescaled. Those of random
weights are small, because nothing has fitted their batch norm."""


def _bounds(options: Mapping[str, Any]) -> tuple[float, float]:
    """Return the bounds: a mean of log probabilities, or of probabilities for sfda."""
    return (0.0, 1.0) if options.get("variant") == "sfda" else (-math.inf, 0.0)


def _check(options: Mapping[str, Any]) -> None:
    variant, where = options.get("variant", "paper"), "measure_options.nleep."
    if variant not in VARIANTS:
        raise unknown_name("variant of NLEEP", variant, VARIANTS, where + "variant")
    rules = {"energy": (0 < options.get("energy", 0.8) <= 1, "in (0, 1]")}
    for option in ("components_per_class", "num_restarts", "max_iter"):
        rules[option] = (options.get(option, 1) >= 1, "at least 1")
    for option, (allowed, expected) in rules.items():
        if not allowed:
            raise InputError(
                f"{option} must be {expected}",
                where=where + option,
                expected=expected,
                found=repr(options[option]),
                fix="omit it for the paper's value",
            )


def _chance(inputs: Inputs, result: Result) -> str:
    """Describe a mean log likelihood at chance; the variant sfda has another scale."""
    is_log = result.details["variant"] != "sfda"
    return regimes.CHANCE.describe(inputs, result) if is_log else ""


@register(
    "nleep",
    cost="N D^2 + EM",
    evidence=Evidence(0.48, 28),
    targets=LABELS,
    undefined="predicts classes or labels from the components of a mixture",
    bounds=_bounds,
    check=_check,
    tolerance=UNIT_SCALE,
    regimes=(dataclasses.replace(regimes.CHANCE, describe=_chance),),
)
def nleep(
    inputs: Inputs,
    variant: str = "paper",
    energy: float = 0.8,
    components_per_class: int = 5,
    covariance_type: str | None = None,
    reg_covar: float | None = None,
    tol: float = 1e-3,
    max_iter: int = 100,
    num_restarts: int = 1,
) -> Result:
    """Return NLEEP, by default with the settings of all faithful ports.

    Args:
      inputs: Features [N, D] and labels [N]; the seed initializes k-means.
      variant: One of VARIANTS.
      energy: Fraction of the variance that PCA keeps, in (0, 1].
      components_per_class: Mixture components per class; ignored by `pactran`.
      covariance_type: "full", "tied", "diag" or "spherical"; the variant's if None.
      reg_covar: Ridge of the covariances; the variant's if None. Projections are then
        rescaled if their scale is not ordinary.
      tol: EM stops when the mean log likelihood changes by less.
      max_iter: Maximum number of EM iterations.
      num_restarts: Number of k-means initializations; the score is the mean over them.

    Returns:
      The score. Its details hold the numbers of PCA dimensions, components and images,
      and lists over the restarts: `scores`, the number of EM iterations, whether EM
      converged, its last lower bound, and the mean entropy of the posteriors in nats.
      `scale` is the number that the projections were divided by; 1 at ordinary scales.
      With several restarts, `spread` is the standard deviation of their mean, which is
      the score.

    Raises:
      InputError: There are fewer images than components.
    """
    points, labels = np.asarray(inputs.features), np.asarray(inputs.labels)
    shares_scatter = len(points) >= points.shape[1]
    num_classes, seed = max(inputs.num_classes, 2), inputs.seed
    if variant == "pactran" and len(points) > _PACTRAN_IMAGES:
        rows = np.random.default_rng(seed).permutation(len(points))
        rows = np.sort(rows[:_PACTRAN_IMAGES])
        points, labels, shares_scatter = points[rows], labels[rows], False
    num_components = _num_components(
        variant, len(points), num_classes, components_per_class
    )
    if covariance_type is None:
        covariance_type = "spherical" if variant == "spherical" else "full"
    scatter = inputs.statistics.decomposition if shares_scatter else None
    projected = np.asarray(pca.transform(pca.fit(points, energy, scatter), points))
    scale = 1.0
    if reg_covar is None:
        reg_covar = 1e-5 if variant == "spherical" else 1e-6
        scale = _scale(projected, reg_covar)
        projected = scaling.divide(projected, scale)
    # Derived seeds, so that runs with seeds 0 and 1 share no restart.
    seeds = tuple(
        int(s) for s in np.random.SeedSequence(seed).generate_state(num_restarts)
    )
    runs = []
    for clusters in kmeans.fit_many(projected, num_components, seeds):
        fitted = fitting.fit(
            projected,
            num_components,
            covariance_type=covariance_type,
            init_labels=clusters.assignments,
            reg_covar=reg_covar,
            tol=tol,
            max_iter=max_iter,
        )
        if inputs.target == MULTI_LABEL:
            predicted = label_prediction.of_mixture(fitted, labels)
        else:
            predicted = prediction.of_mixture(fitted, labels, num_classes)
        runs.append((fitted, predicted))
    scores = [_score(variant, predicted) for _, predicted in runs]
    details = {
        "variant": variant,
        "dimensions": projected.shape[1],
        "num_components": num_components,
        "num_images": len(projected),
        "scale": scale,
        "scores": scores,
        "num_iterations": [len(fitted.lower_bounds) - 1 for fitted, _ in runs],
        "converged": [fitted.converged for fitted, _ in runs],
        "lower_bound": [float(fitted.lower_bounds[-1]) for fitted, _ in runs],
        "posterior_entropy": [predicted.entropy for _, predicted in runs],
    }
    if num_restarts > 1:
        details["spread"] = sampling.standard_error(scores)
    warnings = (
        _warn_of_scale(scale, reg_covar),
        _warn_of_few_images(covariance_type, num_components, *projected.shape),
    )
    return Result(float(np.mean(scores)), details, " ".join(filter(None, warnings)))


def _scale(projected: np.ndarray, ridge: float) -> float:
    """Return 1 at an ordinary scale, else the power of two that gives variance 1."""
    size = float(np.max(np.abs(projected), initial=0))
    if size == 0:
        return 1.0
    # Squares of the projections themselves may overflow or underflow.
    spread = size * float(np.sqrt(np.mean((projected / size) ** 2, dtype=np.float64)))
    low, high = _ORDINARY
    if low * ridge <= spread**2 <= high * ridge:
        return 1.0
    return scaling.power_of_two(spread)


def _num_components(
    variant: str, num_images: int, num_classes: int, per_class: int
) -> int:
    """Return K of the variant; raise InputError if there are fewer images."""
    if variant == "pactran":
        return max(1, min(num_classes, num_images // 5), num_images // 10)
    count = per_class * num_classes
    if variant == "spherical":
        while count >= num_images and count > num_classes:
            count -= num_classes
    if not 1 <= count <= num_images:
        raise InputError(
            "NLEEP has more mixture components than images",
            where="measure_options.nleep.components_per_class",
            expected=f"at least {count} images "
            f"({count // num_classes} components x {num_classes} classes or labels)",
            found=f"{num_images}",
            fix="lower it or add images",
        )
    return count


def _score(variant: str, predicted: prediction.Prediction) -> float:
    if variant == "sfda":
        return predicted.probability
    return predicted.log_floored if variant == "pactran" else predicted.log


def _warn_of_scale(scale: float, ridge: float) -> str:
    if _USUAL[0] <= scale <= _USUAL[1]:
        return ""
    side = "small" if scale < 1 else "large"
    return (
        f"The features are too {side} for a ridge of {ridge:g}, so they were divided "
        f"by {scale:.3g} first. Check the scale of the features if this is unexpected."
    )


def _warn_of_few_images(
    covariance_type: str, num_components: int, num_images: int, dimensions: int
) -> str:
    mean = num_images / num_components
    if covariance_type != "full" or mean >= dimensions:
        return ""
    return (
        f"Too few images per mixture component ({mean:.3g} in {dimensions} dimensions):"
        " the covariances are singular, so the score mostly reflects the k-means "
        "initialization. Lower `components_per_class` or add images."
    )
