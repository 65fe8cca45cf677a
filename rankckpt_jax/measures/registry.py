"""What a measure is, and the one registry of them.

A measure is a function `measure(features, labels, logits, num_classes, seed, **options)
-> Result` in a file of its own, registered by name. It is handed checked input: float
features [N, D], labels 0 ... C-1 [N], and logits [N, V] where it asks for them.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rankckpt_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Result:
    """What a measure found.

    Attributes:
      score: Higher means better transfer.
      details: What it can tell beyond the score; plain numbers, texts and lists.
      warning: One sentence where the score should be read with care; else empty.
    """

    score: float
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    warning: str = ""

    def __float__(self) -> float:
        """The score."""
        return self.score


Measure = Callable[..., Result]

_GIVEN = ("features", "labels", "logits", "num_classes", "seed")
_REGISTRY: dict[str, Measure] = {}
_NEED_LOGITS: set[str] = set()


def register(name: str, *, needs_logits: bool = False) -> Callable[[Measure], Measure]:
    """Adds the decorated function as the measure `name`.

    Args:
      name: How configs and tables call it.
      needs_logits: Whether it reads the checkpoint's own classifier.
    """

    def add(measure: Measure) -> Measure:
        if name in _REGISTRY:
            raise ValueError(f"the measure {name!r} is registered twice")
        _REGISTRY[name] = measure
        if needs_logits:
            _NEED_LOGITS.add(name)
        return measure

    return add


def names() -> tuple[str, ...]:
    """Names of all measures; NLEEP, which the paper proposes, first."""
    return tuple(sorted(_REGISTRY, key=lambda name: (name != "nleep", name)))


def requires_logits(name: str) -> bool:
    """Whether the measure `name` reads the checkpoint's own classifier.

    A pipeline asks before it computes, to skip the measure where there is none.

    Raises:
      InputError: There is no measure of that name.
    """
    _find(name)
    return name in _NEED_LOGITS


def compute(
    name: str,
    features: Any,
    labels: Any,
    logits: Any = None,
    seed: int = 0,
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
      **options: The measure's own.

    Returns:
      The result; its score is finite.

    Raises:
      InputError: The measure or an option is unknown, the input's shapes do not fit,
        it has values that are not finite, or the measure is not defined for it.
    """
    measure = _find(name)
    known = [p for p in inspect.signature(measure).parameters if p not in _GIVEN]
    if unknown := sorted(set(options) - set(known)):
        raise InputError(
            f"Unknown option of the measure {name!r}: {', '.join(unknown)}",
            expected=", ".join(known) or "no options",
        )
    features = _matrix("features", features)
    labels, num_classes = _labels(labels, len(features))
    if name not in _NEED_LOGITS:
        logits = None
    elif logits is None:
        raise InputError(
            f"{name} needs the checkpoint's own classifier, and it has none",
            expected="logits [N, source classes]",
        )
    else:
        logits = _matrix("logits", logits)
        if len(logits) != len(features):
            raise InputError(
                "Features and logits are not of the same images",
                expected=f"{len(features)} rows of logits",
                found=f"{len(logits)}",
            )
    # A TPU would multiply in bfloat16 by default, which no statistic survives.
    with jax.default_matmul_precision("highest"):
        result = measure(
            features=features,
            labels=labels,
            logits=logits,
            num_classes=num_classes,
            seed=seed,
            **options,
        )
    if not np.isfinite(result.score):
        raise InputError(
            f"{name} is not defined for these features",
            found=f"a score of {result.score}",
            mend="look for constant features, or classes with a single image",
        )
    return result


def _find(name: str) -> Measure:
    if name not in _REGISTRY:
        nearest = difflib.get_close_matches(name, names(), n=1)
        raise InputError(
            f"Unknown measure {name!r}",
            expected=", ".join(names()),
            mend=f"did you mean {nearest[0]!r}?" if nearest else "",
        )
    return _REGISTRY[name]


def _matrix(what: str, array: Any) -> jax.Array:
    array = jnp.asarray(array)
    if array.ndim != 2 or 0 in array.shape:
        raise InputError(
            f"{what} must be a matrix",
            expected="shape [N, D] with N and D of at least 1",
            found=f"shape {list(array.shape)}",
        )
    if not jnp.issubdtype(array.dtype, jnp.floating):
        array = array.astype(jnp.float32)
    array = array.astype(jnp.promote_types(array.dtype, jnp.float32))
    bad = int(jnp.sum(~jnp.isfinite(array)))
    if bad:
        raise InputError(
            f"{what} must be finite", found=f"{bad} NaN or infinite values"
        )
    return array


def _labels(labels: Any, num_examples: int) -> tuple[jax.Array, int]:
    labels = np.asarray(labels)
    if labels.shape != (num_examples,) or labels.dtype.kind not in "iub":
        raise InputError(
            "labels must be one integer per row of the features",
            expected=f"integers of shape [{num_examples}]",
            found=f"{labels.dtype} of shape {list(labels.shape)}",
        )
    classes, positions = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise InputError(
            "A measure of transfer needs at least two classes",
            found=f"only the label {classes[0]}",
        )
    return jnp.asarray(positions.reshape(-1), jnp.int32), len(classes)
