"""What features and images look like, for people: small pictures of large arrays."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from rankckpt_jax.data import pipeline
from rankckpt_jax.data.tasks import Split
from rankckpt_jax.measures.statistics import pca

ENERGY = 0.8
"""The share of the variance that NLEEP keeps."""

_MOST_ROWS = 4000
_MOST_CLASSES = 6
_ROWS_A_CLASS = 40


@dataclasses.dataclass(frozen=True)
class FeatureSummary:
    """What the features of one checkpoint look like.

    Attributes:
      checkpoint: Its name.
      cumulative: Share of the variance within the first 1, 2, ... components.
      dimensions: Components that hold more than ENERGY of it.
      between: Share of the variance that lies between classes, in [0, 1].
      points: (x, y) of some images of a few classes, in the plane in which the means
        of these classes differ most.
      labels: Which of `classes` each point is of.
      classes: Names of these classes.
    """

    checkpoint: str
    cumulative: tuple[float, ...]
    dimensions: int
    between: float
    points: tuple[tuple[float, float], ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Sample:
    """An image as a network sees it.

    Attributes:
      class_name: Of its label.
      size: Its side in pixels.
      jpeg: The file.
    """

    class_name: str
    size: int
    jpeg: bytes


def summarize(
    checkpoint: str, features: Any, labels: Any, class_names: Sequence[str] = ()
) -> FeatureSummary:
    """Looks at a checkpoint's features; at 4000 of them, drawn at random, at most.

    Args:
      checkpoint: Its name.
      features: float [N, D].
      labels: int [N].
      class_names: Class of each label; the labels themselves where there are none.
    """
    x, y = np.asarray(features, np.float32), np.asarray(labels)
    if len(x) > _MOST_ROWS:
        rows = np.sort(np.random.default_rng(0).permutation(len(x))[:_MOST_ROWS])
        x, y = x[rows], y[rows]
    fitted = pca.fit(x, ENERGY)
    cumulative = np.cumsum(fitted.explained)
    centered = x - x.mean(0)
    classes, positions, counts = np.unique(y, return_inverse=True, return_counts=True)
    means = np.stack([centered[positions == c].mean(0) for c in range(len(classes))])
    total = float((centered**2).sum())
    between = float((counts[:, None] * means**2).sum()) / total if total > 0 else 0.0
    shown = np.sort(np.argsort(-counts, kind="stable")[:_MOST_CLASSES])
    plane = means[shown] - means[shown].mean(0)
    _, _, directions = np.linalg.svd(plane, full_matrices=False)
    directions = np.vstack([directions, np.zeros((2, x.shape[1]))])[:2]
    points, labels_shown = [], []
    for place, c in enumerate(shown):
        rows = np.flatnonzero(positions == c)[:_ROWS_A_CLASS]
        projected = centered[rows] @ directions.T
        points += [(float(p[0]), float(p[1])) for p in projected]
        labels_shown += [place] * len(rows)
    names = [
        str(class_names[label]) if 0 <= label < len(class_names) else f"class {label}"
        for label in classes[shown]
    ]
    return FeatureSummary(
        checkpoint,
        tuple(float(share) for share in cumulative),
        len(fitted.components),
        between,
        tuple(points),
        tuple(labels_shown),
        tuple(names),
    )


def samples(
    split: Split,
    class_names: Sequence[str],
    *,
    size: int,
    preprocess: str,
    count: int = 8,
) -> tuple[Sample, ...]:
    """Takes a few images as they come out of the resizing that networks get.

    Args:
      split: Of the task; drawn at random where it can be picked from, else its first.
      class_names: Class of each label.
      size: Side in pixels.
      preprocess: See `preprocess.resize`.
      count: How many.
    """
    if split.subset is not None:
        order = np.random.default_rng(0).permutation(split.num_examples)
        split = split.subset("samples", np.sort(order[:count]))
    found: list[Sample] = []
    batches = pipeline.batches(
        split,
        size=size,
        preprocess=preprocess,
        batch_size=count,
        cache=pipeline.ImageCache(0),
    )
    for batch in batches:
        for image, label in zip(
            batch.images[batch.mask], batch.labels[batch.mask], strict=True
        ):
            found.append(Sample(str(class_names[label]), size, _jpeg(image)))
        break
    return tuple(found[:count])


def _jpeg(image: np.ndarray) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    pixels = np.rint(image.clip(0, 255)).astype(np.uint8)
    Image.fromarray(pixels).save(file, format="JPEG", quality=90)
    return file.getvalue()
