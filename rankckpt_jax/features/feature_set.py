"""The `FeatureSet`: the features of one checkpoint on one split of a task."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from rankckpt_jax.data import metrics, targets
from rankckpt_jax.errors import InputError
from rankckpt_jax.measures import arrays
from rankckpt_jax.storage import store

# Share by which an accuracy may exceed 1.
_ROUNDING = 1e-6


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureSet:
    """Features of one checkpoint, extracted here or made elsewhere.

    Attributes:
      features: float [N, D], pooled, before the classifier, in the split's order.
      labels: int [N], or as `target` says; see `data.splits.Split.labels`.
      logits: float [N, V] of the checkpoint's own V classes; None without a classifier.
      checksum: Digest of the arrays.
      seconds: Time that extraction took; None if unknown.
      compile_seconds: The part of it that was spent on compiling; None if unknown.
      architecture: Name of the network; empty if unknown.
      image_size: Side of the network's input in pixels; None if unknown.
      accuracy: Accuracy after fine-tuning, in [0, 1]; None if unknown.
      num_parameters: Parameters of the network; None if unknown.
      engine: What computed the features of a PyTorch network; see `Backbone`.
      target: Kind of the labels, one of `data.targets.TARGETS`.
    """

    features: np.ndarray
    labels: np.ndarray
    logits: np.ndarray | None
    checksum: str
    seconds: float | None = None
    compile_seconds: float | None = None
    architecture: str = ""
    image_size: int | None = None
    accuracy: float | None = None
    num_parameters: int | None = None
    engine: str = ""
    target: str = "classes"


def from_arrays(
    features: Any,
    labels: Any,
    logits: Any = None,
    *,
    where: str,
    target: str = targets.CLASSES,
    checksum: str = "",
    accuracy: Any = None,
    num_parameters: Any = None,
) -> FeatureSet:
    """Build a `FeatureSet` from what a user passes.

    Args:
      features: [N, D]; see `arrays.to_numbers`.
      labels: [N], or [N, L]; see `arrays.to_target`.
      logits: [N, V], or None.
      where: The file or entry that the values came from, for errors.
      target: Kind of the labels, one of `targets.TARGETS`.
      checksum: Digest of the arrays.
      accuracy: See `to_accuracy`.
      num_parameters: A number of at least 1, or None.

    Raises:
      InputError: A value cannot be used.
    """
    x = np.asarray(arrays.to_numbers("features", features, where))
    y = arrays.to_target(labels, len(x) if x.ndim else 0, target, where)
    if logits is not None:
        logits = np.asarray(arrays.to_numbers("logits", logits, where))
    return FeatureSet(
        x,
        y,
        logits,
        checksum,
        accuracy=to_accuracy(accuracy, where, target),
        num_parameters=_to_count(num_parameters, where),
        target=target,
    )


def to_accuracy(value: Any, where: str, target: str = targets.CLASSES) -> float | None:
    """Return an accuracy, or the default metric of another kind of target.

    Args:
      value: A single number, which may exceed 1 by rounding, or None. NaN and None are
        returned as they are.
      where: The file or entry that it came from, for errors.
      target: Kind of the labels, one of `targets.TARGETS`.

    Raises:
      InputError: It is not a number from 0 to 1; R2 of numbers can be negative.
    """
    lowest = metrics.resolve("", target).lowest
    accuracy = _to_number("accuracy", value, where)
    if accuracy is None or math.isnan(accuracy):
        return accuracy
    if not lowest <= accuracy <= 1 + _ROUNDING:
        is_percentage = 1 < accuracy <= 100
        raise InputError(
            "An accuracy is not a fraction",
            where=where,
            expected=f"a number from {lowest:g} to 1",
            found=f"{accuracy:g}",
            fix="divide percentages by 100" if is_percentage else "correct the value",
        )
    return min(accuracy, 1.0)


def _to_count(value: Any, where: str) -> int | None:
    count = _to_number("num_parameters", value, where)
    if count is None:
        return None
    if not 1 <= count < math.inf:
        raise InputError(
            "num_parameters is not a count",
            where=where,
            expected="a finite number of at least 1",
            found=f"{count:g}",
            fix="leave it out if it is unknown",
        )
    return int(count)


def _to_number(name: str, value: Any, where: str) -> float | None:
    if value is None:
        return None
    array = np.asarray(arrays.to_numbers(name, value, where))
    if array.size != 1:
        raise InputError(
            f"{name} must be a single number",
            where=where,
            expected="one integer or float",
            found=f"{array.dtype} of shape {list(array.shape)}",
            fix=f"pass {name}=0.9" if name == "accuracy" else f"pass {name}=25_000_000",
        )
    return float(array.reshape(()))


def from_store(key: Mapping[str, Any], entry: store.Entry) -> FeatureSet:
    """Build a `FeatureSet` from a stored entry and its key (see `extract.make_key`)."""
    return FeatureSet(
        entry.arrays["features"],
        entry.arrays["labels"],
        entry.arrays.get("logits"),
        entry.checksum,
        seconds=entry.result.get("seconds"),
        compile_seconds=entry.result.get("compile_seconds"),
        architecture=str(key.get("architecture", "")),
        image_size=key.get("image_size"),
        engine=entry.result.get("engine", ""),
        target=key.get("target", "classes"),
    )
