"""The paper's table from finished runs: measures by group, averaged over tasks.

    python -m rankckpt_jax.benchmark --workdir=runs
    python -m rankckpt_jax.benchmark --workdir=runs --published=figures.csv

Reads every `WORKDIR/TASK/ranking.csv` and prints one table per group of checkpoints,
with one row per measure (Recall@1, Rel@1, Recall@3, Rel@3, Pearson, Kendall). Also
writes benchmark.csv and benchmark.html into the work directory. As in the paper, each
figure is a mean over the tasks. Published figures appear in brackets beside ours, from
a file with lines

    group,measure,recall@1,rel@1,recall@3,rel@3,pearson,kendall

in which unknown cells are empty.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from etils import epath

from rankckpt_jax import evaluation
from rankckpt_jax.benchmark import neucrab
from rankckpt_jax.errors import InputError
from rankckpt_jax.report import CSV_NAME, rendering, terminal
from rankckpt_jax.report import csv as report_csv
from rankckpt_jax.results.formatting import format_decimal, printable
from rankckpt_jax.results.ranking import Ranking
from rankckpt_jax.storage import files

COLUMNS = ("recall@1", "rel@1", "recall@3", "rel@3", "pearson", "kendall")
"""Columns of the paper's table, keys of `evaluation.score_ranking`."""

ALL = "all"
"""The only group, if no checkpoint belongs to a group."""

RANDOM = "random order"
"""Name of the baseline row."""


@dataclasses.dataclass(frozen=True)
class Line:
    """One measure within one group.

    Attributes:
      group: Group of checkpoints.
      measure: Name of the measure, or RANDOM.
      by_task: Result of `score_ranking` for each task with at least two pairs.
      pairs: Number of checkpoints with both a score and an accuracy, by task.
      published: Published figures by column; may be empty.
    """

    group: str
    measure: str
    by_task: Mapping[str, Mapping[str, float]]
    pairs: Mapping[str, int]
    published: Mapping[str, float]

    @property
    def mean(self) -> dict[str, float]:
        """Means over the tasks; NaN if a figure is undefined in all of them."""
        means = evaluation.mean_over_tasks(self.by_task)
        return {key: means.get(key, math.nan) for key in COLUMNS}


def read(workdir: epath.PathLike) -> tuple[Ranking, ...]:
    """Read the rankings of all tasks in a work directory, sorted by task.

    Raises:
      InputError: There are none, or one cannot be read.
    """
    directory = files.to_path(workdir)
    folders = files.matching(directory, "*")
    paths = [folder / CSV_NAME for folder in folders if (folder / CSV_NAME).exists()]
    if not paths:
        raise InputError(
            "No finished run",
            where=str(workdir),
            expected=f"TASK/{CSV_NAME} below it",
            fix="run the stage `report` for each task: --config.stages=report",
        )
    return tuple(
        report_csv.from_csv(file.read_text(), file.parent.name, str(file))
        for file in paths
    )


def tabulate(
    rankings: Sequence[Ranking],
    published: Mapping[tuple[str, str], Mapping[str, float]] | None = None,
) -> tuple[Line, ...]:
    """Return one line per measure and group, and one per group for a random order.

    Args:
      rankings: Rankings of the same checkpoints on different tasks.
      published: Published figures by (group, measure).
    """
    published = published or {}
    measures = dict.fromkeys(m for ranking in rankings for m in ranking.measures)
    present = {g for r in rankings for row in r.rows for g in row.groups}
    groups = [g for g in neucrab.GROUPS if g in present]
    groups += sorted(present - set(groups))
    lines = []
    for group in groups or [ALL]:
        for measure in [*measures, RANDOM]:
            by_task, pairs = {}, {}
            for ranking in rankings:
                # The baseline uses the checkpoints that the first measure scores.
                name = ranking.measures[0] if measure == RANDOM else measure
                rows = ranking.evaluated_rows(name, "" if group == ALL else group)
                if len(rows) < 2:
                    continue
                scores = [row.scores[name] for row in rows]
                accuracies = [row.finite_accuracy() for row in rows]
                by_task[ranking.task] = (
                    evaluation.random_ranking(accuracies)
                    if measure == RANDOM
                    else evaluation.score_ranking(scores, accuracies)
                )
                pairs[ranking.task] = len(rows)
            others = published.get((group, measure), {})
            if by_task or others:
                lines.append(Line(group, measure, by_task, pairs, others))
    return tuple(lines)


