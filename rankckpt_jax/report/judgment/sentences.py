"""The conclusions of a judgment in sentences, and its protocol."""

from __future__ import annotations

import math

from rankckpt_jax.errors import some
from rankckpt_jax.evaluation import Judgment
from rankckpt_jax.evaluation.intervals import MIN_UNITS, Interval
from rankckpt_jax.evaluation.judgment import MeasureJudgment, Versus
from rankckpt_jax.evaluation.score_lists import ELSEWHERE
from rankckpt_jax.evaluation.table import Table
from rankckpt_jax.results.formatting import (
    count,
    format_decimal,
    format_p_value,
    printable,
)


def format_interval(interval: Interval) -> str:
    """Return an interval such as "0.31 to 0.62", or nothing if it is unknown."""
    low, high = interval
    return "" if math.isnan(low) else f"{low:.2f} to {high:.2f}"


def format_regret(value: float) -> str:
    """Return a regret, a fraction of 1, in accuracy points."""
    return format_decimal(100 * value).replace("-0.00", "0.00")


def verdict(versus: Versus) -> str:
    """Return whether two measures differ, in a few words."""
    over_tasks = versus.over_tasks
    if not over_tasks.is_decidable:
        return f"cannot be decided with {count(over_tasks.num_tasks, 'task')}"
    if not over_tasks.p_value < 0.05:
        return "not significant"
    if versus.adjusted >= 0.05:
        return "not after Holm"
    return "better" if over_tasks.difference > 0 else "worse"


def conclusions(judgment: Judgment) -> list[str]:
    """Return the conclusions, the most important first."""
    if not judgment.measures or math.isnan(judgment.measures[0].kendall):
        return ["Agreement is undefined: scores or accuracies do not vary."]
    best = judgment.measures[0]
    default = judgment.measure(judgment.default)
    lines = _agreement(judgment, best)
    if judgment.best_baseline:
        lines.append(_against_baseline(judgment, best))
    if default is not best:
        against = next(v for v in best.versus if v.other == default.name)
        lines.append(
            f"{printable(default.name)} has tau "
            f"{format_decimal(default.kendall)}; the difference to "
            f"{printable(best.name)}, {_difference(against)}."
        )
    lines.append(_regret(best))
    if judgment.ceilings:
        lines.append(
            "Two fine-tuning runs agree with each other with tau "
            f"{format_decimal(judgment.ceiling('kendall'))}. A perfect score would "
            f"reach about {format_decimal(judgment.ceiling('kendall_mean'))} (noise "
            "ceiling)."
        )
    if not math.isnan(judgment.dispersion):
        lines.append(
            f"The order of the checkpoints differs between tasks by "
            f"{judgment.dispersion:.2f} (rank dispersion; at 0, one list serves all "
            "tasks)."
        )
    return lines


def cautions(judgment: Judgment) -> list[str]:
    """Return the reasons to doubt the figures."""
    table = judgment.table
    result = []
    if len(judgment.measures) > 2:
        result.append(
            f"The best of {len(judgment.measures)} measures is chosen on the tasks "
            "that judge it, so its figures are biased upward."
        )
    if 0 < len(table.families) < MIN_UNITS:
        result.append(
            f"Fewer than {MIN_UNITS} families ({len(table.families)}) allow no "
            "interval for other families."
        )
    deviations = [d for d in judgment.deviation.values() if not math.isnan(d)]
    smallest = min(len(task.checkpoints) for task in table.tasks)
    if smallest < 15 and deviations:
        result.append(
            f"With {smallest} checkpoints, Kendall's tau of a random order has a "
            f"standard deviation of {max(deviations):.2f} on one task."
        )
    negative = [
        printable(row.name)
        for row in judgment.measures
        if row.figures["kendall"].tasks.high < 0 or row.figures["kendall"].pool.high < 0
    ]
    if negative:
        result.append(
            f"Negative agreement of {some(negative)}: if lower values are better, "
            "negate the scores in the file."
        )
    return result


