"""The inputs of a measure: checked features, labels and logits of one checkpoint.

Images are split within strata: the classes; for several labels per image the
rarest label of each image, or none; for one number per image a single stratum.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rankckpt_jax.data import targets
from rankckpt_jax.devices import mapping
from rankckpt_jax.errors import InputError
from rankckpt_jax.measures import arrays
from rankckpt_jax.measures.statistics.class_statistics import Statistics

_SUM_ROUNDING = 5e-3
"""Rounding error of a sum of probabilities in float16 or bfloat16."""


@dataclasses.dataclass(frozen=True, eq=False)
class Inputs:
    """The features of one checkpoint on one task, and what measures share.

    N images, D dimensions, C target classes or L labels, V source classes.

    Attributes:
      features: float [N, D], finite.
      labels: int32 [N] in 0 ... C-1, and every class occurs. Several labels per image:
        bool [N, L], and every label occurs and is absent. One number per image: float64
        [N], not constant.
      logits: float [N, V], or None if the checkpoint has no classifier.
      from_probabilities: Whether probabilities were passed as logits. `logits` are then
        their logarithms.
      num_classes: C, at least 2; L; or 1 for numbers.
      statistics: Means, scatter and spectrum of the features, and their moments with
        the target, computed on first use.
      facts: Properties of the checkpoint, such as "name" and "num_parameters".
      seed: Seed of all random choices.
      target: The kind of the labels, one of `targets.TARGETS`.
    """

    features: jax.Array
    labels: Any
    logits: Any
    num_classes: int
    statistics: Statistics
    facts: Mapping[str, Any]
    from_probabilities: bool = False
    seed: int = 0
    target: str = targets.CLASSES

    def take(self, rows: np.ndarray) -> Inputs:
        """Return the inputs of the images `rows` [M]; every stratum must occur."""
        statistics = self.statistics.take(rows)
        return dataclasses.replace(
            self,
            features=self.features[rows],
            labels=self.labels[rows],
            logits=None if self.logits is None else self.logits[rows],
            statistics=statistics,
        )


@mapping.allow_transfers
def prepare(
    features: Any,
    labels: Any,
    logits: Any = None,
    facts: Mapping[str, Any] | None = None,
    where: str = "",
    target: str = targets.CLASSES,
) -> Inputs:
    """Check and convert what measures are computed from.

    Args:
      features: float [N, D], NumPy or JAX. Values are converted to float32, except
        float64 where JAX has it enabled.
      labels: The target: [N] classes in any coding, [N, L] booleans or [N] numbers; see
        `arrays.to_target`.
      logits: float [N, V] of the checkpoint's own classifier, or None. Probabilities,
        that is rows that are not negative and sum to 1, are replaced by their
        logarithms.
      facts: Properties of the checkpoint, such as "name" and "num_parameters".
      where: The file that the arrays were read from, for error messages.
      target: The kind of the labels, one of `targets.TARGETS`.

    Raises:
      InputError: Shapes do not match, values are not finite, fewer than two classes
        occur, no image or every image has a label, or all numbers are equal.
    """
    features = _check_matrix("features", features, where)
    labels = arrays.to_target(labels, len(features), target, where)
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
    labels, statistics = _ENCODE[target](features, labels, where)
    return Inputs(
        features,
        labels,
        logits,
        statistics.num_classes if target == targets.CLASSES else statistics.num_columns,
        statistics,
        dict(facts or {}),
        from_probabilities,
        target=target,
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


def _encode_classes(
    features: jax.Array, labels: np.ndarray, where: str
) -> tuple[jax.Array, Statistics]:
    """Number the classes 0 ... C-1."""
    classes, indices = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise InputError(
            "A measure needs at least two classes",
            where=where or "labels",
            expected="at least two different labels",
            found=f"only the label {classes[0]}",
            fix="pass features of images of every class",
        )
    encoded = jnp.asarray(indices.reshape(-1), jnp.int32)
    return encoded, Statistics(features, encoded, len(classes))


def _check_labels(
    features: jax.Array, labels: np.ndarray, where: str
) -> tuple[np.ndarray, Statistics]:
    """Check that each label tells images apart, and stratify by the rarest one."""
    counts = labels.sum(axis=0)
    for constant, images in ((counts == 0, "No"), (counts == len(labels), "Every")):
        if constant.any():
            raise InputError(
                f"{images} image has a label",
                where=where or "labels",
                expected="labels that some images have and others have not",
                found=f"{int(constant.sum())} of {len(counts)} columns, such as "
                f"column {int(np.argmax(constant))} (counted from 0)",
                fix="leave these columns out, or add images",
            )
    strata = np.unique(targets.rarest_label(labels), return_inverse=True)[1]
    columns = labels.astype(np.float64)
    return labels, Statistics(features, strata, int(strata.max()) + 1, columns=columns)


def _check_numbers(
    features: jax.Array, labels: np.ndarray, where: str
) -> tuple[np.ndarray, Statistics]:
    """Check that the numbers vary, and standardize them for the statistics."""
    # Divided first, because squares of large numbers overflow.
    numbers = labels / max(np.abs(labels).max(), np.finfo(float).tiny)
    if numbers.min() == numbers.max():
        raise InputError(
            "All images have the same number",
            where=where or "labels",
            expected="numbers that differ",
            found=f"{labels[0]:g} for each of {len(labels)} images",
            fix="pass features of images with other numbers",
        )
    columns = ((numbers - numbers.mean()) / numbers.std())[:, None]
    strata = np.zeros(len(labels), np.int64)
    return labels, Statistics(features, strata, 1, columns=columns)


_ENCODE = {
    targets.CLASSES: _encode_classes,
    targets.MULTI_LABEL: _check_labels,
    targets.REGRESSION: _check_numbers,
}
"""Functions that check labels by the kind of target."""