def read_published(
    path: epath.PathLike,
) -> dict[tuple[str, str], dict[str, float]]:
    """Read published figures by (group, measure) from a file; see the module.

    Raises:
      InputError: The file cannot be read.
    """
    expected = "the columns group, measure and some of " + ", ".join(COLUMNS)
    try:
        reader = csv.DictReader(io.StringIO(files.to_path(path).read_text()))
        return {
            (line["group"], line["measure"]): {
                key: float(line[key]) for key in COLUMNS if line.get(key)
            }
            for line in reader
        }
    except (OSError, KeyError, ValueError) as error:
        raise InputError(
            "Published figures cannot be read",
            where=str(path),
            expected=expected,
            found=f"{type(error).__name__}: {error}",
            fix="leave the cells of unknown figures empty",
        ) from error


def to_text(lines: Sequence[Line]) -> str:
    """Format the tables for a terminal, with published figures in brackets."""
    blocks = []
    for group in dict.fromkeys(line.group for line in lines):
        cells = [["measure", "tasks", *COLUMNS]]
        for line in lines:
            if line.group == group:
                figures = [_figure(line, key) for key in COLUMNS]
                cells.append(
                    [printable(line.measure), str(len(line.by_task)), *figures]
                )
        blocks.append(
            f"{printable(neucrab.title(group))}\n{terminal.align(cells, left=[0])}"
        )
    return "\n\n".join(blocks)


def _figure(line: Line, key: str) -> str:
    ours = format_decimal(line.mean[key])
    return f"{ours} ({line.published[key]:.2f})" if key in line.published else ours


def to_csv(lines: Sequence[Line]) -> str:
    """Format every figure in full precision: means over the tasks, and each task."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["group", "measure", "task", "checkpoints", *COLUMNS])
    for line in lines:
        for task, scores in {"mean": line.mean, **line.by_task}.items():
            figures = [scores[key] for key in COLUMNS]
            count = line.pairs.get(task, "")
            writer.writerow(
                [*map(report_csv.text_cell, (line.group, line.measure, task)), count]
                + ["" if math.isnan(value) else repr(value) for value in figures]
            )
    return file.getvalue()


def to_html(lines: Sequence[Line]) -> str:
    """Render the tables and, per group, a map of Kendall's tau by measure and task."""
    tasks = list(dict.fromkeys(task for line in lines for task in line.by_task))
    return rendering.render(
        "benchmark.html.j2",
        tasks=[printable(task) for task in tasks],
        columns=[name.capitalize() for name in COLUMNS],
        groups=[
            _group_for_page(group, [x for x in lines if x.group == group], tasks)
            for group in dict.fromkeys(line.group for line in lines)
        ],
    )


def _group_for_page(
    group: str, lines: Sequence[Line], tasks: Sequence[str]
) -> dict[str, Any]:
    measures = [line for line in lines if line.measure != RANDOM]
    best = {
        key: max(
            (v for x in measures if not math.isnan(v := x.mean[key])), default=None
        )
        for key in COLUMNS
    }
    return {
        "title": printable(neucrab.title(group)),
        "rows": [
            {
                "measure": printable(line.measure),
                "baseline": line.measure == RANDOM,
                "cells": [
                    {
                        "text": format_decimal(line.mean[key]),
                        "best": line in measures and line.mean[key] == best[key],
                        "published": f"{line.published[key]:.2f}"
                        if key in line.published
                        else "",
                    }
                    for key in COLUMNS
                ],
            }
            for line in lines
        ],
        "map": [
            (
                printable(line.measure),
                [_tau(line.by_task.get(task, {}).get("kendall")) for task in tasks],
            )
            for line in measures
        ],
    }


def _tau(value: float | None) -> tuple[str, int]:
    """Return a cell's text, and its shade from 0 (not above zero) to 100."""
    if value is None or math.isnan(value):
        return format_decimal(None), 0
    return format_decimal(value), round(100 * max(value, 0.0))


_WORKDIR = flags.DEFINE_string("workdir", "runs", "Work directory of all tasks.")
_PUBLISHED = flags.DEFINE_string("published", "", "A CSV file of published figures.")


def main(argv: list[str]) -> int:
    """Print the tables, write both files and return the exit code."""
    del argv
    try:
        published = read_published(_PUBLISHED.value) if _PUBLISHED.value else {}
        lines = tabulate(read(_WORKDIR.value), published)
    except InputError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    if not lines:
        print("No group has two checkpoints with both a score and an accuracy.")
        return 0
    directory = files.to_path(_WORKDIR.value)
    files.write_text_atomically(directory / "benchmark.csv", to_csv(lines))
    files.write_text_atomically(directory / "benchmark.html", to_html(lines))
    print(to_text(lines))
    return 0
