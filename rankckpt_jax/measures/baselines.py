"""What any measure must beat: facts of a checkpoint that its features do not tell.

    num_parameters   log10 of the trainable parameters without the classifier
    feature_dim      D
    early_stopping   accuracy after a share of the fine-tuning's steps (Li et al. 2021,
                     section 4; the stage `finetune` records it)
    source_accuracy  top-1 on the images it was trained on, where its entry knows it
    static           a score by the checkpoint's name from a CSV file: a ranking made
                     elsewhere, such as that on another task

All but early stopping are free and do not depend on the task. Cost: none here. Range:
at least 0; `early_stopping` [0, 1], `source_accuracy` [0, 100], `static` whatever its
file says. Higher is taken to mean better. Of these Li et al. (2021) publish early
stopping alone; a ranking copied from another task is hard to beat on VTAB's published
accuracies. No image decides them: a resample has the same score.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from rankckpt_jax.errors import InputError
from rankckpt_jax.measures.registry import Result, register


@register("num_parameters", bounds=(0.0, math.inf))
def num_parameters(
    features: jax.Array, labels: jax.Array, num_classes: int, facts: Mapping[str, Any]
) -> Result:
    """log10 of the checkpoint's number of parameters."""
    del features, labels, num_classes
    return _certain(float(np.log10(_known(facts, "num_parameters"))))


@register("feature_dim", bounds=(1.0, math.inf))
def feature_dim(features: jax.Array, labels: jax.Array, num_classes: int) -> Result:
    """D, the width of the features [N, D]."""
    del labels, num_classes
    return _certain(float(features.shape[1]))


@register("early_stopping", bounds=(0.0, 1.0))
def early_stopping(
    features: jax.Array, labels: jax.Array, num_classes: int, facts: Mapping[str, Any]
) -> Result:
    """Accuracy of a fine-tuning that was stopped early, in [0, 1]."""
    del features, labels, num_classes
    return _certain(float(_known(facts, "early_stop_accuracy")))


@register("source_accuracy", bounds=(0.0, 100.0))
def source_accuracy(
    features: jax.Array, labels: jax.Array, num_classes: int, facts: Mapping[str, Any]
) -> Result:
    """Top-1 accuracy where the checkpoint was trained, in per cent."""
    del features, labels, num_classes
    return _certain(float(_known(facts, "source_accuracy")))


@register("static")
def static(
    features: jax.Array,
    labels: jax.Array,
    num_classes: int,
    facts: Mapping[str, Any],
    csv_file: str = "",
) -> Result:
    """The score beside the checkpoint's name in a CSV file with a line "name,score"."""
    del features, labels, num_classes
    name = _known(facts, "name")
    if not csv_file:
        raise InputError(
            "A static list needs its file", where="measure_options.static.csv_file"
        )
    path = epath.Path(csv_file).expanduser()
    try:
        rows = list(csv.reader(path.read_text().splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError("Cannot read a static list", where=csv_file) from error
    scores = {row[0]: row[1] for row in rows if len(row) >= 2}
    try:
        return _certain(float(scores[name]))
    except (KeyError, ValueError):
        raise InputError(
            f"The static list has no score for {name}",
            where=csv_file,
            expected=f'a line "{name},SCORE"',
            found=scores.get(name, "no such line"),
        ) from None


def _certain(score: float) -> Result:
    """A score that stays what it is however often each image counts."""
    return Result(score, reweighted=lambda weights: score)


def _known(facts: Mapping[str, Any], name: str) -> Any:
    value = facts.get(name)
    if value is None:
        raise InputError(
            f"{name} of this checkpoint is not known",
            fix="leave the measure out, or give it in the checkpoint's entry",
        )
    return value
