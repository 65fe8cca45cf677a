"""Regimes in which a score is saturated or needs care, for the records of measures.

N images, D dimensions, C classes. A regime that `saturates` gives the same score to any
network, or to any that is good or bad enough, so its scores are ties.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.special import entr

from rankckpt_jax.data.targets import CLASSES, MULTI_LABEL, REGRESSION
from rankckpt_jax.measures.registry import UNIT_SCALE, Inputs, Regime, Result, Tolerance


def maximum(
    highest: Callable[[Inputs], float], tolerance: Tolerance = UNIT_SCALE
) -> Regime:
    """Return the regime of the highest possible score.

    Args:
      highest: Returns the highest possible score for the inputs.
      tolerance: The measure's tolerance.
    """

    def describe(inputs: Inputs, result: Result) -> str:
        most = highest(inputs)
        if result.score < most and not tolerance.allows(result.score, most):
            return ""
        return (
            f"The score is {most:g}, the highest possible one, so it cannot order "
            "checkpoints that reach it. Add harder images or use another measure."
        )

    return Regime("maximum", describe, saturates=True)


def _chance(inputs: Inputs, result: Result) -> str:
    statistics = inputs.statistics
    shares = statistics.sums / statistics.num_images
    if inputs.target == MULTI_LABEL:
        # Mean over the labels of that of two classes.
        prior = -float(np.mean(entr(shares) + entr(1 - shares)))
    else:
        prior = -float(np.sum(entr(shares)))
    # A classifier with one parameter that knows nothing gains half a nat on average
    # (Wilks 1938); so does one for each label.
    if statistics.num_images * (result.score - prior) >= 0.5:
        return ""
    name = "label" if inputs.target == MULTI_LABEL else "class"
    return (
        f"The score equals the log likelihood of the {name} frequencies, {prior:.4g}, "
        "so it is at chance and cannot order checkpoints. Check the preprocessing and "
        "the image size, or use another measure."
    )


CHANCE = Regime("chance", _chance, saturates=True)
"""For mean log likelihoods: no better than the frequencies of classes or labels."""


def _interpolation(inputs: Inputs, result: Result) -> str:
    count, size = inputs.features.shape
    # The posteriors of the wrong classes sum to less than half an image.
    if count > size or count * (1 - result.score) >= 0.5:
        return ""
    return (
        f"With no more images ({count}) than feature dimensions, a discriminant "
        "separates the images that it was fitted to for any features, so the score is "
        "about 1 and cannot order checkpoints. Add images or use another measure."
    )


INTERPOLATION = Regime(
    "interpolation", _interpolation, saturates=True, of_few_images=True
)
"""For mean posteriors of the images that a discriminant was fitted to."""


def _few_images(inputs: Inputs, result: Result) -> str:
    count, size = inputs.features.shape
    if count > size:
        return ""
    return (
        f"There are no more images ({count}) than feature dimensions, so the score "
        "mostly reflects the dimension and the scale of the features. Add images, or "
        "compare it with another measure."
    )


FEW_IMAGES = Regime("few images", _few_images, of_few_images=True)
"""For scores of scatter matrices that are singular if N <= D."""


def _single_images(inputs: Inputs, result: Result) -> str:
    # Numbers have no classes, and most numbers occur once.
    if inputs.target == REGRESSION or inputs.statistics.sums.max() > 1:
        return ""
    name = "label" if inputs.target == MULTI_LABEL else "class"
    return (
        f"Each {name} has one image, so the score does not depend on how much images "
        f"of a {name} differ. Add images."
    )


SINGLE_IMAGES = Regime("single images", _single_images)
"""For scores that should compare images of a class or label."""


def _majority(inputs: Inputs, result: Result) -> str:
    sums = inputs.statistics.sums
    name, constant, guess = {
        CLASSES: (
            "accuracy",
            float(sums.max() / len(inputs.labels)),
            "always predicting the most frequent class",
        ),
        MULTI_LABEL: (
            "mean average precision",
            float(sums.mean() / len(inputs.labels)),
            "random scores",
        ),
        REGRESSION: ("R2", 0.0, "always predicting the mean"),
    }[inputs.target]
    if result.score > constant:
        return ""
    return (
        f"The {name} is not above {constant:.3g}, that of {guess}, so it is at chance. "
        "Check the preprocessing and the image size, or use another measure."
    )


MAJORITY = Regime("majority", _majority)
"""For held-out accuracies, mean average precisions and R2: no better than a guess."""

_MOST_COPIES = 0.1
"""Share of copies among the images below which their effect is small."""


def copies(effect: str) -> Regime:
    """Return the regime of many images with the features of another one.

    Args:
      effect: Their effect on the score.
    """

    def describe(inputs: Inputs, result: Result) -> str:
        distinct, count = inputs.statistics.num_distinct, len(inputs.features)
        if count - distinct <= _MOST_COPIES * count:
            return ""
        return (
            f"Only {distinct} of {count} images have features of their own, so "
            f"{effect}. Remove duplicates."
        )

    return Regime("copies", describe)


COPIES = copies("images are predicted from their copies and the score is too high")
"""For scores on images that are not trained on, unless they have a copy."""


def _equal_rows(inputs: Inputs, result: Result) -> str:
    if not inputs.statistics.has_equal_rows:
        return ""
    return (
        "All rows of the features are equal, so the score depends on the labels alone "
        "and cannot order checkpoints. Check the weights and the input range of the "
        "network."
    )


EQUAL_ROWS = Regime("equal rows", _equal_rows, saturates=True)
"""For all measures that read the features."""


def _equal_classes(inputs: Inputs, result: Result) -> str:
    statistics = inputs.statistics
    if inputs.target != CLASSES or statistics.has_equal_rows:
        return ""
    if not statistics.has_equal_classes:
        return ""
    return (
        "The images of each class have the same features, so the score does not depend "
        "on how much images of a class differ. Check for duplicates, and for features "
        "that hold the labels."
    )


EQUAL_CLASSES = Regime("equal classes", _equal_classes)
"""For all measures that read the features."""


def _probabilities(inputs: Inputs, result: Result) -> str:
    if not inputs.from_probabilities:
        return ""
    return (
        "The logits are not negative and sum to 1 for each image, so they were used as "
        "probabilities. Pass the output before the softmax if they are not."
    )


PROBABILITIES = Regime("probabilities", _probabilities)
"""For measures of the source classifier: a softmax was applied to its logits."""
