"""Linear classifier: held-out accuracy of logistic regression on frozen features.

This is the "linear separability" of Li et al. (2021, section 4). Features are
standardized. A fifth of each class is held out, and another fifth selects the ridge
among RIDGES, which are solved together (`logistic`). Then

    score = accuracy on the held-out images of the classifier with the best ridge.

Classes with fewer than three images are only trained on. The seed selects the held-out
images.

Cost: about 6 N D C FLOP per step and ridge, for at most 100 steps. Range: [0, 1].
Higher is better. The paper specifies neither optimizer nor split, and its code is not
published; both are our choice.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from rankckpt_jax.errors import InputError
from rankckpt_jax.measures import regimes
from rankckpt_jax.measures.registry import FRACTION, Inputs, Result, register
from rankckpt_jax.measures.statistics import logistic, sampling

RIDGES = (1e-1, 1e-2, 1e-3, 1e-4)
"""Ridge strengths r of `logistic`; the best one on the validation images is used."""

_TOLERANCE = 3e-4
"""Largest entry of the scaled gradient of `logistic` at convergence. The unscaled
gradient is then below 1e-4, where scikit-learn stops."""

_TRAIN, _VALIDATION, _HELD_OUT = 0, 1, 2


@register(
    "linear",
    resampling="bootstrap",
    bounds=(0.0, 1.0),
    tolerance=FRACTION,
    regimes=(regimes.MAJORITY, regimes.COPIES),
)
def linear(inputs: Inputs, num_steps: int = 100) -> Result:
    """Return the held-out accuracy for features [N, D] and labels [N].

    Args:
      inputs: Features [N, D] and labels [N]; the seed selects the split.
      num_steps: Maximum number of L-BFGS steps.

    Raises:
      InputError: No class has three images.
    """
    x, labels = np.asarray(inputs.features), np.asarray(inputs.labels)
    part = split(labels, inputs.seed)
    if not (part == _HELD_OUT).any():
        raise InputError(
            "linear needs a class with at least three images",
            expected="at least three images in some class",
            found=f"{len(part)} images in {inputs.num_classes} classes",
        )
    train = part == _TRAIN
    mean = x[train].mean(axis=0, dtype=np.float64)
    deviation = x[train].std(axis=0, dtype=np.float64)
    varies = deviation > np.finfo(x.dtype).eps * np.abs(x).max(axis=0)
    scale = np.where(varies, 1 / np.where(varies, deviation, 1), 0)
    standard = jnp.asarray((x - mean.astype(x.dtype)) * scale.astype(x.dtype))
    solutions = logistic.fit(
        standard[train],
        labels[train],
        np.ones(train.sum()),
        inputs.num_classes,
        np.ones(standard.shape[1]),
        np.array(RIDGES),
        max_steps=num_steps,
        tolerance=_TOLERANCE,
    )
    predicted = np.stack(
        [
            np.argmax(logistic.logits(standard, kernel, bias), axis=1)
            for kernel, bias in zip(solutions.kernel, solutions.bias, strict=True)
        ]
    )
    correct = predicted == labels
    validation = correct[:, part == _VALIDATION].mean(axis=1)
    best = int(np.argmax(validation))
    held_out = correct[best, part == _HELD_OUT]

    def score(weights: np.ndarray) -> float:
        held_out_weights = weights[part == _HELD_OUT]
        # A resample can miss all held-out images if they are few.
        return float(held_out_weights @ held_out / max(held_out_weights.sum(), 1))

    return Result(
        score(np.ones(len(part))),
        {
            "ridge": RIDGES[best],
            "validation_accuracies": validation.tolist(),
            "num_held_out": int(held_out.size),
        },
        reweighted=score,
    )


def split(labels: np.ndarray, seed: int) -> np.ndarray:
    """Return the part of each image (0 train, 1 validation, 2 held out): int [N]."""
    part = np.full(len(labels), _TRAIN)
    for members in sampling.shuffled_classes(labels, seed):
        if len(members) < 3:
            continue
        fifth = max(1, len(members) // 5)
        part[members[:fifth]] = _HELD_OUT
        part[members[fifth : 2 * fifth]] = _VALIDATION
    return part
