"""Metrics of predictions: how well the outputs of a fine-tuned network fit the labels.

scikit-learn and SciPy compute them. A class or label counts only if some, but not all,
of the images have it, because AUROC and average precision are undefined for others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from rankckpt_jax.errors import unknown_name


@dataclasses.dataclass(frozen=True)
class Metric:
    """One metric; higher is better, and 1 is the highest value.

    Attributes:
      name: Its name in configs and files.
      title: Its name in sentences.
      targets: The kinds of `targets.TARGETS` that it suits.
      compute: Maps outputs and labels of N images to its value. Outputs are logits
        float64 [N, C] or [N, L], or numbers float64 [N]. Labels are as in
        `Split.labels`; numbers may be scaled and shifted together with the outputs.
      is_share: Whether it is a share of images, shown as a percentage.
      lowest: Its lowest value.
    """

    name: str
    title: str
    targets: tuple[str, ...]
    compute: Callable[[np.ndarray, np.ndarray], float]
    is_share: bool = False
    lowest: float = 0.0


def accuracy(outputs: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of images whose highest logit is that of their class."""
    return float(np.mean(outputs.argmax(1) == labels))


def balanced_accuracy(outputs: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean over the classes that occur of their share of correct images."""
    totals = np.bincount(labels)
    correct = np.bincount(labels, outputs.argmax(1) == labels)
    occurs = totals > 0
    return float(np.mean(correct[occurs] / totals[occurs]))


def auroc(outputs: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean area under the ROC curve of each class or label against the rest.

    Images are ordered by the log softmax of a class, or by the logit of a label.
    """
    # Imported here for start-up time.
    import scipy.special
    from sklearn.metrics import roc_auc_score

    if labels.ndim == 1:
        outputs = scipy.special.log_softmax(outputs, axis=1)
    return _mean_over_columns(roc_auc_score, outputs, labels)


def mean_average_precision(outputs: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean over labels of the average precision, without interpolation."""
    # Imported here for start-up time.
    from sklearn.metrics import average_precision_score

    return _mean_over_columns(average_precision_score, outputs, labels)


def r2(outputs: np.ndarray, labels: np.ndarray) -> float:
    """Return 1 - sum of squared errors / sum of squared deviations from the mean."""
    # Imported here for start-up time.
    from sklearn.metrics import r2_score

    return float(r2_score(labels, outputs))


def spearman(outputs: np.ndarray, labels: np.ndarray) -> float:
    """Return Spearman's rank correlation; 0 if all outputs are equal."""
    # Imported here for start-up time.
    import scipy.stats

    if np.ptp(outputs) == 0:
        return 0.0
    return float(scipy.stats.spearmanr(outputs, labels).statistic)


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "accuracy", ("classes",), accuracy, True),
        Metric(
            *("balanced_accuracy", "balanced accuracy", ("classes",)),
            *(balanced_accuracy, True),
        ),
        Metric(
            "mean_average_precision",
            "mean average precision",
            ("multi_label",),
            mean_average_precision,
        ),
        Metric("auroc", "macro-AUROC", ("classes", "multi_label"), auroc),
        Metric("r2", "R2", ("regression",), r2, lowest=-np.inf),
        Metric("spearman", "Spearman", ("regression",), spearman, lowest=-1.0),
    )
}
"""All metrics by name. The first one of a kind of target is its default."""


def names(target: str) -> tuple[str, ...]:
    """Return the names of the metrics of a kind of target, the default first."""
    return tuple(m.name for m in METRICS.values() if target in m.targets)


def resolve(name: str, target: str, field: str = "config.finetune.metric") -> Metric:
    """Return a metric, by default that of a kind of target.

    Args:
      name: Name of the metric, or "" for the default.
      target: One of `targets.TARGETS`.
      field: Name of the field, for errors.

    Raises:
      InputError: There is no such metric of this kind.
    """
    known = names(target)
    if name and name not in known:
        raise unknown_name(f"metric of {target}", name, known, field)
    return METRICS[name or known[0]]


def compute(outputs: np.ndarray, labels: np.ndarray, target: str) -> dict[str, float]:
    """Return all metrics of a kind of target that are defined for some labels.

    Args:
      outputs: Finite, of any dtype; see `Metric.compute`.
      labels: See `Split.labels`.
      target: One of `targets.TARGETS`.
    """
    outputs = np.asarray(outputs, np.float64)
    return {
        name: METRICS[name].compute(outputs, labels)
        for name in names(target)
        if is_defined(name, labels)
    }


def is_defined(name: str, labels: np.ndarray) -> bool:
    """Return whether a metric is defined for the labels of a split."""
    if not len(labels):
        return False
    if labels.dtype == bool:
        return bool(_varying(labels).any())
    return "accuracy" in name or bool((labels != labels[0]).any())


def _mean_over_columns(
    score: Callable[[np.ndarray, np.ndarray], float],
    outputs: np.ndarray,
    labels: np.ndarray,
) -> float:
    """Return the mean of a score over the classes or labels that vary."""
    if labels.ndim == 1:
        classes = np.unique(labels)
        labels, outputs = labels[:, None] == classes, outputs[:, classes]
    columns = np.flatnonzero(_varying(labels))
    return float(np.mean([score(labels[:, i], outputs[:, i]) for i in columns]))


def _varying(labels: np.ndarray) -> np.ndarray:
    """Return which labels, bool [N, L], some but not all images have: bool [L]."""
    return np.logical_and(labels.any(0), ~labels.all(0))
