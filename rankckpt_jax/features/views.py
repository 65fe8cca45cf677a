"""Small summaries of large arrays, for the report: features and sample images."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from rankckpt_jax.data import pipeline
from rankckpt_jax.data.image_cache import ImageCache
from rankckpt_jax.data.splits import Split
from rankckpt_jax.errors import some
from rankckpt_jax.measures.statistics import pca

ENERGY = 0.8
"""Share of the variance that NLEEP keeps by default."""

_MAX_ROWS = 4000
_MAX_CLASSES = 6
_MAX_ROWS_PER_CLASS = 40


@dataclasses.dataclass(frozen=True)
class FeatureSummary:
    """Summary of one checkpoint's features.

    Attributes:
      checkpoint: Name of the checkpoint.
      cumulative: Share of the variance within the first 1, 2, ... principal components.
      dimensions: Number of components that hold more than ENERGY of the variance.
      between: Share of the variance that lies between classes, in [0, 1]; for other
        kinds of target, the share of it that a linear map of the labels explains.
      points: (x, y) of some images of a few classes, in the plane in which the means
        of these classes differ most; empty for other kinds of target.
      labels: Index into `classes` of each point.
      classes: Names of these classes.
      target: Kind of the labels, one of `data.targets.TARGETS`.
    """

    checkpoint: str
    cumulative: tuple[float, ...]
    dimensions: int
    between: float
    points: tuple[tuple[float, float], ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    target: str = "classes"


@dataclasses.dataclass(frozen=True)
class Sample:
    """An image as the network receives it.

    Attributes:
      class_name: Its label in words: the name of its class, the names of its labels,
        or its number.
      size: Its side in pixels.
      jpeg: The image as a JPEG file.
    """

    class_name: str
    size: int
    jpeg: bytes


def summarize(
    checkpoint: str,
    features: Any,
    labels: Any,
    class_names: Sequence[str] = (),
    target: str = "classes",
) -> FeatureSummary:
    """Summarize a checkpoint's features, of at most 4000 images drawn at random.

    Args:
      checkpoint: Name of the checkpoint.
      features: float [N, D].
      labels: [N] or [N, L]; see `data.splits.Split.labels`.
      class_names: Name of each label; "class LABEL" for labels without a name.
      target: Kind of the labels, one of `data.targets.TARGETS`.
    """
    x, y = np.asarray(features, np.float32), np.asarray(labels)
    if len(x) > _MAX_ROWS:
        rows = np.sort(np.random.default_rng(0).permutation(len(x))[:_MAX_ROWS])
        x, y = x[rows], y[rows]
    fitted = pca.fit(x, ENERGY)
    centered = x - x.mean(0)
    cumulative = tuple(float(share) for share in np.cumsum(fitted.explained))
    if target != "classes":
        share = _explained(centered, y)
        shown = cumulative, len(fitted.components), share, (), (), ()
        return FeatureSummary(checkpoint, *shown, target)
    classes, position, counts = np.unique(y, return_inverse=True, return_counts=True)
    means = np.stack([centered[position == c].mean(0) for c in range(len(classes))])
    total = float((centered**2).sum())
    between = float((counts[:, None] * means**2).sum()) / total if total > 0 else 0.0

    # The largest classes, in the plane of the first two principal axes of their means.
    chosen = np.sort(np.argsort(-counts, kind="stable")[:_MAX_CLASSES])
    offsets = means[chosen] - means[chosen].mean(0)
    _, _, axes = np.linalg.svd(offsets, full_matrices=False)
    axes = np.vstack([axes, np.zeros((2, x.shape[1]))])[:2]
    points, point_labels = [], []
    for i, c in enumerate(chosen):
        rows = np.flatnonzero(position == c)[:_MAX_ROWS_PER_CLASS]
        points += [(float(p[0]), float(p[1])) for p in centered[rows] @ axes.T]
        point_labels += [i] * len(rows)
    names = [
        str(class_names[label]) if 0 <= label < len(class_names) else f"class {label}"
        for label in classes[chosen]
    ]
    return FeatureSummary(
        checkpoint,
        cumulative,
        len(fitted.components),
        between,
        tuple(points),
        tuple(point_labels),
        tuple(names),
    )


def _explained(centered: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of the variance that a linear map of the labels explains."""
    design = np.asarray(labels, np.float64).reshape(len(labels), -1)
    basis, values, _ = np.linalg.svd(design - design.mean(0), full_matrices=False)
    # Directions of labels that depend on others have no length but rounding.
    basis = basis[:, values > values.max(initial=0) * 1e-9]
    total = float((centered**2).sum())
    return float(((basis.T @ centered) ** 2).sum()) / total if total > 0 else 0.0


def describe_label(label: Any, class_names: Sequence[str], target: str) -> str:
    """Return the label of an image in words.

    Args:
      label: A row of `data.splits.Split.labels`.
      class_names: The names of the classes or labels.
      target: Kind of the label, one of `data.targets.TARGETS`.
    """
    if target == "regression":
        return f"{float(label):.4g}"
    if target == "multi_label":
        own = [str(class_names[int(i)]) for i in np.flatnonzero(label)]
        return some(own, most=3) if own else "no label"
    return str(class_names[int(label)])


def samples(
    split: Split,
    class_names: Sequence[str],
    *,
    size: int,
    preprocess: str,
    count: int = 8,
) -> tuple[Sample, ...]:
    """Return a few images after resizing.

    Args:
      split: The images; drawn at random, or the first ones of a stream.
      class_names: Name of each label.
      size: Side in pixels.
      preprocess: The preprocessing; see `preprocess.resize`.
      count: Number of images.
    """
    if split.subset is not None:
        order = np.random.default_rng(0).permutation(split.num_examples)
        split = split.subset("samples", np.sort(order[:count]))
    for batch in pipeline.batches(
        split,
        size=size,
        preprocess=preprocess,
        batch_size=count,
        cache=ImageCache(None),
    ):
        return tuple(
            Sample(describe_label(label, class_names, split.target), size, _jpeg(image))
            for image, label in zip(
                batch.images[batch.mask], batch.labels[batch.mask], strict=True
            )
        )
    return ()


def _jpeg(image: np.ndarray) -> bytes:
    # Imported here for start-up time.
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, format="JPEG", quality=90)
    return file.getvalue()
