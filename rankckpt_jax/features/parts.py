"""Features of some of a split's images: taken from others, joined and stored."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from rankckpt_jax.checkpoints import backbone as backbone_lib
from rankckpt_jax.checkpoints.description import Description
from rankckpt_jax.data.splits import Split
from rankckpt_jax.devices import processes
from rankckpt_jax.features import extract
from rankckpt_jax.features.feature_set import FeatureSet, from_store
from rankckpt_jax.storage import files, store


def take(feature_set: FeatureSet, rows: np.ndarray) -> FeatureSet:
    """Return the features of the images `rows`, int [n], in this order.

    The time that their extraction took is unknown.
    """
    return _with_arrays(
        feature_set,
        {name: array[rows] for name, array in _arrays(feature_set).items()},
        seconds=None,
        compile_seconds=None,
    )


def join(parts: Sequence[FeatureSet], rows: Sequence[np.ndarray]) -> FeatureSet:
    """Return the features of several parts of a split as one.

    Args:
      parts: Features of one checkpoint on disjoint parts.
      rows: For each part the positions of its images in the split, int [n].

    Returns:
      The features in the order of these positions. Their seconds are those of all
      parts together; None if one is unknown.
    """
    order = np.argsort(np.concatenate(rows), kind="stable")
    arrays = [_arrays(part) for part in parts]
    return _with_arrays(
        parts[0],
        {name: np.concatenate([a[name] for a in arrays])[order] for name in arrays[0]},
        seconds=_sum([part.seconds for part in parts]),
        compile_seconds=_sum([part.compile_seconds for part in parts]),
    )


def save(
    directory: epath.Path,
    checkpoint: Description | backbone_lib.Backbone,
    split: Split,
    feature_set: FeatureSet,
    **settings: Any,
) -> FeatureSet:
    """Store features of a split as `extract.extract_and_store` does; a collective.

    Args:
      directory: The checkpoint's `features` directory.
      checkpoint: The network, with or without its weights.
      split: Its images.
      feature_set: The features in the order of the split, equal in all processes.
      **settings: Arguments of `extract.make_key`.
    """
    key = extract.make_key(checkpoint, split, **settings)
    process, count = processes.process_index(), processes.process_count()
    result = {
        "seconds": feature_set.seconds,
        "compile_seconds": feature_set.compile_seconds,
        "images_left_out": dict(split.unreadable),
        **({"engine": feature_set.engine} if feature_set.engine else {}),
    }
    arrays = {
        name: array[process::count] for name, array in _arrays(feature_set).items()
    }
    place = epath.Path(directory) / split.name
    return from_store(key, store.save(place, key, result, arrays))


def _arrays(feature_set: FeatureSet) -> dict[str, np.ndarray]:
    arrays = {"features": feature_set.features, "labels": feature_set.labels}
    if feature_set.logits is not None:
        arrays["logits"] = feature_set.logits
    return arrays


def _with_arrays(
    feature_set: FeatureSet, arrays: Mapping[str, Any], **fields: Any
) -> FeatureSet:
    """Return the features with other arrays and a digest of them."""
    checksum = files.digest(*(array.tobytes() for array in arrays.values()))
    return dataclasses.replace(feature_set, **arrays, checksum=checksum, **fields)


def _sum(seconds: Sequence[float | None]) -> float | None:
    known = [second for second in seconds if second is not None]
    return sum(known) if len(known) == len(seconds) else None
