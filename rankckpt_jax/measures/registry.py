"""What a measure is, and the one registry of them.

A measure is a function `measure(features, labels, num_classes, ..., **options) ->
Result` in a file of its own, registered by name. It is handed checked input: float
features [N, D] and labels 0 ... C-1 [N]; and, where its signature names them, `logits`
[N, V], `seed`, `statistics` (sums that all measures of a checkpoint share) and `facts`
(what is known of the checkpoint apart from its features).
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rankckpt_jax.errors import InputError, suggest
from rankckpt_jax.measures.statistics.class_statistics import Statistics


@dataclasses.dataclass(frozen=True)
class Result:
    """What a measure found.

    Attributes:
      score: Higher means better transfer.
      details: What it can tell beyond the score; plain numbers, texts and lists.
      warning: One sentence where the score should be read with care; else empty.
      reweighted: The score as a function of how often each image counts [N], where the
        measure knows it from what it has computed; for the bootstrap.
    """

    score: float
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    warning: str = ""
    reweighted: Callable[[np.ndarray], float] | None = dataclasses.field(
        default=None, repr=False, compare=False
    )

    def __float__(self) -> float:
        """The score."""
        return self.score


Measure = Callable[..., Result]

Combine = Callable[[Sequence[Mapping[str, float]]], list[float]]
"""Scores of a pool's checkpoints from the terms of each."""

Bounds = tuple[float, float]
"""The least and the greatest score that a measure's definition allows."""

_GIVEN = (
    "features",
    "labels",
    "logits",
    "num_classes",
    "seed",
    "statistics",
    "facts",
)
_REGISTRY: dict[str, Measure] = {}
_NEED_LOGITS: set[str] = set()
_COMBINE: dict[str, Combine] = {}
_BOUNDS: dict[str, Bounds | Callable[[Mapping[str, Any]], Bounds]] = {}
_CHECKS: dict[str, Callable[[Mapping[str, Any]], None]] = {}

# How far rounding in float32 may carry a score beyond its bounds, relative to their
# size where that is above 1.
_ROUNDING = 1e-3


def register(
    name: str,
    *,
    needs_logits: bool = False,
    combine: Combine | None = None,
    bounds: Bounds | Callable[[Mapping[str, Any]], Bounds] = (-math.inf, math.inf),
    check: Callable[[Mapping[str, Any]], None] = lambda options: None,
) -> Callable[[Measure], Measure]:
    """Adds the decorated function as the measure `name`.

    Args:
      name: How configs and tables call it.
      needs_logits: Whether it reads the checkpoint's own classifier.
      combine: For a measure that is relative to a pool: makes the scores of a pool's
        checkpoints of the `details["terms"]` of each.
      bounds: Scores outside are a defect and are refused; a function of the options
        where they decide it.
      check: Refuses values of the options, before there are features to look at.
    """

    def add(measure: Measure) -> Measure:
        if name in _REGISTRY:
            raise ValueError(f"the measure {name!r} is registered twice")
        _REGISTRY[name] = measure
        if needs_logits:
            _NEED_LOGITS.add(name)
        if combine is not None:
            _COMBINE[name] = combine
        _BOUNDS[name] = bounds
        _CHECKS[name] = check
        return measure

    return add


def names() -> tuple[str, ...]:
    """Names of all measures; NLEEP, which the paper proposes, first."""
    return tuple(sorted(_REGISTRY, key=lambda name: (name != "nleep", name)))


def about(name: str) -> str:
    """What the measure `name` is, in one line: the first of its file, or its own."""
    measure = _find(name)
    module = inspect.getmodule(measure)
    # Files that hold several measures say of each what it is.
    alone = module is not None and module.__name__.rpartition(".")[2] == name
    text = (inspect.getdoc(module) if alone else "") or inspect.getdoc(measure) or ""
    return text.partition("\n")[0]


