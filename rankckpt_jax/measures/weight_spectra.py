"""Baselines that read only the weights: power laws of the layers' spectra.

    alpha              -mean_l alpha_l
    weighted_alpha     -mean_l alpha_l log10 x_max,l
    log_alpha_norm     -mean_l log10 sum_j x_lj^alpha_l
    log_spectral_norm  -mean_l log10 x_max,l

x_lj = the eigenvalues of W'W of the weights W [n, m] of layer l, that is its squared
singular values, not divided by n. alpha_l and the start of the tail, x_min, are those
of `power_law.fit`. Published by Martin, Peng and Mahoney (2021), "Predicting trends in
the quality of state-of-the-art neural networks without access to training or testing
data", section 2, where lower values are better. Higher is better here: the scores are
negated. Range: any; alpha below -1. Cost: sum_l n m^2, once per checkpoint.

The conventions are those of weightwatcher 0.7.7. The spectra of the K positions of a
convolution are pooled into one. Its weights are multiplied by sqrt(1/2), which the
published code does and the paper does not; alpha does not change. Layers with fewer
than 8 eigenvalues are left out. Three things differ:

- Depthwise convolutions are left out, because their matrices have one row.
- weightwatcher 0.7.7 fits layers with fewer than 20 eigenvalues by another rule, which
  corrects the bias of alpha. Here all layers are fitted as published.
- The classifier is left out, as from `num_parameters`: fine-tuning replaces it, and not
  every checkpoint has one.

Only alpha is invariant to the scale of the weights. Batch norm makes that scale
arbitrary, and checkpoints with folded batch norm have another one, so the other three
compare checkpoints of one origin only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import scipy.special

from rankckpt_jax.data.targets import TARGETS
from rankckpt_jax.errors import InputError
from rankckpt_jax.measures.registry import (
    EXACT,
    Inputs,
    Regime,
    Result,
    register,
)
from rankckpt_jax.measures.statistics import power_law

FACT = "weight_spectra"
"""The name in `Inputs.facts` of what `summarize` returns."""

_CONVOLUTION_FACTOR = 0.5
"""On the eigenvalues of a convolution."""

_LARGEST_ALPHA = 6.0
_SHORTEST_TAIL = 10
"""Beyond these a spectrum has no power law: noise has an alpha of 13."""


def summarize(kernels: Iterable[tuple[str, np.ndarray]]) -> dict[str, Any]:
    """Return what the measures read of a checkpoint's weights, as JSON-able data.

    Args:
      kernels: Name and matrices [n, m] or [K, n, m] of each layer; see
        `checkpoints.kernels`.

    Returns:
      "layers": for each layer with a power law its "name", "alpha", "distance",
      "x_min", "tail", "eigenvalues" (their number), "log_spectral_norm" and
      "log_alpha_norm". "left_out": the names of the other layers.
    """
    layers, left_out = [], []
    for name, matrices in kernels:
        layer = _fit(name, matrices)
        if layer is None:
            left_out.append(name)
        else:
            layers.append(layer)
    return {"layers": layers, "left_out": left_out}


def _fit(name: str, matrices: np.ndarray) -> dict[str, Any] | None:
    """Return the figures of one layer; None if it has no spectrum to fit."""
    size = matrices.shape[-2:]
    count = len(matrices) if matrices.ndim == 3 else 1
    if min(size) < 2 or count * min(size) < power_law.MIN_EIGENVALUES:
        return None
    if not np.isfinite(matrices).all():
        return None
    weights = matrices.astype(np.float64)
    if matrices.ndim == 3:
        weights *= np.sqrt(_CONVOLUTION_FACTOR)
    x = power_law.eigenvalues(weights.reshape(-1, *size))
    law = power_law.fit(x)
    if law is None:
        return None
    # In logarithms, because x^alpha of equal eigenvalues overflows.
    log_sum = scipy.special.logsumexp(law.alpha * np.log(x)) / np.log(10)
    return {
        "name": name,
        **dataclasses.asdict(law),
        "eigenvalues": len(x),
        "log_spectral_norm": float(np.log10(x[-1])),
        "log_alpha_norm": float(log_sum),
    }


def _no_power_law(inputs: Inputs, result: Result) -> str:
    layers = inputs.facts[FACT]["layers"]
    bad = sum(
        layer["alpha"] > _LARGEST_ALPHA or layer["tail"] < _SHORTEST_TAIL
        for layer in layers
    )
    if 2 * bad <= len(layers):
        return ""
    return (
        f"{bad} of {len(layers)} layers have no power law (an alpha above "
        f"{_LARGEST_ALPHA:g}, or fewer than {_SHORTEST_TAIL} eigenvalues in the tail), "
        "so the mean over layers has no meaning. Use log_spectral_norm or another "
        "baseline."
    )


NO_POWER_LAW = Regime("no power law", _no_power_law)
"""More than half of the layers have noise for weights."""


_SHARED: dict[str, Any] = {
    "cost": "SVD",
    "targets": tuple(TARGETS),
    "reads_images": False,
    "needs_weights": True,
    "tolerance": EXACT,
}


@register("alpha", regimes=(NO_POWER_LAW,), **_SHARED)
def alpha(inputs: Inputs) -> Result:
    """Exponent of the power law of a layer's spectrum, negated mean over layers."""
    return _average(inputs, lambda layer: layer["alpha"])


@register("weighted_alpha", regimes=(NO_POWER_LAW,), **_SHARED)
def weighted_alpha(inputs: Inputs) -> Result:
    """Alpha times log10 of a layer's largest eigenvalue, negated mean over layers."""
    return _average(inputs, lambda layer: layer["alpha"] * layer["log_spectral_norm"])


@register("log_alpha_norm", regimes=(NO_POWER_LAW,), **_SHARED)
def log_alpha_norm(inputs: Inputs) -> Result:
    """log10 of the sum of a layer's eigenvalues^alpha, negated mean over layers."""
    return _average(inputs, lambda layer: layer["log_alpha_norm"])


@register("log_spectral_norm", **_SHARED)
def log_spectral_norm(inputs: Inputs) -> Result:
    """log10 of a layer's largest eigenvalue, negated mean over layers."""
    return _average(inputs, lambda layer: layer["log_spectral_norm"])


def _average(inputs: Inputs, value: Callable[[Mapping[str, Any]], float]) -> Result:
    """Return minus the mean of `value` over layers.

    Raises:
      InputError: No layer has a power law.
    """
    layers, left_out = inputs.facts[FACT]["layers"], inputs.facts[FACT]["left_out"]
    if not layers:
        raise InputError(
            f"The checkpoint has no layer to fit: none of its {len(left_out)} kernels "
            f"has {power_law.MIN_EIGENVALUES} eigenvalues that differ",
            expected="dense layers, or convolutions that are not depthwise",
            fix="use num_parameters instead",
        )
    score = -float(np.mean([value(layer) for layer in layers]))
    details = {
        "layers": len(layers),
        "layers_left_out": len(left_out),
        "mean_tail": float(np.mean([layer["tail"] for layer in layers])),
    }
    return Result(score, details)
