"""The ranking as one HTML page that needs nothing from outside.

This module decides what is shown and writes every number; `report.html.j2` lays it out
(escaping all of it), `report.css` gives it its looks and `report.js` sorts the tables.
"""

import base64
import hashlib
import importlib.resources
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import rankckpt_jax
from rankckpt_jax import evaluation
from rankckpt_jax.ranking import Ranking, Row
from rankckpt_jax.report import plots, sentences
from rankckpt_jax.report.text import (
    format_percent,
    format_scores,
    format_seconds,
    printable,
)

_NONE = "–"
"""Stands where there is no value."""

_EXPLANATIONS = (
    ("n", "", "Checkpoints with both a score and a fine-tuned accuracy."),
    ("Recall@1", "recall@1", "1 if the best checkpoint is ranked first, else 0."),
    ("Rel@1", "rel@1", "Accuracy of the first, as a share of the best accuracy."),
    ("Recall@3", "recall@3", "1 if the best checkpoint is among the first three."),
    ("Rel@3", "rel@3", "Best accuracy among the first three, as such a share."),
    ("Pearson", "pearson", "Linear correlation of scores and accuracies, -1 to 1."),
    (
        "Kendall",
        "kendall",
        "Pairs put in the right order minus pairs put in the wrong one, as a share of "
        "all pairs (tau-b), -1 to 1.",
    ),
    ("Spearman", "spearman", "Linear correlation of the two rankings, -1 to 1."),
    (
        "Weighted",
        "weighted_kendall",
        "Kendall's tau in which mistakes near the top weigh more, -1 to 1.",
    ),
)
"""Of the evaluation table: heading, key of `score_ranking`, and what it says."""


def to_html(ranking: Ranking) -> str:
    """Renders a ranking as one self-contained page.

    The page asks for nothing from outside: styles, script and plots are inside, and its
    content security policy forbids the rest. Everything that comes from the ranking is
    escaped. What is not known (no accuracies, no seconds, no failures) is left out.

    Args:
      ranking: The ranking.

    Returns:
      The HTML document.
    """
    # Imported here: rows and rankings are of use without the template engine.
    import jinja2
    import markupsafe

    files = importlib.resources.files(__package__)

    def read(name: str) -> str:
        return files.joinpath(name).read_text(encoding="utf-8")

    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    script = read("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.from_string(read("report.html.j2")).render(
        css=markupsafe.Markup(read("report.css")),
        script=markupsafe.Markup(script),
        script_hash=digest,
        version=rankckpt_jax.__version__,
        task=printable(ranking.task),
        description=printable(ranking.task_description),
        headline=_headline(ranking),
        conclusions=sentences.conclusions(ranking),
        facts=_facts(ranking),
        order_measure=printable(ranking.measures[0]),
        measures=[printable(measure) for measure in ranking.measures],
        table=_ranking_table(ranking),
        plots=[
            (markupsafe.Markup(svg), name, caption)
            for svg, name, caption in _scatters(ranking)
        ],
        ranks=_rank_map(ranking),
        evaluation=_evaluation_table(ranking),
        explanations=[(heading, text) for heading, _, text in _EXPLANATIONS],
        cost=_cost(ranking),
        failures=[
            (printable(row.checkpoint), _lines(row.failure)) for row in ranking.failed
        ],
        warnings=sentences.grouped_warnings(ranking),
        provenance=list(_flatten(ranking.provenance)),
    )


def _rank_map(ranking: Ranking) -> dict[str, Any] | None:
    """Each checkpoint's place by every measure and by accuracy, with a shade in 0..100.

    None where one measure is all there is: the ranking itself says the same then.
    """
    rows = ranking.ranked
    columns = {
        printable(measure): [row.score(measure) for row in rows]
        for measure in ranking.measures
    }
    accuracies = [row.fine_tuned() for row in rows]
    if any(accuracy is not None for accuracy in accuracies):
        columns["fine-tuned"] = accuracies
    if len(columns) < 2 or len(rows) < 2:
        return None
    places = {name: _places(values) for name, values in columns.items()}
    return {
        "headings": list(columns),
        "rows": [
            (printable(row.checkpoint), [place[i] for place in places.values()])
            for i, row in enumerate(rows)
        ],
    }


def _places(values: Sequence[float | None]) -> list[tuple[int | str, int]]:
    """(place from 1, shade: 100 for the first, 0 for the last) of each value."""
    known = [value for value in values if value is not None]
    steps = max(len(known) - 1, 1)
    places: list[tuple[int | str, int]] = []
    for value in values:
        if value is None:
            places.append((_NONE, 0))
            continue
        place = 1 + sum(other > value for other in known)
        places.append((place, round(100 * (1 - (place - 1) / steps))))
    return places


