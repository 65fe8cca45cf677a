"""Computing measures: options, bounds, regimes and resampling of images."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from rankckpt_jax.data.targets import CLASSES
from rankckpt_jax.devices import mapping
from rankckpt_jax.errors import InputError, describe_unexpected
from rankckpt_jax.measures import regimes, registry, weight_spectra
from rankckpt_jax.measures.inputs import Inputs, prepare
from rankckpt_jax.measures.registry import Measure, Options, Result
from rankckpt_jax.measures.statistics import sampling

_MOST_DRAWS = 100
"""Draws of a half in which the target must vary."""

_log = logging.getLogger(__name__)

_ROUNDING = 1e-3
"""How far float32 rounding may carry a score beyond its bounds, relative to the bound
where that is above 1."""


def compute(
    name: str,
    features: Any,
    labels: Any,
    logits: Any = None,
    seed: int = 0,
    facts: Mapping[str, Any] | None = None,
    num_bootstrap: int = 0,
    target: Any = CLASSES,
    **options: Any,
) -> Result:
    """Score one checkpoint on one task.

    Args:
      name: One of `names()`.
      features: float [N, D], NumPy or JAX. Values are converted to float32, except
        float64 where JAX has it enabled.
      labels: int [N], in any coding; or bool [N, L] or float [N], see `target`.
      logits: float [N, V] of the checkpoint's own classifier, or None.
      seed: Seed of all random choices.
      facts: Properties of the checkpoint that features do not show: "name",
        "num_parameters", "source_accuracy", "early_stop_accuracy".
      num_bootstrap: Number of random halves of the images that are scored too, 0 or at
        least 2. They hold half of each stratum (each class; see `inputs`).
        `details["half_scores"]` are their scores, whose standard deviation is that of
        the score over images; see `sampling.half`. `details["spread"]` adds the
        variance of the mean over random restarts to it.
        `details["growth"]` is the score minus the mean score of the halves.
      target: The kind of the labels: "classes"; "multi_label", several labels per
        image; or "regression", one number. Features are taken as the option `target`
        of `rsa`.
      **options: Options of the measure.

    Returns:
      The result, with a finite score.

    Raises:
      InputError: The measure or an option does not exist, the arrays do not match or
        hold values that are not finite, or the measure is not defined for them.
    """
    if not isinstance(target, str):
        options, target = {**options, "target": target}, CLASSES
    inputs = prepare(features, labels, logits, facts, target=target)
    return compute_prepared(name, inputs, seed, num_bootstrap, **options)


@mapping.allow_transfers
def compute_all(
    features: Any,
    labels: Any,
    logits: Any = None,
    names: Iterable[str] | None = None,
    seed: int = 0,
    facts: Mapping[str, Any] | None = None,
    target: str = CLASSES,
) -> dict[str, Result]:
    """Score one checkpoint with several measures that share their statistics.

    Args:
      features: As for `compute`.
      labels: As for `compute`.
      logits: As for `compute`.
      names: Names of the measures; all if None.
      seed: As for `compute`.
      facts: As for `compute`.
      target: As for `compute`.

    Returns:
      The result of each measure, with its time in `details["seconds"]`. A measure that
      is not defined for these inputs, or that fails, has the score NaN and the reason
      as its warning.
    """
    inputs = prepare(features, labels, logits, facts, target=target)
    results = {}
    for name in registry.names() if names is None else names:
        start = time.monotonic()
        try:
            result = compute_prepared(name, inputs, seed)
        except Exception as error:
            result = failure(name, error)
        details = {**result.details, "seconds": time.monotonic() - start}
        results[name] = dataclasses.replace(result, details=details)
    return results


def failure(name: str, error: Exception) -> Result:
    """Return the result of a measure that raised `error`: NaN and the reason.

    The traceback of an unexpected error is logged.
    """
    if isinstance(error, InputError):
        return Result(math.nan, warning=error.what)
    _log.error("%s: failed", name, exc_info=error)
    return Result(math.nan, warning=f"{name} failed. {describe_unexpected(error)}")


@mapping.allow_transfers
def compute_prepared(
    name: str,
    inputs: Inputs,
    seed: int = 0,
    num_bootstrap: int = 0,
    **options: Any,
) -> Result:
    """Score inputs from `prepare`, which several measures can share; see `compute`."""
    measure = registry.get(name)
    measure.check_options(options)
    measure.check_target(inputs.target)
    check_num_bootstrap(num_bootstrap)
    if measure.needs_logits and inputs.logits is None:
        raise InputError(
            f"{name} needs the checkpoint's own classifier, and it has none",
            expected="logits [N, source classes]",
            found="no logits",
            fix="rank by another measure, such as nleep",
        )
    if measure.needs_weights and weight_spectra.FACT not in inputs.facts:
        raise InputError(
            f"{name} needs the weights of the checkpoint, and only features were given",
            expected="a checkpoint or a model",
            found="features that were made elsewhere",
            fix="rank the checkpoint itself, or leave the measure out",
        )
    inputs = dataclasses.replace(inputs, seed=seed)
    result = _run(measure, inputs, options)
    if measure.needs_logits:
        source = "probabilities" if inputs.from_probabilities else "logits"
        details = {**result.details, "classifier_output": source}
        result = dataclasses.replace(result, details=details)
    if not np.isfinite(result.score):
        raise InputError(
            f"{name} is not defined for these features",
            found=f"a score of {result.score}",
            fix="check for constant features and for classes with a single image",
        )
    _check_bounds(measure, result.score, options)
    result = _apply_regimes(measure, inputs, result, options)
    if num_bootstrap == 0:
        return result
    try:
        scores = _score_halves(measure, inputs, num_bootstrap, options)
    except InputError as error:
        # A half can have too few images.
        sentence = f"The spread over halves of the images is unknown. {error.what}."
        warning = f"{result.warning} {sentence}".strip()
        return dataclasses.replace(result, warning=warning)
    spread = float(np.std(scores, ddof=1))
    # Images and random restarts vary independently of each other.
    total = float(np.hypot(spread, result.details.get("spread", 0.0)))
    details = {**result.details, "spread": total, "half_scores": scores}
    details["growth"] = result.score - float(np.mean(scores))
    return dataclasses.replace(result, details=details)


def check_num_bootstrap(count: int) -> None:
    """Raise InputError unless a number of halves is 0 or at least 2."""
    if count < 0 or count == 1:
        raise InputError(
            "A standard deviation needs the scores of two halves of the images",
            where="num_bootstrap",
            expected="0, or at least 2",
            found=f"{count}",
            fix="8 halves give a coarse deviation, 20 a better one",
        )


def _run(measure: Measure, inputs: Inputs, options: Options) -> Result:
    # A TPU multiplies in bfloat16 by default, which is too coarse for statistics.
    with jax.default_matmul_precision("highest"):
        return measure.compute(inputs, **options)


def _check_bounds(measure: Measure, score: float, options: Options) -> None:
    low, high = measure.bounds_for(options)
    below, above = (_ROUNDING * max(1.0, abs(bound)) for bound in (low, high))
    if not low - below <= score <= high + above:
        raise InputError(
            f"The score of {measure.name} is outside its possible range",
            expected=f"from {low:g} to {high:g}",
            found=f"{score:g}",
            fix="this is a bug in the measure: please report it with the features",
        )


def _apply_regimes(
    measure: Measure, inputs: Inputs, result: Result, options: Options
) -> Result:
    """Add the sentences of regimes to the warning, and the name of a saturating one."""
    found = list(measure.regimes)
    if measure.needs_logits:
        found.append(regimes.PROBABILITIES)
    elif measure.reads_images:
        found += [regimes.EQUAL_CLASSES, regimes.EQUAL_ROWS]
    _, highest = measure.bounds_for(options)
    if math.isfinite(highest):
        found.append(regimes.maximum(lambda inputs: highest, measure.tolerance))
    sentences, details = [result.warning], dict(result.details)
    for regime in sorted(found, key=lambda regime: not regime.saturates):
        if sentence := regime.describe(inputs, result):
            sentences.append(sentence)
            if regime.saturates:
                details["saturated"] = regime.name
                # Nothing else matters for a score that means nothing.
                break
    warning = " ".join(filter(None, sentences))
    return dataclasses.replace(result, details=details, warning=warning)


def _score_halves(
    measure: Measure, inputs: Inputs, count: int, options: Options
) -> list[float]:
    """Return the scores of random halves of the images, the same for all checkpoints.

    Raises:
      InputError: Half of the images are too few.
    """
    images, dimensions = inputs.features.shape
    if measure.needs_more_images_than_dimensions and images // 2 <= dimensions:
        raise InputError(
            f"Half of the {images:,} images are too few for {dimensions:,} dimensions"
        )
    random = np.random.default_rng([inputs.seed, 1])
    halves = [_draw_half(inputs, random) for _ in range(count)]
    return [_run(measure, inputs.take(rows), options).score for rows in halves]


def _draw_half(inputs: Inputs, random: np.random.Generator) -> np.ndarray:
    """Draw half of the images; again, if a column of the target is constant.

    Raises:
      InputError: It was constant each time.
    """
    groups, columns = inputs.statistics.groups, inputs.statistics.columns
    for _ in range(_MOST_DRAWS):
        rows = sampling.half(groups, random)
        # Classes are strata, so that each occurs in every half.
        if columns is None or np.ptp(columns[rows], axis=0).all():
            return rows
    raise InputError("A label or number hardly varies, so half of the images lose it")
