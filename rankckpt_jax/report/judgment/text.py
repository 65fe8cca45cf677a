"""A judgment as tables of text that fit the width of a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from rankckpt_jax.evaluation import FIGURES, Judgment
from rankckpt_jax.evaluation.comparison import MIN_TASKS
from rankckpt_jax.evaluation.judgment import MeasureJudgment
from rankckpt_jax.report import terminal
from rankckpt_jax.report.judgment.sentences import (
    cautions,
    conclusions,
    format_interval,
    format_regret,
    protocol,
    verdict,
)
from rankckpt_jax.report.names import shorten_names
from rankckpt_jax.results.formatting import (
    NONE,
    count,
    format_decimal,
    format_p_value,
    printable,
)

HEADINGS = {
    "kendall": "tau",
    "weighted_kendall": "weighted",
    "spearman": "Spearman",
    "pearson": "Pearson",
    "gap_fidelity": "gaps",
    "recall@1": "Rec@1",
    "recall@3": "Rec@3",
    "rel@1": "Rel@1",
    "rel@3": "Rel@3",
    "regret@1": "Reg@1",
    "regret@3": "Reg@3",
    "regret@1_other_run": "Reg@1'",
    "regret@3_other_run": "Reg@3'",
}
"""Short headings of the figures."""

_NAME_WIDTH = 21


def to_text(judgment: Judgment, width: int | None = None) -> str:
    """Return the conclusions, tables and notes as plain text.

    Args:
      judgment: The judgment.
      width: Largest length of a line. By default the width of the terminal.

    Returns:
      Several lines without a final newline.
    """
    width = terminal.get_width(width)
    table = judgment.table
    title = (
        f"{printable(table.name)}: {count(len(table.measures), 'measure')}, "
        f"{count(len(table.checkpoints), 'checkpoint')}, "
        f"{count(len(table.tasks), 'task')}"
    )
    blocks = [
        title,
        _lines(map(printable, conclusions(judgment)), width),
        _lines((f"Beware: {printable(x)}" for x in cautions(judgment)), width),
        _agreement(judgment, width),
        _figures(judgment, width),
        _comparisons(judgment, width),
        _by_task(judgment, width),
        _within(judgment, width),
        _lines((f"{name}: {printable(x)}." for name, x in protocol(judgment)), width),
        _lines(map(printable, table.notes), width),
    ]
    # A terminal may lack the dash of the page.
    return "\n\n".join(block for block in blocks if block).replace(NONE, "-")


def is_used(judgment: Judgment, key: str) -> bool:
    """Return whether any measure has a value of a figure."""
    return any(not math.isnan(r.figures[key].value) for r in judgment.all_rows)


def format_figure(key: str, value: float) -> str:
    """Return the value of a figure; regret in accuracy points."""
    return format_regret(value) if key.startswith("regret") else format_decimal(value)


def _lines(sentences: Iterable[str], width: int) -> str:
    return "\n".join(terminal.wrap(sentence, width) for sentence in sentences)


def _names(rows: Sequence[MeasureJudgment], width: int) -> list[str]:
    names = [
        f"({row.name})" if row.is_baseline else printable(row.name) for row in rows
    ]
    return shorten_names(names, min(_NAME_WIDTH, int(0.3 * width)))


def _agreement(judgment: Judgment, width: int) -> str:
    rows = judgment.all_rows
    units = "families" if judgment.table.families else "checkpoints"
    pool = "families" if judgment.table.families else "pool"
    lines = [["measure", "tasks", "tau", f"{pool} 95 %", "tasks 95 %", "won", "part."]]
    for name, row in zip(_names(rows, width), rows, strict=True):
        tau = row.figures["kendall"]
        lines.append(
            [
                name,
                str(len(row.by_task)),
                format_decimal(tau.value),
                format_interval(tau.pool) or "-",
                format_interval(tau.tasks) or "-",
                "" if row.is_baseline else str(row.num_won),
                format_decimal(row.partial),
            ]
        )
    if judgment.ceilings:
        for name, field in (
            ("(fine-tuned again)", "kendall"),
            ("(noise ceiling)", "kendall_mean"),
        ):
            text = format_decimal(judgment.ceiling(field))
            lines.append([name, str(len(judgment.ceilings)), text, *[""] * 4])
    lines.append(["(random order)", str(len(judgment.table.tasks)), "0.00", *[""] * 4])
    static = judgment.best_baseline
    legend = (
        "Mean Kendall's tau over tasks with 95 % intervals: a jackknife over "
        f"{units}, a bootstrap over tasks. Won: tasks on which no other measure has a "
        "higher tau. In parentheses: baselines that read no image of the task."
    )
    if static:
        legend += f" Part.: partial tau given {static}."
    return f"{terminal.align(lines, left=[0])}\n{terminal.wrap(legend, width)}"


def _figures(judgment: Judgment, width: int) -> str:
    """Return the other figures, correlations apart where all do not fit."""
    keys = [key for key in FIGURES if key != "kendall" and is_used(judgment, key)]
    rows = judgment.all_rows
    lines = [["measure", *(HEADINGS[key] for key in keys)]]
    for name, row in zip(_names(rows, width), rows, strict=True):
        lines.append(
            [name, *(format_figure(key, row.figures[key].value) for key in keys)]
        )
    random = rows[0].figures
    lines.append(
        ["(random order)", *(format_figure(k, random[k].random) for k in keys)]
    )
    groups = [keys]
    if terminal.table_width(lines) > width:
        groups = [[k for k in keys if ("@" in k) == is_top] for is_top in (False, True)]
    parts = []
    for group in groups:
        columns = [0, *(1 + keys.index(key) for key in group)]
        part = [[line[i] for i in columns] for line in lines]
        while len(part[0]) > 2 and terminal.table_width(part) > width:
            part = [line[:-1] for line in part]
        parts.append(terminal.align(part, left=[0]))
    legend = (
        "Means over tasks. Gaps: correlation of score gaps and accuracy gaps. Rec@k: "
        "the best checkpoint is among the first k. Rel@k: share of its accuracy that "
        "the best of the first k reaches. Reg@k: accuracy points lost by fine-tuning "
        "only the first k."
    )
    if is_used(judgment, "regret@1_other_run"):
        legend += " Reg@k': the same, chosen by one run and measured by another."
    return "\n\n".join(parts) + f"\n{terminal.wrap(legend, width)}"


def _comparisons(judgment: Judgment, width: int) -> str:
    others = [judgment.best_baseline, judgment.default]
    blocks = []
    for other in filter(None, others):
        rows = [
            (row, versus)
            for row in judgment.all_rows
            for versus in row.versus
            if versus.other == other
        ]
        if not rows:
            continue
        names = _names([row for row, _ in rows], width)
        lines = [["measure", "diff.", "tasks 95 %", "p-value", "Holm", "verdict"]]
        for name, (_, versus) in zip(names, rows, strict=True):
            is_decidable = versus.over_tasks.is_decidable
            lines.append(
                [
                    name,
                    f"{versus.over_tasks.difference:+.2f}",
                    format_interval(versus.tasks) or "-",
                    format_p_value(versus.over_tasks.p_value),
                    format_p_value(versus.adjusted),
                    verdict(versus) if is_decidable else "undecided",
                ]
            )
        title = terminal.wrap(f"Tau minus that of {printable(other)}:", width)
        blocks.append(f"{title}\n{terminal.align(lines, left=[0, 5])}")
    if not blocks:
        return ""
    legend = (
        "Paired over tasks: sign flips, two-sided; Holm adjusts for all lines of a "
        f"table. Fewer than {MIN_TASKS} tasks cannot decide. Tasks share checkpoints, "
        "so p-values do not describe the choice of the pool."
    )
    return "\n\n".join(blocks) + f"\n{terminal.wrap(legend, width)}"


def _by_task(judgment: Judgment, width: int) -> str:
    """Return Kendall's tau on each task, with as many measures as fit."""
    table = judgment.table
    baseline = [r for r in judgment.baselines if r.name == judgment.best_baseline]
    default = [r for r in judgment.measures if r.name == judgment.default]
    # The most important columns come first; the last ones are dropped.
    rows = [*default, *judgment.measures[:1], *baseline, *judgment.measures]
    rows = list({row.name: row for row in rows}.values())
    shown = shorten_names(_names(rows, width), 12)
    heads = ["task", "n", *(["ceiling"] if judgment.ceilings else []), *shown]
    names = shorten_names([printable(t.name) for t in table.tasks], _NAME_WIDTH)
    lines = [heads]
    for name, task in zip(names, table.tasks, strict=True):
        cells = [name, str(len(task.checkpoints))]
        if judgment.ceilings:
            ceiling = judgment.ceilings.get(task.name)
            cells.append(format_decimal(ceiling.kendall_mean if ceiling else None))
        cells += [
            format_decimal(row.by_task[task.name].values["kendall"])
            if task.name in row.by_task
            else "-"
            for row in rows
        ]
        lines.append(cells)
    n = len(heads)
    while n > 3 and terminal.table_width([line[:n] for line in lines]) > width:
        n -= 1
    left_out = len(heads) - n
    text = "Tau by task:\n" + terminal.align([line[:n] for line in lines], left=[0])
    if left_out:
        text += f"\n{left_out} more measures are in the CSV file and on the page."
    return text


def _within(judgment: Judgment, width: int) -> str:
    kinds = [k for k in ("size", "family", "group") if k in judgment.all_rows[0].within]
    families = judgment.table.families
    if not kinds and not families:
        return ""
    rows = judgment.all_rows
    lines = [["measure", "all", *(f"same {kind}" for kind in kinds)]]
    if families:
        lines[0].append("worst without")
    for name, row in zip(_names(rows, width), rows, strict=True):
        cells = [format_decimal(row.within[k].pooled) for k in kinds if k in row.within]
        if families:
            cells.append(_worst_family(row))
        lines.append([name, format_decimal(row.kendall), *cells])
    legend = (
        "Mean tau over the pairs of checkpoints of similar size (tertiles of "
        "parameters), of one family or of one group, and the lowest without a family."
    )
    return f"{terminal.align(lines, left=[0])}\n{terminal.wrap(legend, width)}"


def _worst_family(row: MeasureJudgment) -> str:
    known = {f: tau for f, tau in row.without_family.items() if not math.isnan(tau)}
    if not known:
        return "-"
    family = min(known, key=lambda f: known[f])
    return f"{known[family]:.2f} ({printable(family)})"
