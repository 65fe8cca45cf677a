"""Accuracies that were not measured here: from a file, or published.

They stand in where a checkpoint has not been fine-tuned, so that a ranking can be
judged without weeks of an accelerator. A row says where its accuracy is from.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Mapping, Sequence

from etils import epath

from rankckpt_jax.benchmark import neucrab
from rankckpt_jax.errors import InputError
from rankckpt_jax.results.row import Row

PUBLISHED = "published"
"""The value of `config.accuracies` that means VTAB's figures."""


def load_accuracies(given: str, task: str) -> tuple[Mapping[str, float], str]:
    """Accuracies by name of checkpoint, and where they are from.

    Args:
      given: As `config.accuracies`: "", "published", or a CSV file of lines
        NAME,ACCURACY; a first line that is no number is a heading. Accuracies above 1
        are per cent.
      task: The task's name.

    Raises:
      InputError: The file cannot be read.
    """
    if not given:
        return {}, ""
    if given == PUBLISHED:
        return neucrab.PUBLISHED.get(task, {}), neucrab.PUBLISHED_SOURCE
    path = epath.Path(given).expanduser()
    try:
        lines = [line for line in csv.reader(path.read_text().splitlines()) if line]
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(
            "Accuracies cannot be read",
            where=given,
            expected=f"a CSV file of lines NAME,ACCURACY, or {PUBLISHED!r}",
            found=getattr(error, "strerror", None) or str(error),
            fix="name another with --config.accuracies",
        ) from error
    found = {}
    for i, line in enumerate(lines):
        try:
            name, value = line[0].strip(), float(line[1])
            if not 0 <= value <= 100:
                raise ValueError("no share and no per cent")
        except (IndexError, ValueError) as error:
            if i == 0:
                continue
            raise InputError(
                "A line of accuracies cannot be read",
                where=f"{given}, line {i + 1}",
                expected="NAME,ACCURACY",
                found=",".join(line),
                fix="such as resnet_v1_50,0.87",
            ) from error
        found[name] = value
    if any(value > 1 for value in found.values()):
        found = {name: value / 100 for name, value in found.items()}
    return found, str(path.name)


def merge_accuracies(
    rows: Sequence[Row], accuracies: Mapping[str, float], source: str
) -> list[Row]:
    """Gives rows without an accuracy the one that is known otherwise."""
    return [
        dataclasses.replace(
            row, accuracy=accuracies[row.checkpoint], accuracy_source=source
        )
        if row.accuracy is None and row.checkpoint in accuracies
        else row
        for row in rows
    ]
