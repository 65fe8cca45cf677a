"""Baselines that every measure must beat: properties of the checkpoint itself.

    num_parameters   log10 of the number of trainable parameters without the classifier
    feature_dim      D
    early_stopping   accuracy after part of the fine-tuning steps (Li et al. 2021,
                     section 4), recorded by the stage `finetune`
    source_accuracy  top-1 accuracy on the data set that it was trained on, if known
    static           a score per checkpoint from a CSV file, for example the ranking of
                     another task

All but early stopping are free and independent of the task. Cost: none. Range: at least
0; `early_stopping` [0, 1], or at most 1 for a number; `source_accuracy` [0, 100];
`static` any. Higher is assumed to mean better. Published by Li et al. (2021): early
stopping only. A ranking copied from another task is hard to beat on the accuracies
published for VTAB. Resampling the images changes none of these scores.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rankckpt_jax.data.targets import TARGETS
from rankckpt_jax.errors import InputError, some, suggest
from rankckpt_jax.measures.registry import (
    EXACT,
    FRACTION,
    Evidence,
    Inputs,
    Result,
    register,
)
from rankckpt_jax.storage import named_numbers


@register(
    "num_parameters",
    cost="none",
    targets=tuple(TARGETS),
    reads_images=False,
    bounds=(0.0, math.inf),
    tolerance=EXACT,
)
def num_parameters(inputs: Inputs) -> Result:
    """log10 of the checkpoint's number of parameters."""
    return _constant(np.log10(_get_fact(inputs, "num_parameters")))


@register(
    "feature_dim",
    cost="none",
    targets=tuple(TARGETS),
    reads_images=False,
    bounds=(1.0, math.inf),
    tolerance=EXACT,
)
def feature_dim(inputs: Inputs) -> Result:
    """D, the width of the features [N, D]."""
    return _constant(inputs.features.shape[1])


@register(
    "early_stopping",
    cost="fine-tuning",
    targets=tuple(TARGETS),
    bounds=(-math.inf, 1.0),
    tolerance=FRACTION,
)
def early_stopping(inputs: Inputs) -> Result:
    """Accuracy of a fine-tuning that was stopped early, at most 1."""
    return _constant(_get_fact(inputs, "early_stop_accuracy"))


@register(
    "source_accuracy",
    cost="none",
    targets=tuple(TARGETS),
    reads_images=False,
    evidence=Evidence(0.59, 28),
    bounds=(0.0, 100.0),
    tolerance=EXACT,
)
def source_accuracy(inputs: Inputs) -> Result:
    """Top-1 accuracy on the checkpoint's own training task, in percent."""
    return _constant(_get_fact(inputs, "source_accuracy"))


@register(
    "static",
    cost="none",
    targets=tuple(TARGETS),
    reads_images=False,
    tolerance=EXACT,
    files=("csv_file",),
)
def static(inputs: Inputs, csv_file: str = "") -> Result:
    """The score of the checkpoint in a CSV file with lines NAME,SCORE."""
    name = _get_fact(inputs, "name")
    if not csv_file:
        raise InputError(
            "The measure static needs a CSV file",
            where="measure_options.static.csv_file",
            fix="pass a file with lines NAME,SCORE",
        )
    scores = named_numbers.read(csv_file).numbers
    if name not in scores:
        raise InputError(
            f"The CSV file has no score for {name}",
            where=csv_file,
            expected=f"a line {name},SCORE",
            found="scores of " + (some(scores) or "no checkpoint"),
            fix=suggest(name, scores),
        )
    return _constant(scores[name].value)


def _constant(score: float) -> Result:
    """Return a result that does not depend on the images."""
    return Result(float(score))


def _get_fact(inputs: Inputs, name: str) -> Any:
    value = inputs.facts.get(name)
    if value is None:
        raise InputError(
            f"{name} of this checkpoint is not known",
            fix="leave the measure out, or add the value to the checkpoint's entry",
        )
    return value
