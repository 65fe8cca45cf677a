"""FLOP and memory of measures, from formulas.

FLOP follow from `Measure.cost`, twice its value, because a multiplication comes with an
addition. Numbers that only a run can show are assumed; see the constants. XLA's own
count would not do, because it counts the body of a loop once.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from rankckpt_jax.measures import registry
from rankckpt_jax.measures.mixture import sparse_em

PCA_DIMENSIONS = 128
"""Assumed dimensions that NLEEP's PCA keeps of more; real pools had 72 to 202."""

EM_ITERATIONS = 20
"""Assumed iterations of EM, and of k-means before it."""

STEPS = 100
"""Assumed steps of a logistic regression."""

FREE = ("none", "fine-tuning", "SVD")
"""Costs of measures that compute nothing from features."""

_LARGEST = 4
"""Assumed images of the largest component, in units of their mean."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of a checkpoint's features.

    Attributes:
      images: N.
      dimensions: D.
      classes: C of the task.
      source_classes: V of the checkpoint's own classifier; 0 without one.
    """

    images: int
    dimensions: int
    classes: int
    source_classes: int = 0


def flop(name: str, sizes: Sizes, options: Mapping[str, Any] | None = None) -> float:
    """Return the order of the FLOP of a measure for one checkpoint.

    Example:
      >>> flop("h_score", Sizes(images=1000, dimensions=10, classes=2))
      202000.0

    Args:
      name: Name of the measure.
      sizes: Sizes of the features.
      options: Options of the measure.
    """
    measure = registry.get(name)
    if measure.needs_logits and not sizes.source_classes:
        return 0.0
    values = {
        "N": sizes.images,
        "D": sizes.dimensions,
        "C": sizes.classes,
        "V": sizes.source_classes,
        "steps": STEPS,
    }
    total = 0.0
    for term in measure.cost.split(" + "):
        if term == "EM":
            total += _mixture_flop(sizes, options or {})
            continue
        product, _, divisor = term.partition(" / ")
        factors = re.findall(r"(\w+)(?:\^(\d))?", product)
        if factors and all(symbol in values for symbol, _ in factors):
            powers = (values[symbol] ** int(power or 1) for symbol, power in factors)
            total += 2.0 * math.prod(powers) / values.get(divisor, 1)
    return total


def memory(name: str, sizes: Sizes) -> float:
    """Return the approximate bytes of a measure on one device.

    These are the arrays of the checkpoint and matrices [D, D] in float64.

    EM of NLEEP takes more; see `mixture.fitting.dense_program`.
    """
    if registry.get(name).cost in FREE:
        return 0.0
    features = sizes.images * (sizes.dimensions + sizes.source_classes)
    return 4.0 * features + 3 * 8 * sizes.dimensions**2


def mixture(sizes: Sizes, options: Mapping[str, Any]) -> tuple[int, int]:
    """Return the components K of NLEEP, and the assumed dimensions d."""
    components = options.get("components_per_class", 5) * sizes.classes
    return components, min(sizes.dimensions, PCA_DIMENSIONS)


def _mixture_flop(sizes: Sizes, options: Mapping[str, Any]) -> float:
    """Return the FLOP of k-means and EM, by the formulas of `kmeans` and `nleep`.

    k-means: 2 N K d (2 + log K) for the first centers, 2 N K d per iteration.
    EM with full covariances: 4 N K d^2 + 2 K d^3 per iteration, for distances, moments
    and factorizations. If components have fewer images than dimensions on average,
    nearly all responsibilities are 0, and it is 2 N K d for each of the witnesses of
    `sparse_em`, and 2 N d W for W images in a component.
    """
    components, size = mixture(sizes, options)
    restarts = options.get("num_restarts", 1)
    pairs = 2.0 * sizes.images * components * size
    clustering = pairs * (2 + math.log(components) + EM_ITERATIONS)
    mean = sizes.images / components
    if mean < size:
        listed = 2.0 * sizes.images * size * _LARGEST * mean
        iteration = sparse_em.WITNESSES * pairs + listed
    else:
        iteration = 2 * pairs * size + 2.0 * components * size**3
    return restarts * (clustering + EM_ITERATIONS * iteration)