def _headline(ranking: Ranking) -> tuple[str, str, str]:
    """The sentence cut in three, to set the name of the best apart in the middle."""
    sentence = sentences.headline(ranking)
    if ranking.best is None:
        return sentence, "", ""
    # A short name may be part of a word, so only its place in the sentence will do.
    name = printable(ranking.best.checkpoint)
    lead = f"{printable(ranking.measures[0])} ranks "
    start = len(lead) if sentence.startswith(lead + name) else 0
    end = start + len(name)
    return sentence[:start], sentence[start:end], sentence[end:]


def _facts(ranking: Ranking) -> list[tuple[str, str, str]]:
    """The few numbers at the top: name, value, and a note of a few words."""
    first = ranking.measures[0]
    n, failed = len(ranking.ranked), len(ranking.failed)
    unranked = len(ranking.rows) - n - failed
    notes = [f"{failed} failed"] * bool(failed)
    notes += [f"{unranked} without a score"] * bool(unranked)
    facts = [("Checkpoints ranked", str(n), ", ".join(notes))]
    pairs = len(ranking.paired(first))
    scores = ranking.evaluation[first]
    if pairs > 1 and not math.isnan(scores["kendall"]):
        beyond = evaluation.beyond_chance(scores["kendall"], pairs)
        facts += [
            (
                "Kendall's tau",
                _decimal(scores["kendall"]),
                "beyond chance" if beyond else f"within chance for {pairs}",
            )
        ]
    if pairs > 1 and not math.isnan(scores["rel@1"]):
        kept = format_percent(scores["rel@1"])
        facts.append(("Best accuracy kept", kept, "by the first in the ranking"))
    seconds = _known(row.ranking_seconds(first) for row in ranking.ranked)
    if seconds:
        note = f"with {printable(first)}"
        facts.append(("Time to rank", format_seconds(sum(seconds)), note))
    return facts


def _ranking_table(ranking: Ranking) -> dict[str, Any]:
    """The rows that did not fail, their cells with text, sort key and bar."""
    rows = [row for row in ranking.rows if not row.failure]
    positions = [
        position
        for row, position in zip(ranking.rows, ranking.positions, strict=True)
        if not row.failure
    ]
    columns = []
    for measure in ranking.measures:
        scores = [row.score(measure) for row in rows]
        columns.append(
            _column(
                printable(measure),
                scores,
                format_scores(scores),
                spreads=[row.spread(measure) for row in rows],
            )
        )
    accuracies = [row.fine_tuned() for row in rows]
    if _known(accuracies):
        # Beside the measure that orders, for the eye to compare and to stay in sight.
        columns.insert(
            1,
            _column(
                "Fine-tuned",
                accuracies,
                [_NONE if a is None else format_percent(a) for a in accuracies],
                low=0.0,
                high=1.0,
                kind="truth",
            ),
        )
    return {
        "headings": [column["heading"] for column in columns],
        "rows": [
            {
                "position": position,
                "checkpoint": printable(row.checkpoint),
                "about": _about(row),
                "cells": [column["cells"][i] for column in columns],
            }
            for i, (row, position) in enumerate(zip(rows, positions, strict=True))
        ],
    }


def _column(
    heading: str,
    values: Sequence[float | None],
    texts: Sequence[str],
    *,
    spreads: Sequence[float | None] | None = None,
    low: float | None = None,
    high: float | None = None,
    kind: str = "score",
) -> dict[str, Any]:
    """One column of numbers; bars run from `low` to `high`, else over the column."""
    known = _known(values)
    low = min(known, default=0.0) if low is None else low
    high = max(known, default=0.0) if high is None else high
    cells = []
    for i, (value, text) in enumerate(zip(values, texts, strict=True)):
        spread = spreads[i] if spreads else None
        share = None
        if value is not None and high > low:
            share = round(100 * (value - low) / (high - low), 1)
        cells.append(
            {
                "value": _sort_key(value),
                "text": _NONE if value is None else text,
                "spread": "" if spread is None else f"{spread:.2g}",
                "bar": share,
                "kind": kind,
                # Where all are equal, none stands out.
                "best": len(set(known)) > 1 and value == max(known),
            }
        )
    return {"heading": heading, "cells": cells}


def _about(row: Row) -> str:
    """What kind of checkpoint it is, in one line."""
    parts = [printable(row.architecture), printable(row.group)]
    if row.image_size is not None:
        parts.append(f"{row.image_size} px")
    if row.num_parameters is not None:
        parts.append(f"{_thousands(row.num_parameters)} parameters")
    if row.feature_dim is not None:
        parts.append(f"{row.feature_dim:,} features")
    return " · ".join(part for part in parts if part)


def _scatters(ranking: Ranking) -> list[tuple[str, str, str]]:
    """For each measure with two pairs or more, its plot, name and caption."""
    result = []
    for measure in ranking.measures:
        n = len(ranking.paired(measure))
        if n > 1:
            tau = ranking.evaluation[measure]["kendall"]
            value = "undefined" if math.isnan(tau) else f"{tau:.2f}"
            caption = f"Kendall's tau {value} over {n} checkpoints"
            svg = plots.scatter(ranking, measure)
            result.append((svg, printable(measure), caption))
    return result


