"""Predictions as a CSV file, and as a short text."""

from __future__ import annotations

import collections
import csv
import io
import pathlib

from rankckpt_jax.data import targets
from rankckpt_jax.errors import some
from rankckpt_jax.finetune.predict import Predictions
from rankckpt_jax.report.csv import text_cell

_MOST_CLASSES = 10


def to_csv(predictions: Predictions) -> str:
    """Return one line per image: file, prediction, and a probability per class.

    The prediction is a class, labels separated by ";", or a number. The column of the
    class NAME is `p_NAME`. Texts are written as in `csv.to_csv`.
    """
    names = [f"p_{name}" for name in predictions.class_names]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["file", "predicted", *map(text_cell, names)])
    for name, predicted, row in zip(
        predictions.files,
        _predicted(predictions),
        predictions.probabilities,
        strict=True,
    ):
        writer.writerow([text_cell(name), predicted, *(f"{p:.6g}" for p in row)])
    return file.getvalue()


def _predicted(predictions: Predictions) -> list[str]:
    if predictions.target == targets.REGRESSION:
        return [repr(float(number)) for number in predictions.numbers]
    if predictions.target == targets.MULTI_LABEL:
        return [text_cell(";".join(labels)) for labels in predictions.labels]
    return [text_cell(name) for name in predictions.classes]


def accuracy(predictions: Predictions) -> tuple[float, int] | None:
    """Return (accuracy, number of images) if the folders of images are the classes.

    The class of "NAME/a/b.jpg" is NAME, as in a folder that is fine-tuned on.

    Returns:
      None if an image is in no folder, or in one that is not a class.
    """
    true = [pathlib.PurePosixPath(name).parts[0] for name in predictions.files]
    nested = all("/" in name for name in predictions.files)
    known = set(predictions.class_names)
    if not true or not nested or not predictions.classes or set(true) - known:
        return None
    pairs = zip(predictions.classes, true, strict=True)
    return sum(first == second for first, second in pairs) / len(true), len(true)


def to_text(predictions: Predictions, output: str) -> str:
    """Return a summary of a few lines.

    Args:
      predictions: The predictions.
      output: The file that they were written to.
    """
    n = len(predictions)
    lines = [f"{n:,} {'image' if n == 1 else 'images'} predicted: {output}"]
    if predictions.classes:
        counts = collections.Counter(predictions.classes).most_common()
        shown = some([f"{name} {count:,}" for name, count in counts], _MOST_CLASSES)
        lines.append(f"Predicted classes: {shown}")
    elif predictions.target == targets.MULTI_LABEL:
        labels = collections.Counter(x for row in predictions.labels for x in row)
        shown = some(
            [f"{name} {count:,}" for name, count in labels.most_common()], _MOST_CLASSES
        )
        lines.append(f"Predicted labels: {shown or 'none'}")
    elif n:
        low, high = predictions.numbers.min(), predictions.numbers.max()
        lines.append(f"Predicted numbers: {low:.4g} to {high:.4g}")
    if (known := accuracy(predictions)) is not None:
        share, count = known
        lines.append(
            f"Accuracy {share:.1%} ({round(share * count):,} of {count:,} images are "
            "in the folder of their predicted class)"
        )
    if predictions.unreadable:
        reasons = [f"{name} ({why})" for name, why in predictions.unreadable.items()]
        many = len(reasons)
        lines.append(
            f"{many:,} {'file' if many == 1 else 'files'} could not be read and "
            f"{'is' if many == 1 else 'are'} left out: {some(reasons)}"
        )
    return "\n".join(lines)
