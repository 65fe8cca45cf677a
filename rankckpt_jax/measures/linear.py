"""Linear classifier: held-out accuracy of logistic regression on frozen features.

The "linear separability" of Li et al. (2021, section 4). Features are standardized;
of each class a fifth is held out and a fifth, by turns, chooses the ridge out of
RIDGES (one solve for all, see `logistic`); then

    score = accuracy on the images held out, of the classifier with the best ridge.

Classes of fewer than three images are learned from and not asked. Which images are held
out is decided by `seed`.

Cost: about 6 N D C FLOP for each of at most 100 steps and each ridge. Range: [0, 1].
Higher is better. The paper does not say its optimizer or its split, and no code of it
is published; both are ours.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from rankckpt_jax.errors import InputError
from rankckpt_jax.measures.registry import Inputs, Result, register
from rankckpt_jax.measures.statistics import logistic, sampling

RIDGES = (1e-1, 1e-2, 1e-3, 1e-4)
"""Ridge strengths r of `logistic`, of which the best on validation is taken."""

_TOLERANCE = 3e-4
"""Largest entry of the gradient, as `logistic` scales it; of the gradient itself that
is less than the 1e-4 at which scikit-learn stops."""

_TRAIN, _VALIDATION, _HELD_OUT = 0, 1, 2


@register("linear", bounds=(0.0, 1.0))
def linear(inputs: Inputs, num_steps: int = 100) -> Result:
    """Held-out accuracy for features [N, D] and labels [N]."""
    features = inputs.features
    labels = inputs.labels
    num_classes = inputs.num_classes
    seed = inputs.seed
    part = split(np.asarray(labels), seed)
    if not (part == _HELD_OUT).any():
        raise InputError(
            "No class has images enough to hold some out",
            expected="at least three images in some class",
            found=f"{len(part)} images in {num_classes} classes",
        )
    learned = part == _TRAIN
    x = np.asarray(features)
    mean = x[learned].mean(axis=0, dtype=np.float64)
    deviation = x[learned].std(axis=0, dtype=np.float64)
    varies = deviation > np.finfo(x.dtype).eps * np.abs(x).max(axis=0)
    scale = np.where(varies, 1 / np.where(varies, deviation, 1), 0)
    standard = jnp.asarray((x - mean.astype(x.dtype)) * scale.astype(x.dtype))
    found = logistic.fit(
        standard[learned],
        np.asarray(labels)[learned],
        np.ones(learned.sum()),
        num_classes,
        np.ones(standard.shape[1]),
        np.array(RIDGES),
        max_steps=num_steps,
        tolerance=_TOLERANCE,
    )
    predicted = np.stack(
        [
            np.argmax(logistic.logits(standard, kernel, bias), axis=1)
            for kernel, bias in zip(found.kernel, found.bias, strict=True)
        ]
    )
    correct = predicted == np.asarray(labels)
    validation = correct[:, part == _VALIDATION].mean(axis=1)
    best = int(np.argmax(validation))
    held_out = correct[best, part == _HELD_OUT]

    def score(weights: np.ndarray) -> float:
        often = weights[part == _HELD_OUT]
        # A resample may leave no image of few that are held out.
        return float(often @ held_out / max(often.sum(), 1))

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
    """Which part each image is in, class by class: int [N]."""
    part = np.full(len(labels), _TRAIN)
    for members in sampling.shuffled_classes(labels, seed):
        if len(members) < 3:
            continue
        share = max(1, len(members) // 5)
        part[members[:share]] = _HELD_OUT
        part[members[share : 2 * share]] = _VALIDATION
    return part
