"""Linear classifier: held-out accuracy of logistic regression on frozen features.

This is the "linear separability" of Li et al. (2021, section 4). Features are
standardized. A fifth of each class is held out, and another fifth selects the ridge
among RIDGES, which are solved together (`logistic`). Then

    score = (number of correct images + e p) / (M + e)

over the M held-out images for the classifier with the best ridge. It is the accuracy up
to e / M with e = 1e-3. Networks with equal accuracies are ordered by p, the geometric
mean of the posterior of the true class, which is exp of the mean log likelihood.

Classes with fewer than three images are only trained on. The seed and the order within
each class select the held-out images (`sampling`).

Cost: about 6 N D C FLOP per step and ridge, for at most 100 steps. Range: [0, 1].
Higher is better. The paper specifies neither optimizer nor split, and its code is not
published; both are our choice.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import scipy.special

from rankckpt_jax.errors import InputError
from rankckpt_jax.measures import regimes
from rankckpt_jax.measures.registry import FRACTION, Inputs, Result, register
from rankckpt_jax.measures.statistics import logistic, sampling

RIDGES = (1e-1, 1e-2, 1e-3, 1e-4)
"""Ridge strengths r of `logistic`; the best one on the validation images is used."""

_TOLERANCE = 3e-4
"""Largest entry of the scaled gradient of `logistic` at convergence. The unscaled
gradient is then below 1e-4, where scikit-learn stops."""

_TIE = 1e-3
"""Weight e of the likelihood, in images: too small to outweigh an image."""

_TRAIN, _VALIDATION, _HELD_OUT = 0, 1, 2


@register(
    "linear",
    cost="N D C steps",
    holds_out=True,
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
      InputError: Fewer than two classes have three images.
    """
    x, labels = np.asarray(inputs.features), np.asarray(inputs.labels)
    part = split(labels, inputs.seed)
    if len(np.unique(labels[part == _HELD_OUT])) < 2:
        raise InputError(
            "linear needs two classes with at least three images",
            expected="held-out images of two classes or more",
            found=f"{len(part)} images in {inputs.num_classes} classes",
            fix="add images, or use another measure, such as logme",
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
    log_odds = [
        np.asarray(logistic.logits(standard, kernel, bias), np.float64)
        for kernel, bias in zip(solutions.kernel, solutions.bias, strict=True)
    ]
    correct = np.stack([np.argmax(values, axis=1) for values in log_odds]) == labels
    validation = correct[:, part == _VALIDATION].mean(axis=1)
    best = int(np.argmax(validation))
    held_out = part == _HELD_OUT
    is_correct = correct[best, held_out]
    log_posterior = scipy.special.log_softmax(log_odds[best][held_out], axis=1)
    log_posterior = log_posterior[np.arange(held_out.sum()), labels[held_out]]

    def score(weights: np.ndarray) -> float:
        weights = weights[held_out]
        # A resample can miss all held-out images if they are few.
        count = max(weights.sum(), 1)
        posterior = np.exp(weights @ log_posterior / count)
        return float((weights @ is_correct + _TIE * posterior) / (count + _TIE))

    return Result(
        score(np.ones(len(part))),
        {
            "accuracy": float(is_correct.mean()),
            "log_likelihood": float(log_posterior.mean()),
            "ridge": RIDGES[best],
            "validation_accuracies": validation.tolist(),
            "num_held_out": int(held_out.sum()),
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
