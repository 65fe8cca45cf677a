"""Linear classifier: held-out accuracy of logistic regression on frozen features.

This is the "linear separability" of Li et al. (2021, section 4). Features are
standardized. A fifth of each class is held out, and another fifth selects the ridge
among RIDGES, which are solved together (`logistic`). Then

    score = (number of correct images + e p) / (M + e)

over the M held-out images for the classifier with the best ridge. It is the accuracy up
to e / M with e = 1e-3. Networks with equal accuracies are ordered by p, the geometric
mean of the posterior of the true class, which is exp of the mean log likelihood.

Several labels per image: a logistic regression of each label, with one ridge for all.
The score is the mean over the labels of average precision on the held-out images
(`goodness`); images are held out within the strata of `inputs`. A number per image:
ridge regression, with the best of NUMBER_RIDGES on the validation images. The score is
R^2 on the held-out images.

Classes with fewer than three images are only trained on. The seed and the order within
each class select the held-out images (`sampling`).

Cost: about 6 N D C FLOP per step and ridge, for at most 100 steps; 2 N D^2 + O(D^3) for
a number. Range: [0, 1]; at most 1 for a number.
Higher is better. The paper specifies neither optimizer nor split, and its code is not
published; both are our choice.
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
import scipy.special

from rankckpt_jax.data.targets import CLASSES, MULTI_LABEL, REGRESSION, TARGETS
from rankckpt_jax.errors import InputError
from rankckpt_jax.measures import regimes
from rankckpt_jax.measures.registry import FRACTION, Inputs, Result, register
from rankckpt_jax.measures.statistics import goodness, logistic, sampling, symmetric
from rankckpt_jax.measures.statistics.class_statistics import Statistics

RIDGES = (1e-1, 1e-2, 1e-3, 1e-4)
"""Ridge strengths r of `logistic`; the best one on the validation images is used."""

NUMBER_RIDGES = tuple(10.0**k for k in range(3, -5, -1))
"""Ridge strengths r of mean (y - w'x - b)^2 + r |w|^2, for a standardized number y."""

_TOLERANCE = 3e-4
"""Largest entry of the scaled gradient of `logistic` at convergence. The unscaled
gradient is then below 1e-4, where scikit-learn stops. In float32 it may stop earlier,
once two steps lower the loss by less than 1e-6 of it."""

_TIE = 1e-3
"""Weight e of the likelihood, in images: too small to outweigh an image."""

_TRAIN, _VALIDATION, _HELD_OUT = 0, 1, 2


@register(
    "linear",
    cost="N D C steps",
    targets=tuple(TARGETS),
    holds_out=True,
    bounds=(-math.inf, 1.0),
    tolerance=FRACTION,
    regimes=(regimes.MAJORITY, regimes.COPIES),
)
def linear(inputs: Inputs, num_steps: int = 100) -> Result:
    """Return the held-out accuracy, mean average precision or R^2.

    Args:
      inputs: Features [N, D] and labels; the seed selects the split.
      num_steps: Maximum number of L-BFGS steps.

    Raises:
      InputError: Fewer than two classes have three images, no label differs among the
        held-out images, or they have one number.
    """
    statistics = inputs.statistics
    part = split(statistics.labels, inputs.seed)
    held_out = statistics.labels[part == _HELD_OUT]
    if len(np.unique(held_out)) < (2 if inputs.target == CLASSES else 1):
        raise InputError(
            "linear needs two classes with at least three images",
            expected="held-out images of two classes or more",
            found=f"{len(part)} images in {statistics.num_classes} classes or strata",
            fix="add images, or use another measure, such as logme",
        )
    standard = _standardize(statistics.features, part == _TRAIN)
    if inputs.target == REGRESSION:
        return _numbers(statistics, standard, part)
    labels = np.asarray(inputs.labels)
    log_odds = _log_odds(
        standard, labels, part == _TRAIN, inputs.num_classes, num_steps
    )
    evaluate = _labels if inputs.target == MULTI_LABEL else _classes
    return evaluate(labels, part, log_odds)


def _standardize(x: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Return columns with mean 0 and standard deviation 1 over the training images."""
    mean = x[train].mean(axis=0, dtype=np.float64)
    deviation = x[train].std(axis=0, dtype=np.float64)
    varies = deviation > np.finfo(x.dtype).eps * np.abs(x).max(axis=0)
    scale = np.where(varies, 1 / np.where(varies, deviation, 1), 0)
    return (x - mean.astype(x.dtype)) * scale.astype(x.dtype)


def _log_odds(
    standard: np.ndarray,
    labels: np.ndarray,
    train: np.ndarray,
    num_outputs: int,
    num_steps: int,
) -> np.ndarray:
    """Return outputs of the classifiers of all RIDGES: float64 [R, N, C or L]."""
    x = jnp.asarray(standard)
    solutions = logistic.fit(
        x[train],
        labels[train],
        num_outputs,
        np.ones(x.shape[1]),
        np.array(RIDGES),
        max_steps=num_steps,
        tolerance=_TOLERANCE,
    )
    return np.stack(
        [
            np.asarray(logistic.logits(x, kernel, bias), np.float64)
            for kernel, bias in zip(solutions.kernel, solutions.bias, strict=True)
        ]
    )


def _classes(labels: np.ndarray, part: np.ndarray, log_odds: np.ndarray) -> Result:
    held_out = part == _HELD_OUT
    correct = np.argmax(log_odds, axis=2) == labels
    validation = correct[:, part == _VALIDATION].mean(axis=1)
    best = int(np.argmax(validation))
    is_correct = correct[best, held_out]
    log_posterior = scipy.special.log_softmax(log_odds[best][held_out], axis=1)
    log_posterior = log_posterior[np.arange(held_out.sum()), labels[held_out]]
    posterior, count = np.exp(np.mean(log_posterior)), len(is_correct)
    return Result(
        float((np.sum(is_correct) + _TIE * posterior) / (count + _TIE)),
        {
            "accuracy": float(is_correct.mean()),
            "log_likelihood": float(log_posterior.mean()),
            "ridge": RIDGES[best],
            "validation_accuracies": validation.tolist(),
            "num_held_out": int(held_out.sum()),
        },
    )


def _labels(labels: np.ndarray, part: np.ndarray, log_odds: np.ndarray) -> Result:
    def score(ridge: int, rows: np.ndarray) -> float:
        return goodness.mean_average_precision(labels[rows], log_odds[ridge][rows])

    held_out, selecting = part == _HELD_OUT, part == _VALIDATION
    validation = [score(i, selecting) for i in range(len(RIDGES))]
    # Few images can lack every label.
    best = int(np.argmax(np.nan_to_num(validation, nan=-1)))
    details = {
        "ridge": RIDGES[best],
        "validation_precisions": validation,
        "num_held_out": int(held_out.sum()),
    }
    return _held_out(score(best, held_out), details, "a label that some of them lack")


def _numbers(statistics: Statistics, standard: np.ndarray, part: np.ndarray) -> Result:
    assert statistics.columns is not None
    truth, train, held_out = statistics.columns[:, 0], part == _TRAIN, part == _HELD_OUT
    x, offset = standard[train], truth[train].mean()
    centered = truth[train] - offset
    # Of X'X or X X', the smaller one.
    wide = len(x) < x.shape[1]
    values, vectors = symmetric.eigh(symmetric.gram(x.T if wide else x))
    along = vectors.T @ (centered if wide else x.T.astype(float) @ centered)
    shrunk = along / (np.maximum(values, 0) + len(x) * np.array(NUMBER_RIDGES)[:, None])
    weights = shrunk @ vectors.T
    kernels = weights @ x if wide else weights
    predicted = offset + kernels @ standard.T
    errors = np.mean((predicted - truth)[:, part == _VALIDATION] ** 2, axis=1)
    best = int(np.argmin(errors))
    details = {
        "ridge": NUMBER_RIDGES[best],
        "validation_errors": errors.tolist(),
        "num_held_out": int(held_out.sum()),
    }
    score = goodness.r2(truth[held_out], predicted[best, held_out])
    return _held_out(score, details, "numbers that differ")


def _held_out(score: float, details: dict[str, Any], needed: str) -> Result:
    """Return the result of a score of the held-out images, which can be NaN."""
    if np.isnan(score):
        raise InputError(
            f"linear needs held-out images with {needed}",
            expected="a fifth of the images with " + needed,
            found=f"{details['num_held_out']} held-out images",
            fix="add images",
        )
    return Result(score, details)


def split(labels: np.ndarray, seed: int) -> np.ndarray:
    """Return the part of each image (0 train, 1 validation, 2 held out): int [N].

    Args:
      labels: int [N], the classes or other strata.
      seed: Seed of the draw.
    """
    part = np.full(len(labels), _TRAIN)
    for members in sampling.shuffled_classes(labels, seed):
        if len(members) < 3:
            continue
        fifth = max(1, len(members) // 5)
        part[members[:fifth]] = _HELD_OUT
        part[members[fifth : 2 * fifth]] = _VALIDATION
    return part