def requires_logits(name: str) -> bool:
    """Whether the measure `name` reads the checkpoint's own classifier.

    A pipeline asks before it computes, to skip the measure where there is none.

    Raises:
      InputError: There is no measure of that name.
    """
    _find(name)
    return name in _NEED_LOGITS


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Refuses options that the measure `name` would refuse, before there are features.

    Raises:
      InputError: There is no measure of that name, or it has no such option or value.
    """
    parameters = inspect.signature(_find(name)).parameters
    known = [p for p in parameters if p not in _GIVEN]
    if unknown := sorted(set(options) - set(known)):
        raise InputError(
            f"Unknown option of the measure {name!r}: {', '.join(unknown)}",
            where=f"measure_options.{name}",
            expected=", ".join(known) or "no options",
            found=", ".join(unknown),
            fix=suggest(unknown[0], known),
        )
    _CHECKS[name](options)


def is_relative(name: str) -> bool:
    """Whether the measure `name` has scores only within a pool; see `combine`."""
    _find(name)
    return name in _COMBINE


def combine(name: str, terms: Sequence[Mapping[str, float]]) -> list[float]:
    """Scores of a pool's checkpoints under a measure that is relative to the pool.

    Args:
      name: A measure for which `is_relative`.
      terms: Of each checkpoint, `details["terms"]` of its result.
    """
    return _COMBINE[name](terms)


def relative(values: Sequence[float]) -> np.ndarray:
    """Brings values to [0, 1] by the least and the greatest; 0 if all are equal."""
    array = np.asarray(values, np.float64)
    width = array.max() - array.min()
    return (array - array.min()) / width if width > 0 else np.zeros_like(array)


@dataclasses.dataclass(frozen=True, eq=False)
class Inputs:
    """A checkpoint's features on a task, checked, with what measures share.

    Attributes:
      features: float [N, D].
      labels: int32 [N] in 0 ... C-1.
      logits: float [N, V] or None.
      num_classes: C.
      statistics: Sums over the features, each made once.
      facts: What is known of the checkpoint: "name", "num_parameters", ...
    """

    features: jax.Array
    labels: jax.Array
    logits: jax.Array | None
    num_classes: int
    statistics: Statistics
    facts: Mapping[str, Any]


def prepare(
    features: Any,
    labels: Any,
    logits: Any = None,
    facts: Mapping[str, Any] | None = None,
    where: str = "",
) -> Inputs:
    """Checks what measures are computed from; arguments as for `compute`.

    Args:
      features: As for `compute`.
      labels: As for `compute`.
      logits: As for `compute`.
      facts: As for `compute`.
      where: The file that they are from, for an error.

    Raises:
      InputError: Shapes do not fit, or values are not finite.
    """
    features = _matrix("features", features, where)
    labels, num_classes = _labels(labels, len(features), where)
    if logits is not None:
        logits = _matrix("logits", logits, where)
        if len(logits) != len(features):
            raise InputError(
                "Features and logits are not of the same images",
                where=where or "logits",
                expected=f"{len(features)} rows of logits, as of features",
                found=f"{len(logits)}",
                fix="take both from the same pass over the images",
            )
    statistics = Statistics(features, labels, num_classes)
    return Inputs(features, labels, logits, num_classes, statistics, dict(facts or {}))


def compute(
    name: str,
    features: Any,
    labels: Any,
    logits: Any = None,
    seed: int = 0,
    facts: Mapping[str, Any] | None = None,
    num_bootstrap: int = 0,
    **options: Any,
) -> Result:
    """Scores one checkpoint on one task.

    Args:
      name: One of `names()`.
      features: float [N, D], NumPy or JAX; computed in float32, or in float64 where
        they are so and JAX has it enabled.
      labels: int [N], in any coding.
      logits: float [N, V] of the checkpoint's own classifier, if it has one.
      seed: Decides random starts.
      facts: What is known of the checkpoint apart from its features: "name",
        "num_parameters", "source_accuracy".
      num_bootstrap: Resamples of the images, with replacement within each class, over
        which `details["bootstrap_spread"]` is the score's standard deviation; its
        `spread` then holds both that and what random starts add. 0 for none.
      **options: The measure's own.

    Returns:
      The result; its score is finite.

    Raises:
      InputError: The measure or an option is unknown, the input's shapes do not fit,
        it has values that are not finite, or the measure is not defined for it.
    """
    inputs = prepare(features, labels, logits, facts)
    return compute_prepared(name, inputs, seed, num_bootstrap, **options)


def compute_all(
    features: Any,
    labels: Any,
    logits: Any = None,
    names: Iterable[str] | None = None,
    seed: int = 0,
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Result]:
    """Scores one checkpoint with several measures, which share their statistics.

    Args:
      features: As for `compute`.
      labels: As for `compute`.
      logits: As for `compute`.
      names: The measures; all that are registered if None.
      seed: As for `compute`.
      facts: As for `compute`.

    Returns:
      The result of each; of one that is not defined for this input, a score of NaN and
      a warning that says why. Each has `details["seconds"]`.
    """
    inputs = prepare(features, labels, logits, facts)
    found = {}
    for name in _REGISTRY if names is None else names:
        start = time.monotonic()
        try:
            result = compute_prepared(name, inputs, seed)
        except InputError as error:
            result = Result(math.nan, {}, error.what)
        details = {**result.details, "seconds": time.monotonic() - start}
        found[name] = dataclasses.replace(result, details=details)
    return found


def _check_bounds(name: str, score: float, options: Mapping[str, Any]) -> None:
    bounds = _BOUNDS[name]
    low, high = bounds(options) if callable(bounds) else bounds
    room = [_ROUNDING * max(1.0, abs(bound)) for bound in (low, high)]
    if not low - room[0] <= score <= high + room[1]:
        raise InputError(
            f"{name} came out outside its possible range",
            expected=f"from {low:g} to {high:g}",
            found=f"{score:g}",
            fix="this is a defect of the measure: please report it, with the features",
        )


def compute_prepared(
    name: str,
    inputs: Inputs,
    seed: int = 0,
    num_bootstrap: int = 0,
    **options: Any,
) -> Result:
    """As `compute`, from inputs that several measures share."""
    measure = _find(name)
    check_options(name, options)
    if name in _NEED_LOGITS and inputs.logits is None:
        raise InputError(
            f"{name} needs the checkpoint's own classifier, and it has none",
            expected="logits [N, source classes]",
            found="no logits",
            fix="rank by another measure, such as nleep",
        )
    result = _run(measure, inputs, seed, options)
    if not np.isfinite(result.score):
        raise InputError(
            f"{name} is not defined for these features",
            found=f"a score of {result.score}",
            fix="look for constant features, or classes with a single image",
        )
    _check_bounds(name, result.score, options)
    if num_bootstrap < 1:
        return result
    scores = _bootstrap(measure, inputs, seed, num_bootstrap, options, result)
    spread = float(np.std(scores, ddof=1)) if num_bootstrap > 1 else 0.0
    # Images and random starts vary independently of each other.
    both = float(np.hypot(spread, result.details.get("spread", 0.0)))
    details = {**result.details, "spread": both, "bootstrap_spread": spread}
    details["bootstrap_scores"] = scores
    return dataclasses.replace(result, details=details)


def _bootstrap(
    measure: Measure,
    inputs: Inputs,
    seed: int,
    count: int,
    options: Mapping[str, Any],
    result: Result,
) -> list[float]:
    """Scores of resamples of the images, drawn within each class.

    No class is lost and none changes its size. Where the measure knows its score from
    multiplicities, or is made of the shared statistics, images are weighted; only of
    the others are rows copied and the measure computed anew.
    """
    asked = inspect.signature(measure).parameters
    statistics = inputs.statistics
    groups = statistics.groups
    random = np.random.default_rng([seed, 1])
    scores = []
    for _ in range(count):
        drawn = np.concatenate([random.choice(group, len(group)) for group in groups])
        weights = np.bincount(drawn, minlength=len(inputs.labels)).astype(float)
        if result.reweighted is not None:
            scores.append(result.reweighted(weights))
            continue
        if "statistics" in asked:
            again = dataclasses.replace(
                inputs, statistics=statistics.reweighted(weights)
            )
        else:
            rows = np.sort(drawn)
            logits = None if inputs.logits is None else inputs.logits[rows]
            again = dataclasses.replace(
                inputs,
                features=inputs.features[rows],
                labels=inputs.labels[rows],
                logits=logits,
            )
        scores.append(_run(measure, again, seed, options).score)
    return scores


def _run(
    measure: Measure, inputs: Inputs, seed: int, options: Mapping[str, Any]
) -> Result:
    given = {
        "features": inputs.features,
        "labels": inputs.labels,
        "logits": inputs.logits,
        "num_classes": inputs.num_classes,
        "seed": seed,
        "statistics": inputs.statistics,
        "facts": inputs.facts,
    }
    asked = inspect.signature(measure).parameters
    # A TPU would multiply in bfloat16 by default, which no statistic survives.
    with jax.default_matmul_precision("highest"):
        return measure(
            **{name: value for name, value in given.items() if name in asked},
            **options,
        )


def _find(name: str) -> Measure:
    if name not in _REGISTRY:
        raise InputError(
            f"Unknown measure {name!r}",
            where="measures",
            expected=", ".join(names()),
            found=name,
            fix=suggest(name, names()),
        )
    return _REGISTRY[name]


def _matrix(what: str, array: Any, where: str) -> jax.Array:
    array = jnp.asarray(array)
    if array.ndim != 2 or 0 in array.shape:
        raise InputError(
            f"{what} must be a matrix",
            where=where or what,
            expected="shape [N, D] with N and D of at least 1",
            found=f"shape {list(array.shape)}",
            fix="pool over positions, so that each image has one vector",
        )
    if not jnp.issubdtype(array.dtype, jnp.floating):
        array = array.astype(jnp.float32)
    array = array.astype(jnp.promote_types(array.dtype, jnp.float32))
    bad = int(_count_not_finite(array))
    if bad:
        raise InputError(
            f"{what} must be finite",
            where=where or what,
            expected="finite numbers",
            found=f"{bad} NaN or infinite values",
            fix="look at the weights and the input range of the network they are from",
        )
    return array


@jax.jit
def _count_not_finite(array: jax.Array) -> jax.Array:
    return jnp.sum(~jnp.isfinite(array))


def _labels(labels: Any, num_examples: int, where: str) -> tuple[jax.Array, int]:
    labels = np.asarray(labels)
    if labels.shape != (num_examples,) or labels.dtype.kind not in "iub":
        raise InputError(
            "labels must be one integer per row of the features",
            where=where or "labels",
            expected=f"integers of shape [{num_examples}]",
            found=f"{labels.dtype} of shape {list(labels.shape)}",
            fix="take both from the same pass over the images",
        )
    classes, positions = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise InputError(
            "A measure of transfer needs at least two classes",
            where=where or "labels",
            expected="two different labels or more",
            found=f"only the label {classes[0]}",
            fix="give the features of images of every class",
        )
    return jnp.asarray(positions.reshape(-1), jnp.int32), len(classes)
