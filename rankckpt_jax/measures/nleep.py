"""NLEEP (Li et al. 2021, arXiv 2011.11200): LEEP on Gaussian components.

N images, D dimensions, C target classes:

    1. PCA of the centered features to the fewest d dimensions with more than 80 % of
       the variance;
    2. a Gaussian mixture with K = 5 C components on the N x d projections;
    3. A[i, v], the posterior of component v for image i;
    4. NLEEP = 1/N sum_i log sum_v P(y_i | v) A[i, v], with P from A and the labels as
       in LEEP, equations 1 to 3 of Nguyen et al. 2020 (`prediction`).

Unlike LEEP it needs no classifier in the checkpoint. Range: at most 0; higher is
better. Only differences between checkpoints of one task carry meaning: with 5 C
components and few images a class even noise is predicted better than chance.

The paper leaves the covariances and EM open; the default here is what all faithful
ports use, scikit-learn's: full, a k-means start, tol 1e-3, ridge 1e-6, 100 iterations,
fitted and scored on the same images. Published variants, by name:

    paper, stable_transfer  as above
    sfda      (Shao et al. 2022; ETran, NCTI) step 4 without the logarithm, in [0, 1]
    pactran   (Ding et al. 2022) K = max(min(C, N/5), N/10), at most 8000 images, and
              log(p + 1e-10)
    spherical (Awesome-Model-Transferability) spherical covariances, ridge 1e-5, K
              lowered by C until below N

Cost: PCA 2 N D^2 + O(D^3); K dependent steps of k-means++, N K d in all; an iteration
of dense EM N K d^2 and K d^3 with full covariances, N K d with others, where K = 5 C;
with few images for each component, where nearly all A[i, v] are exactly 0, only some
N d W for the rest, W a component's images (`sparse_em`). See those files.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from rankckpt_jax.errors import InputError
from rankckpt_jax.measures.mixture import fitting, kmeans, prediction
from rankckpt_jax.measures.registry import Inputs, Result, register
from rankckpt_jax.measures.statistics import pca

VARIANTS = ("paper", "stable_transfer", "sfda", "pactran", "spherical")

_PACTRAN_IMAGES = 8000


def _bounds(options: Mapping[str, Any]) -> tuple[float, float]:
    """A mean of logarithms of probabilities; of probabilities in one variant."""
    return (0.0, 1.0) if options.get("variant") == "sfda" else (-math.inf, 0.0)


def _check(options: Mapping[str, Any]) -> None:
    variant, energy = options.get("variant", "paper"), options.get("energy", 0.8)
    rules = [
        (
            f"Unknown variant of NLEEP {variant!r}",
            "variant",
            variant in VARIANTS,
            "one of " + ", ".join(VARIANTS),
        ),
        (
            "NLEEP keeps a share of the variance",
            "energy",
            0 < energy <= 1,
            "a value in (0, 1]",
        ),
    ]
    for option in ("components_per_class", "num_restarts", "max_iter"):
        holds = options.get(option, 1) >= 1
        rules.append((f"{option} must be at least 1", option, holds, "at least 1"))
    for what, option, holds, expected in rules:
        if not holds:
            raise InputError(
                what,
                where=f"measure_options.nleep.{option}",
                expected=expected,
                found=repr(options[option]),
                fix="leave it out for the paper's",
            )


@register("nleep", bounds=_bounds, check=_check)
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
    """NLEEP with the settings that the paper's faithful ports share.

    Args:
      inputs: Features [N, D] and labels [N]; the seed decides the k-means starts.
      variant: One of VARIANTS.
      energy: Share of the variance that PCA keeps, in (0, 1].
      components_per_class: Gaussian components per class; not in `pactran`.
      covariance_type: "full", "tied", "diag" or "spherical"; the variant's if None.
      reg_covar: Ridge of the covariances; the variant's if None.
      tol: EM stops when the mean log likelihood changes by less.
      max_iter: Most EM iterations.
      num_restarts: Independent starts. With several the score is their mean.

    Returns:
      The score, and in its details: the dimensions kept, the number of components and
      of images, and of each start the score (`scores`), EM's iterations, whether it
      converged, its last lower bound, and the mean entropy of the posteriors in nats.
      With several starts also `spread`, the standard deviation of the scores over them.

    Raises:
      InputError: There are fewer images than components, or an option is unknown.
    """
    features = inputs.features
    labels = inputs.labels
    num_classes = inputs.num_classes
    seed = inputs.seed
    points, classes = np.asarray(features), np.asarray(labels)
    if variant == "pactran" and len(points) > _PACTRAN_IMAGES:
        chosen = np.random.default_rng(seed).permutation(len(points))
        chosen = np.sort(chosen[:_PACTRAN_IMAGES])
        points, classes = points[chosen], classes[chosen]
    num_components = _num_components(
        variant, len(points), num_classes, components_per_class
    )
    if covariance_type is None:
        covariance_type = "spherical" if variant == "spherical" else "full"
    if reg_covar is None:
        reg_covar = 1e-5 if variant == "spherical" else 1e-6
    projected = np.asarray(pca.transform(pca.fit(points, energy), points))
    # Seeds of one call do not meet those of the call with the next seed.
    seeds = tuple(
        int(s) for s in np.random.SeedSequence(seed).generate_state(num_restarts)
    )
    starts = kmeans.fit_many(projected, num_components, seeds)
    runs = []
    for start in starts:
        fitted = fitting.fit(
            projected,
            num_components,
            covariance_type=covariance_type,
            init_labels=start.assignments,
            reg_covar=reg_covar,
            tol=tol,
            max_iter=max_iter,
        )
        found = prediction.of_mixture(fitted, classes, num_classes)
        runs.append(_Run(_score(variant, found), found.entropy, fitted))
    scores = [run.score for run in runs]
    details = {
        "variant": variant,
        "dimensions": projected.shape[1],
        "num_components": num_components,
        "num_images": len(projected),
        "scores": scores,
        "num_iterations": [len(run.fitted.lower_bounds) - 1 for run in runs],
        "converged": [bool(np.asarray(run.fitted.state.converged)) for run in runs],
        "lower_bound": [float(run.fitted.lower_bounds[-1]) for run in runs],
        "posterior_entropy": [run.entropy for run in runs],
    }
    if num_restarts > 1:
        details["spread"] = float(np.std(scores, ddof=1))
    warning = _warning(covariance_type, num_components, *projected.shape)
    return Result(float(np.mean(scores)), details, warning)


@dataclasses.dataclass(frozen=True)
class _Run:
    score: float
    entropy: float
    fitted: fitting.Fitted


def _num_components(
    variant: str, num_images: int, num_classes: int, per_class: int
) -> int:
    """K of the variant; raises where there are not so many images."""
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
            f"({count // num_classes} components x {num_classes} classes)",
            found=f"{num_images}",
            fix="lower it, or use more images",
        )
    return count


def _score(variant: str, found: prediction.Likelihood) -> float:
    if variant == "sfda":
        return found.probability
    return found.log_floored if variant == "pactran" else found.log


def _warning(
    covariance_type: str, num_components: int, num_images: int, dimensions: int
) -> str:
    mean = num_images / num_components
    if covariance_type != "full" or mean >= dimensions:
        return ""
    return (
        f"{mean:.1f} images a component in {dimensions} dimensions: the covariances "
        "are singular but for their ridge, and the score is the purity of the k-means "
        "start"
    )
