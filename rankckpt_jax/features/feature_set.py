"""The `FeatureSet`: the features of one checkpoint on one split of a task."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from rankckpt_jax.storage import store


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureSet:
    """Features of one checkpoint, extracted here or made elsewhere.

    Attributes:
      features: float [N, D], pooled, before the classifier, in the split's order.
      labels: int [N].
      logits: float [N, V] of the checkpoint's own V classes; None without a classifier.
      checksum: Digest of the arrays.
      seconds: Time that extraction took; None if unknown.
      architecture: Name of the network; empty if unknown.
      image_size: Side of the network's input in pixels; None if unknown.
      accuracy: Accuracy after fine-tuning, in [0, 1]; None if unknown.
      num_parameters: Parameters of the network; None if unknown.
    """

    features: np.ndarray
    labels: np.ndarray
    logits: np.ndarray | None
    checksum: str
    seconds: float | None = None
    architecture: str = ""
    image_size: int | None = None
    accuracy: float | None = None
    num_parameters: int | None = None


def from_store(key: Mapping[str, Any], entry: store.Entry) -> FeatureSet:
    """Build a `FeatureSet` from a stored entry and its key (see `extract.make_key`)."""
    return FeatureSet(
        entry.arrays["features"],
        entry.arrays["labels"],
        entry.arrays.get("logits"),
        entry.checksum,
        seconds=entry.result.get("seconds"),
        architecture=str(key.get("architecture", "")),
        image_size=key.get("image_size"),
    )
