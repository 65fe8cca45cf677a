"""Accuracies that were not measured here: VTAB's published ones, or from a file.

They stand in for checkpoints that have not been fine-tuned, so that a ranking can be
evaluated without weeks of an accelerator. Each row names the source of its accuracy.
"""

from __future__ import annotations

import csv
import dataclasses
import types
from collections.abc import Mapping, Sequence

from etils import epath

from rankckpt_jax.benchmark import neucrab
from rankckpt_jax.errors import InputError
from rankckpt_jax.results.row import Row

PUBLISHED = "published"
"""The value of `config.accuracies` that selects VTAB's accuracies."""

SCRATCH = "from_scratch"
"""The key of ACCURACIES for training from random initialization."""

SOURCE = (
    "VTAB (Zhai et al., 2019), google-research/task_adaptation, docs/data/results.csv"
)
"""The source of ACCURACIES."""

# Test accuracy in percent, first with 1000 training images, then with all of them; each
# in the order caltech, flowers, camelyon, sun.
_PERCENT = {
    "wae-ukl": (29.31, 13.12, 69.81, 3.32, 41.68, 17.22, 76.36, 12.04),
    "wae-gan": (29.92, 11.98, 69.01, 3.18, 42.04, 15.48, 77.13, 12.78),
    # Its full-size run on Caltech101 diverged, and was published like this.
    "cond-biggan": (62.06, 59.99, 77.18, 11.89, 0.15, 68.83, 81.29, 44.94),
    "wae-mmd": (35.46, 18.41, 73.83, 4.91, 50.79, 20.78, 80.62, 31.64),
    "vae": (34.31, 18.25, 72.59, 4.49, 48.44, 18.44, 81.27, 29.25),
    "uncond-biggan": (58.68, 49.89, 76.29, 9.43, 73.62, 63.54, 82.21, 46.87),
    "jigsaw": (66.73, 66.06, 76.04, 12.08, 79.10, 77.86, 83.01, 59.23),
    "relative-patch-location": (
        *(68.52, 69.04, 77.53, 11.07),
        *(79.87, 78.82, 85.32, 57.97),
    ),
    "exemplar": (69.57, 69.89, 79.13, 13.70, 81.91, 79.30, 84.71, 58.21),
    "rotation": (77.63, 68.75, 80.39, 12.85, 88.29, 83.37, 86.37, 60.47),
    "semi-rotation-10": (88.14, 87.63, 81.38, 26.98, 88.11, 93.18, 78.62, 66.72),
    "semi-exemplar-10": (88.55, 86.77, 83.15, 28.96, 85.28, 92.19, 86.03, 67.43),
    "sup-100": (90.95, 88.61, 80.61, 34.41, 94.11, 93.21, 83.93, 70.75),
    "sup-exemplar-100": (90.23, 88.30, 83.74, 34.55, 94.44, 93.42, 86.67, 69.41),
    SCRATCH: (38.24, 40.22, 75.62, 5.02, 55.89, 50.60, 81.19, 52.71),
}


def _accuracies() -> dict[str, dict[str, float]]:
    keys = [f"{task}_1k" for task in neucrab.TASKS] + list(neucrab.TASKS)
    return {
        key: {name: round(values[i] / 100, 6) for name, values in _PERCENT.items()}
        for i, key in enumerate(keys)
    }


ACCURACIES: Mapping[str, Mapping[str, float]] = types.MappingProxyType(_accuracies())
"""Published accuracies in [0, 1], by task ("caltech", or "caltech_1k") and name."""


def load_accuracies(given: str, task: str) -> tuple[Mapping[str, float], str]:
    """Return accuracies by checkpoint, and their source.

    Args:
      given: As `config.accuracies`: "", "published", or a CSV file with lines
        NAME,ACCURACY and optionally a heading. If any accuracy is above 1, all of them
        are percentages.
      task: The task's name.

    Raises:
      InputError: The file cannot be read.
    """
    if not given:
        return {}, ""
    if given == PUBLISHED:
        return ACCURACIES.get(task, {}), SOURCE
    path = epath.Path(given).expanduser()
    try:
        lines = [line for line in csv.reader(path.read_text().splitlines()) if line]
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(
            "Accuracies cannot be read",
            where=given,
            expected=f"a CSV file with lines NAME,ACCURACY, or {PUBLISHED!r}",
            found=getattr(error, "strerror", None) or str(error),
            fix="name another file with --config.accuracies",
        ) from error
    accuracies = {}
    for i, line in enumerate(lines):
        try:
            name, value = line[0].strip(), float(line[1])
            if not 0 <= value <= 100:
                raise ValueError("neither a fraction nor a percentage")
        except (IndexError, ValueError) as error:
            if i == 0:
                continue
            raise InputError(
                "A line of accuracies cannot be read",
                where=f"{given}, line {i + 1}",
                expected="NAME,ACCURACY",
                found=",".join(line),
                fix="write it like resnet_v1_50,0.87",
            ) from error
        accuracies[name] = value
    if any(value > 1 for value in accuracies.values()):
        accuracies = {name: value / 100 for name, value in accuracies.items()}
    return accuracies, path.name


def merge_accuracies(
    rows: Sequence[Row], accuracies: Mapping[str, float], source: str
) -> list[Row]:
    """Fill in the accuracy of rows that have none of their own."""
    return [
        dataclasses.replace(
            row, accuracy=accuracies[row.checkpoint], accuracy_source=source
        )
        if row.accuracy is None and row.checkpoint in accuracies
        else row
        for row in rows
    ]