def protocol(judgment: Judgment) -> list[tuple[str, str]]:
    """Return what to print beside the figures, as pairs of name and text."""
    table = judgment.table
    sizes = [len(task.checkpoints) for task in table.tasks]
    smallest, largest = min(sizes), max(sizes)
    pool = count(len(table.checkpoints), "checkpoint")
    if smallest < largest:
        pool += f", {smallest} to {largest} on a task"
    runs = sorted({task.complete_runs.shape[1] for task in table.tasks})
    several = f"judged by the mean of {runs[-1]} runs (column seed)"
    return [
        ("Pool", pool),
        (
            "Families",
            f"{len(table.families)}: {some(table.families, 12)}"
            if table.families
            else "not in the table (column family)",
        ),
        ("Tasks", f"{len(table.tasks)}: {some((t.name for t in table.tasks), 12)}"),
        (
            "Fine-tuning runs",
            several if runs[-1] > 1 else "one for each checkpoint and task",
        ),
        (
            "Test images",
            _test_images(table),
        ),
        (
            "To state beside it",
            "which weights were trained, the hyperparameter sweep and on which images "
            "it was chosen, and who chose pool, tasks and options of the measures",
        ),
    ]


def _test_images(table: Table) -> str:
    known = {t.name: t.num_test for t in table.tasks if t.num_test is not None}
    if not known:
        return "not in the table (column test_images)"
    numbers = set(known.values())
    if len(known) == len(table.tasks) and len(numbers) == 1:
        return f"{numbers.pop():,} on each task"
    return some((f"{name} {number:,}" for name, number in known.items()), 12)


def _agreement(judgment: Judgment, best: MeasureJudgment) -> list[str]:
    tasks, figure = len(best.by_task), best.figures["kendall"]
    agrees = "agrees best" if len(judgment.measures) > 1 else "agrees"
    text = (
        f"{printable(best.name)} {agrees} with fine-tuning: mean "
        f"Kendall's tau {figure.value:.2f} over {count(tasks, 'task')}"
    )
    families = judgment.table.families
    units = "families" if families else "checkpoints"
    intervals = [
        f"{format_interval(interval)} for other {what}"
        for interval, what in ((figure.pool, units), (figure.tasks, "tasks"))
        if not math.isnan(interval.low)
    ]
    lines = [f"{text}."]
    if intervals:
        lines.append(f"Its 95 % interval is {' and '.join(intervals)}.")
    return lines


def _against_baseline(judgment: Judgment, best: MeasureJudgment) -> str:
    baseline = judgment.measure(judgment.best_baseline)
    against = next(v for v in best.versus if v.other == baseline.name)
    text = (
        f"The best baseline, {baseline.name}, reads no image of the task and has tau "
        f"{format_decimal(baseline.kendall)}; the difference to "
        f"{printable(best.name)}, {_difference(against)}."
    )
    if baseline.name == ELSEWHERE:
        text += " It needs fine-tuning on the other tasks."
    return text


def _difference(versus: Versus) -> str:
    over_tasks = versus.over_tasks
    if not over_tasks.is_decidable:
        return f"{over_tasks.difference:+.2f}, {verdict(versus)}"
    is_shown = "is" if over_tasks.p_value < 0.05 else "is not"
    return (
        f"{over_tasks.difference:+.2f}, {is_shown} significant (p-value "
        f"{format_p_value(over_tasks.p_value)}, sign flips over "
        f"{over_tasks.num_tasks} tasks)"
    )


def _regret(best: MeasureJudgment) -> str:
    first, three = best.figures["regret@1"], best.figures["regret@3"]
    return (
        f"Fine-tuning only the first checkpoint by {printable(best.name)} loses "
        f"{format_regret(first.value)} accuracy points on average, the best of the "
        f"first three {format_regret(three.value)}; a random checkpoint loses "
        f"{format_regret(first.random)}, the best of three random ones "
        f"{format_regret(three.random)}."
    )
