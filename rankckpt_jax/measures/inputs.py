"""The inputs of a measure: checked features, labels and logits of one checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rankckpt_jax.devices import mapping
from rankckpt_jax.errors import InputError
from rankckpt_jax.measures import arrays
from rankckpt_jax.measures.statistics.class_statistics import Statistics

_SUM_ROUNDING = 5e-3
"""Rounding error of a sum of probabilities in float16 or bfloat16."""


@dataclasses.dataclass(frozen=True, eq=False)
class Inputs:
    """The features of one checkpoint on one task, and what measures share.

    N images, D dimensions, C target classes, V source classes.

    Attributes:
      features: float [N, D], finite.
      labels: int32 [N] in 0 ... C-1; every class occurs.
      logits: float [N, V], or None if the checkpoint has no classifier.
      from_probabilities: Whether probabilities were passed as logits. `logits` are then
        their logarithms.
      num_classes: C, at least 2.
      statistics: Means, scatter and spectrum of the features, computed on first use.
      facts: Properties of the checkpoint, such as "name" and "num_parameters".
      seed: Seed of all random choices.
    """

    features: jax.Array
    labels: jax.Array
    logits: Any
    num_classes: int
    statistics: Statistics
    facts: Mapping[str, Any]
    from_probabilities: bool = False
    seed: int = 0

    def reweight(self, weights: np.ndarray) -> Inputs:
        """Return the inputs with statistics in which image i counts weights[i] times.

        Args:
          weights: float64 [N], not negative, with a positive sum in every class.
        """
        return dataclasses.replace(self, statistics=self.statistics.reweight(weights))

    def take(self, rows: np.ndarray) -> Inputs:
        """Return the inputs of the images `rows` [M]; every class must occur."""
        features, labels = self.features[rows], self.labels[rows]
        return dataclasses.replace(
            self,
            features=features,
            labels=labels,
            logits=None if self.logits is None else self.logits[rows],
            statistics=Statistics(features, labels, self.num_classes),
        )


@mapping.allow_transfers
def prepare(
    features: Any,
    labels: Any,
    logits: Any = None,
    facts: Mapping[str, Any] | None = None,
    where: str = "",
) -> Inputs:
    """Check and convert what measures are computed from.

    Args:
      features: float [N, D], NumPy or JAX. Values are converted to float32, except
        float64 where JAX has it enabled.
      labels: [N] or [N, 1], in any coding; see `arrays.to_labels`.
      logits: float [N, V] of the checkpoint's own classifier, or None. Probabilities,
        that is rows that are not negative and sum to 1, are replaced by their
        logarithms.
      facts: Properties of the checkpoint, such as "name" and "num_parameters".
      where: The file that the arrays were read from, for error messages.

    Raises:
      InputError: Shapes do not match, values are not finite, or fewer than two classes
        occur.
    """
    features = _check_matrix("features", features, where)
    labels, num_classes = _encode_labels(labels, len(features), where)
    if logits is not None:
        logits = _check_matrix("logits", logits, where)
        if len(logits) != len(features):
            raise InputError(
                "Features and logits have different numbers of rows",
                where=where or "logits",
                expected=f"{len(features)} rows of logits, one per row of features",
                found=f"{len(logits)}",
                fix="compute both in the same pass over the images",
            )
    from_probabilities = logits is not None and bool(_are_probabilities(logits))
    if from_probabilities:
        # A softmax of the logarithms returns the probabilities.
        logits = jnp.log(jnp.maximum(logits, jnp.finfo(logits.dtype).tiny))
    statistics = Statistics(features, labels, num_classes)
    return Inputs(
        features,
        labels,
        logits,
        num_classes,
        statistics,
        dict(facts or {}),
        from_probabilities,
    )


@jax.jit
def _are_probabilities(rows: jax.Array) -> jax.Array:
    """Return whether the rows are not negative and sum to 1."""
    sums = jnp.sum(rows, axis=1)
    return jnp.all(rows >= 0) & jnp.all(jnp.abs(sums - 1) < _SUM_ROUNDING)


def _check_matrix(name: str, array: Any, where: str) -> jax.Array:
    """Convert to float [N, D], at least float32; refuse values that are not finite."""
    array = jnp.asarray(arrays.to_numbers(name, array, where))
    if array.ndim != 2 or 0 in array.shape:
        raise InputError(
            f"{name} must be a matrix",
            where=where or name,
            expected="shape [N, D] with N and D of at least 1",
            found=f"shape {list(array.shape)}",
            fix="pool over positions, so that each image has one vector",
        )
    if not jnp.issubdtype(array.dtype, jnp.floating):
        array = array.astype(jnp.float32)
    array = array.astype(jnp.promote_types(array.dtype, jnp.float32))
    if not _all_finite(array):
        bad = np.count_nonzero(~np.isfinite(np.asarray(array)))
        raise InputError(
            f"{name} must be finite",
            where=where or name,
            expected="finite numbers",
            found=f"{bad} NaN or infinite values",
            fix="check the weights and the input range of the network",
        )
    return array


@jax.jit
def _all_finite(array: jax.Array) -> jax.Array:
    return jnp.all(jnp.isfinite(array))


def _encode_labels(labels: Any, num_examples: int, where: str) -> tuple[jax.Array, int]:
    """Convert labels in any coding to 0 ... C-1, and return them with C."""
    labels = arrays.to_labels(labels, num_examples, where)
    classes, indices = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise InputError(
            "A measure needs at least two classes",
            where=where or "labels",
            expected="at least two different labels",
            found=f"only the label {classes[0]}",
            fix="pass features of images of every class",
        )
    return jnp.asarray(indices.reshape(-1), jnp.int32), len(classes)
