"""Reads a table of scores and accuracies from a CSV file, long or wide.

A long file has one line for each score, a wide file one column for each measure:

    task,checkpoint,accuracy,measure,score
    pets,resnet50,0.91,nleep,-0.42

    task,checkpoint,accuracy,nleep,leep
    pets,resnet50,0.91,-0.42,-0.88

docs/evaluate-your-scores.md describes the optional columns.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from rankckpt_jax.errors import InputError, some
from rankckpt_jax.evaluation.table import STATICS, Checkpoint, Table, TaskTable
from rankckpt_jax.evaluation.table_lines import Line, Lines, read_lines, rename

_ROUNDING = 1e-6
"""Share by which an accuracy may exceed 1 or 100 %."""


class _TooFewCheckpoints(InputError):
    """A task has fewer than two checkpoints with an accuracy."""


class _Values:
    """Values by key. A second value for a key must equal the first one."""

    def __init__(self, path: str, what: str, fix: str):
        self._path, self._what, self._fix = path, what, fix
        self._found: dict[Any, tuple[Any, int]] = {}

    def add(self, key: tuple[str, ...], value: Any, line: int) -> None:
        earlier, at = self._found.setdefault(key, (value, line))
        is_same = earlier == value or (value != value and earlier != earlier)
        if not is_same:
            raise InputError(
                f"Two lines contradict each other about {self._what}",
                where=f"{self._path}, lines {at} and {line}",
                expected=f"the same value for {' / '.join(filter(None, key))}",
                found=f"{earlier} and {value}",
                fix=self._fix,
            )

    def items(self) -> Iterable[tuple[Any, Any]]:
        return ((key, value) for key, (value, _) in self._found.items())

    def get(self, key: tuple[str, ...], default: Any = math.nan) -> Any:
        return self._found[key][0] if key in self._found else default


def read_table(path: Any) -> Table:
    """Read a table of scores and accuracies from a CSV file.

    The format follows from the header: a file with the columns `measure` and `score` is
    long, any other file is wide. Cells that are empty, "nan" or infinite are missing.
    Accuracies are fractions or percentages; see `docs/evaluate-your-scores.md`.

    Args:
      path: A local file, or one in a bucket.

    Raises:
      InputError: The file cannot be read, lacks a column, or contradicts itself. The
        error names the line and the column.
    """
    # Imported here for start-up time.
    from rankckpt_jax.storage import files

    place = files.to_path(path)
    try:
        text = place.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            "The table cannot be read",
            where=str(path),
            expected="a CSV file in UTF-8",
            found=files.reason(error) if isinstance(error, OSError) else str(error),
            fix="check the path, or save the file again as CSV with UTF-8",
        ) from error
    return parse_table(text, str(path), place.stem)


def parse_table(text: str, where: str = "the table", name: str = "scores") -> Table:
    r"""Return the table in a CSV text; see `read_table`.

    Example:
      >>> table = parse_table(
      ...     "task,checkpoint,accuracy,nleep\npets,a,91,-0.4\npets,b,85,-0.9\n"
      ... )
      >>> table.measures, table.tasks[0].accuracies.tolist()
      (('nleep',), [0.91, 0.85])

    Args:
      text: The content of the file.
      where: Its name in errors.
      name: The table's name.
    """
    return _Builder(read_lines(text, where), where).build(name)


class _Builder:
    """Collects the values of all lines, then builds the table."""

    def __init__(
        self,
        lines: Lines,
        where: str,
    ):
        self._where, self._measures, self._ignored = (
            where,
            lines.measures,
            lines.ignored,
        )
        seeds = "add a column `seed` if they are several fine-tuning runs"
        self._accuracies = _Values(where, "an accuracy", f"remove one of them; {seeds}")
        self._scores = _Values(where, "a score", f"remove one of them; {seeds}")
        self._spreads = _Values(where, "a spread", "remove one of the lines")
        self._seconds = _Values(where, "the seconds of a score", "remove one of them")
        self._texts = {
            key: _Values(where, f"the {key}", f"give each checkpoint one {key}")
            for key in ("family", "group")
        }
        self._statics = _Values(
            where, "a checkpoint", "correct one of the lines; the value is per network"
        )
        self._tests = _Values(
            where, "the number of test images", "use one test set for each task"
        )
        self._lines_of_accuracies: dict[tuple[str, ...], int] = {}
        for line in lines.lines:
            self._add(line)
        self._scale = self._find_scale(lines.is_percent)

    def _add(self, line: Line) -> None:
        cells, number = line.cells, line.number
        task, name, seed = cells["task"], cells["checkpoint"], cells.get("seed", "")
        key = task, name, seed
        self._accuracies.add(key, line.get_number("accuracy"), number)
        self._lines_of_accuracies.setdefault(key, number)
        for text, values in self._texts.items():
            if cells.get(text):
                values.add((name,), cells[text], number)
        for static in STATICS:
            if cells.get(static):
                values = self._statics
                values.add((name, static), line.get_number(static), number)
        if cells.get("test_images"):
            self._tests.add((task,), line.get_count("test_images"), number)
        if "measure" in cells:
            measure = cells["measure"]
            static = rename(measure)
            if static in STATICS:
                value = line.get_number("score")
                self._statics.add((name, static), value, number)
                return
            columns = [(measure, "score", "spread", "seconds")]
        else:
            columns = [(m, m, f"{m}_spread", f"{m}_seconds") for m in self._measures]
        is_wide = "measure" not in cells
        shared = line.get_positive("seconds") if is_wide else math.nan
        for measure, score, spread, seconds in columns:
            # The same score may stand in the line of every seed.
            self._scores.add((*key, measure), line.get_number(score), number)
            if cells.get(spread):
                value = line.get_positive(spread)
                self._spreads.add((*key, measure), value, number)
            own = line.get_positive(seconds)
            parts = [x for x in (own, shared) if not math.isnan(x)]
            if parts:
                self._seconds.add((*key, measure), sum(parts), number)

    def _find_scale(self, is_percent: bool) -> float:
        """Return 100 for percentages and 1 for fractions; refuse a mixture."""
        known = {k: a for k, a in self._accuracies.items() if not math.isnan(a)}
        large = {k: a for k, a in known.items() if a > 1 + _ROUNDING}
        # 0 is the same in both.
        small = {k: a for k, a in known.items() if 0 < a <= 1 + _ROUNDING}
        lines = self._lines_of_accuracies
        if large and small and not is_percent:
            (one, percentage), (other, fraction) = (
                next(iter(x.items())) for x in (large, small)
            )
            raise InputError(
                "The accuracies mix fractions and percentages",
                where=f"{self._where}, lines {lines[one]} and {lines[other]}, column "
                "'accuracy'",
                expected="only fractions from 0 to 1, or only percentages from 0 to "
                "100",
                found=f"{percentage:g} and {fraction:g}",
                fix="divide the percentages by 100; or, if "
                f"{fraction:g} means {fraction:g} %, name the column 'accuracy %'",
            )
        scale = 100.0 if is_percent or large else 1.0
        for key, value in known.items():
            if not 0 <= value <= scale * (1 + _ROUNDING):
                raise InputError(
                    "An accuracy is out of range",
                    where=f"{self._where}, line {lines[key]}, column 'accuracy'",
                    expected="a fraction from 0 to 1 or a percentage from 0 to 100",
                    found=f"{value:g}",
                    fix="rescale a metric that can be negative, such as R2, or leave "
                    "the task out",
                )
        return scale

    def build(self, name: str) -> Table:
        known = [key for key, a in self._accuracies.items() if not math.isnan(a)]
        seeds = tuple(dict.fromkeys(seed for _, _, seed in known))
        notes = []
        if self._ignored:
            notes.append(f"Columns that are not used: {some(self._ignored)}.")
        tasks, too_small = [], []
        for task in dict.fromkeys(task for (task, _, _), _ in self._accuracies.items()):
            try:
                of_task, missing = self._build_task(task, seeds)
            except _TooFewCheckpoints as error:
                too_small.append((task, error))
                continue
            tasks.append(of_task)
            notes += missing
        if not tasks:
            raise too_small[0][1]
        if too_small:
            left_out = some(task for task, _ in too_small)
            notes.append(
                f"Tasks with fewer than two accuracies are left out: {left_out}."
            )
        names = dict.fromkeys(c for task in tasks for c in task.checkpoints)
        checkpoints = {
            c: Checkpoint(
                c,
                self._texts["family"].get((c,), ""),
                self._texts["group"].get((c,), ""),
                {
                    key: value
                    for key in STATICS
                    if not math.isnan(value := self._statics.get((c, key)))
                },
            )
            for c in names
        }
        table = Table(
            name, tuple(tasks), self._measures, checkpoints, seeds or ("",), ()
        )
        notes += _missing_families(table)
        return dataclasses.replace(table, notes=tuple(notes))

    def _build_task(
        self, task: str, seeds: tuple[str, ...]
    ) -> tuple[TaskTable, list[str]]:
        of_task = [name for (t, name, _), _ in self._accuracies.items() if t == task]
        listed = list(dict.fromkeys(of_task))
        runs = np.array(
            [[self._accuracies.get((task, c, s)) for s in seeds] for c in listed]
        ).reshape(len(listed), len(seeds))
        # Rounding may exceed the limit.
        runs = np.minimum(runs / self._scale, 1.0)
        has_run = ~np.isnan(runs).all(axis=1) if seeds else np.zeros(len(listed), bool)
        names = [c for c, has in zip(listed, has_run, strict=True) if has]
        notes = []
        if len(names) < len(listed):
            left_out = [c for c, has in zip(listed, has_run, strict=True) if not has]
            notes.append(f"{task}: {some(left_out)} left out, without an accuracy.")
        if len(names) < 2:
            raise _TooFewCheckpoints(
                f"The task {task!r} has fewer than two checkpoints with an accuracy",
                where=self._where,
                expected="at least two checkpoints; below ten, agreement means little",
                found=some(names) or "none",
                fix="add checkpoints, or remove the task",
            )
        scores, spreads, seconds = {}, {}, {}
        all_seeds = dict.fromkeys(s for (t, _, s), _ in self._accuracies.items())
        for measure in self._measures:
            keys = [[(task, c, s, measure) for s in all_seeds] for c in names]
            scores[measure], between = _mean_and_spread(self._scores, keys)
            within, _ = _mean_and_spread(self._spreads, keys)
            spreads[measure] = np.where(np.isnan(within), between, within)
            seconds[measure], _ = _mean_and_spread(self._seconds, keys)
            failed = [
                c for c, s in zip(names, scores[measure], strict=True) if math.isnan(s)
            ]
            if failed and len(failed) < len(names):
                notes.append(
                    f"{task}: {measure} has no score for {some(failed, 4)}; it is "
                    f"judged on the other {len(names) - len(failed)} checkpoints."
                )
            elif failed:
                notes.append(f"{task}: {measure} has no score.")
        num_test = self._tests.get((task,), None)
        table = TaskTable(
            task, tuple(names), runs[has_run], scores, spreads, seconds, num_test
        )
        return table, notes


def _mean_and_spread(
    values: _Values, keys: Sequence[Sequence[tuple[str, ...]]]
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation over the seeds of each checkpoint.

    Equal scores of all seeds are one score that was repeated, without a spread.
    """
    means, spreads = [], []
    for of_seeds in keys:
        known = [x for key in of_seeds if not math.isnan(x := values.get(key))]
        is_repeated = len(set(known)) == 1
        means.append(
            known[0] if is_repeated else float(np.mean(known)) if known else math.nan
        )
        has_spread = len(known) > 1 and not is_repeated
        spreads.append(float(np.std(known, ddof=1)) if has_spread else math.nan)
    return np.array(means), np.array(spreads)


def _missing_families(table: Table) -> list[str]:
    alone = [c.name for c in table.checkpoints.values() if not c.family]
    if not table.families or not alone:
        return []
    return [f"Without a family, each is a family of its own: {some(alone)}."]