def _evaluation_table(ranking: Ranking) -> dict[str, Any] | None:
    """One line for each measure and one for chance, or None without two pairs."""
    pairs = {measure: ranking.paired(measure) for measure in ranking.measures}
    if max(map(len, pairs.values())) < 2:
        return None
    keys = [key for _, key, _ in _EXPLANATIONS if key]
    rows = [
        (printable(measure), len(pairs[measure]), ranking.evaluation[measure])
        for measure in ranking.measures
    ]
    best = {}
    for key in keys:
        known = [row[2][key] for row in rows if not math.isnan(row[2][key])]
        best[key] = max(known) if len(set(known)) > 1 else math.nan
    first = pairs[ranking.measures[0]]
    n = len(first)
    chance = evaluation.random_ranking([row.fine_tuned() for row in first])
    return {
        "rows": [
            {
                "measure": name,
                "n": count,
                "cells": [
                    (_sort_key(s[key]), _decimal(s[key]), s[key] == best[key])
                    for key in keys
                ],
            }
            for name, count, s in rows
        ],
        "chance": {
            "measure": "random order",
            "n": n,
            "cells": [_decimal(chance[key]) for key in keys],
        },
        "deviation": _decimal(evaluation.kendall_null_deviation(n)),
    }


def _cost(ranking: Ranking) -> dict[str, Any] | None:
    """What ranking took beside what fine-tuning took, or None where neither is known.

    The comparison is over the checkpoints for which both are known.
    """
    first = ranking.measures[0]
    rows = [row for row in ranking.rows if not row.failure]
    table = [
        [
            _finite(row.extract_seconds),
            *(_finite(row.score_seconds.get(measure)) for measure in ranking.measures),
            _finite(row.finetune_seconds),
        ]
        for row in rows
    ]
    if not any(_known(line) for line in table):
        return None
    both = [
        (ranked, tuned)
        for row in rows
        if (ranked := row.ranking_seconds(first)) is not None
        and (tuned := _finite(row.finetune_seconds)) is not None
    ]
    comparison = None
    if both:
        ranking_total = sum(ranked for ranked, _ in both)
        tuning_total = sum(tuned for _, tuned in both)
        longest = max(ranking_total, tuning_total) or 1.0
        comparison = {
            "n": len(both),
            "bars": [
                (name, format_seconds(total), round(100 * total / longest, 2))
                for name, total in (
                    (f"Ranking with {printable(first)}", ranking_total),
                    ("Fine-tuning", tuning_total),
                )
            ],
            "factor": _factor(tuning_total, ranking_total),
        }
    totals = [sum(_known(column)) for column in zip(*table, strict=True)]
    return {
        "comparison": comparison,
        "headings": ["Features", *map(printable, ranking.measures), "Fine-tuning"],
        "rows": [
            (
                printable(row.checkpoint),
                [(_sort_key(v), _duration(v)) for v in line],
            )
            for row, line in zip(rows, table, strict=True)
        ],
        "totals": [_duration(total) for total in totals],
    }


def _factor(slow: float, fast: float) -> str:
    """How many times as long `slow` took, in words; empty where it did not."""
    if not 0 < 1.05 * fast < slow:
        return ""
    factor = slow / fast
    return f"{factor:.1f}" if factor < 10 else f"{factor:,.0f}"


def _flatten(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yields dotted paths and texts of nested mappings and sequences of mappings."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flatten(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple) and any(isinstance(v, Mapping) for v in value):
        for i, inner in enumerate(value):
            yield from _flatten(inner, f"{path}[{i}]")
    elif isinstance(value, list | tuple):
        yield printable(path), ", ".join(map(printable, value))
    elif path:
        yield printable(path), printable(value)


def _lines(text: str) -> str:
    """Makes every line of a message printable, and keeps the lines."""
    return "\n".join(map(printable, text.splitlines()))


def _finite(value: float | None) -> float | None:
    """The value where it is a finite number, else None."""
    return value if value is not None and math.isfinite(value) else None


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _sort_key(value: float | None) -> str:
    """The number in full for the page's script, empty where there is none."""
    return "" if value is None or math.isnan(value) else repr(float(value))


def _decimal(value: float) -> str:
    return _NONE if math.isnan(value) else f"{value:.2f}"


def _duration(seconds: float | None) -> str:
    return _NONE if seconds is None else format_seconds(seconds)


def _thousands(count: int) -> str:
    """Writes a large count in millions or thousands, such as 3.2 M."""
    if count >= 1_000_000:
        return f"{count / 1_000_000:.1f}\N{NO-BREAK SPACE}M"
    return f"{count / 1_000:.0f}\N{NO-BREAK SPACE}k" if count >= 1_000 else str(count)
