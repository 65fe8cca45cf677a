"""Accuracies that were not measured here: published ones, or from a file.

They stand in for checkpoints that have not been fine-tuned, so that a ranking can be
evaluated without weeks of an accelerator. Each row names the source of its accuracy.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Iterable, Mapping, Sequence

from etils import epath

from rankckpt_jax.benchmark import neucrab, standard
from rankckpt_jax.errors import InputError, some
from rankckpt_jax.results.row import Row
from rankckpt_jax.storage import named_numbers

PUBLISHED = "published"
"""The value of `config.accuracies` that selects VTAB's, or those of `standard`."""

SCRATCH = "from_scratch"
"""The key of ACCURACIES for training from random initialization."""

SOURCE = (
    "VTAB (Zhai et al., 2019), google-research/task_adaptation, docs/data/results.csv"
)
"""The source of ACCURACIES."""

# Share by which an accuracy may exceed 1 or 100 %.
_ROUNDING = 1e-6

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

    The accuracies of a file are percentages if its heading contains "%" or "percent",
    if each has a percent sign, or if one is above 1. Otherwise they are fractions.
    Without a sign or heading, a file with values both above and below 1 is refused. A
    value may exceed its limit by rounding (1e-6 of it).

    Args:
      given: As `config.accuracies`: "", "published", or a CSV file with lines
        NAME,ACCURACY; see `named_numbers.read`.
      task: The task's name.

    Returns:
      (accuracies in [0, 1], source).

    Raises:
      InputError: The file cannot be read, has no accuracies, mixes fractions with
        percentages, or has a value that is neither.
    """
    if not given:
        return {}, ""
    if given == PUBLISHED:
        accuracies, source = standard.accuracies(task)
        if accuracies:
            return accuracies, source
        return ACCURACIES.get(task, {}), SOURCE
    table = named_numbers.read(given)
    if not table.numbers:
        raise InputError(
            "The file has no accuracies",
            where=given,
            expected=f"a CSV file with lines NAME,ACCURACY, or {PUBLISHED!r}",
            found="no line with a name and a number",
            fix="write lines like resnet_v1_50,0.87",
        )
    scale = 100 if _are_percentages(table, given) else 1
    for name, number in table.numbers.items():
        if not 0 <= number.value <= scale * (1 + _ROUNDING):
            raise InputError(
                f"The accuracy of {name!r} is out of range",
                where=f"{given}, line {number.line}",
                expected="a fraction from 0 to 1 or a percentage from 0 to 100",
                found=f"{number.value:g}",
                fix="correct the line",
            )
    accuracies = {n: min(a.value / scale, 1.0) for n, a in table.numbers.items()}
    return accuracies, epath.Path(given).name


def _are_percentages(table: named_numbers.NamedNumbers, where: str) -> bool:
    """Return whether a file has percentages; raise InputError if it mixes the two."""
    if "%" in table.heading or "percent" in table.heading.lower():
        return True
    percentages, fractions = {}, {}
    by_sign = any(number.percent for number in table.numbers.values())
    for name, number in table.numbers.items():
        is_large = number.value > 1 + _ROUNDING
        if number.percent if by_sign else is_large:
            percentages[name] = number
        # 0 is the same in both.
        elif number.value:
            fractions[name] = number
    if percentages and fractions:
        (one, percentage), (other, fraction) = (
            next(iter(numbers.items())) for numbers in (percentages, fractions)
        )
        raise InputError(
            "The accuracies mix fractions and percentages",
            where=f"{where}, lines {percentage.line} and {fraction.line}",
            expected="only fractions from 0 to 1, or only percentages from 0 to 100",
            found=f"{percentage.value:g}{'%' if by_sign else ''} for {one!r} and "
            f"{fraction.value:g} for {other!r}",
            fix=f"divide the percentages by 100; or, if {fraction.value:g} means "
            f"{fraction.value:g} %, name the column 'accuracy %'",
        )
    return bool(percentages)


def describe_unmatched(names: Iterable[str], checkpoints: Iterable[str]) -> str:
    """Describe accuracies whose names match no checkpoint; empty if all match.

    Example:
      >>> describe_unmatched(["net_1", "net2"], ["net1", "net2"])
      "1 of 2 accuracies match no checkpoint: 'net_1' (did you mean 'net1'?)"

    Args:
      names: The names of the accuracies.
      checkpoints: The names of the pool.
    """
    names, known = list(names), list(checkpoints)
    unmatched = []
    for name in sorted(set(names) - set(known)):
        nearest = difflib.get_close_matches(name, known, n=1)
        hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
        unmatched.append(f"{name!r}{hint}")
    if not unmatched:
        return ""
    return f"{len(unmatched)} of {len(names)} accuracies match no checkpoint: " + some(
        unmatched
    )


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
