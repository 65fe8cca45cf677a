"""The ranking as one HTML page that needs nothing from outside.

`sections` decides what is shown and writes every number; `report.html.j2` lays it out
(escaping all of it), `report.css` gives it its looks, and `report.js` sorts and filters
the tables and names the points of the plots.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from rankckpt_jax import evaluation
from rankckpt_jax.report import conclusions as sentences
from rankckpt_jax.report import sections, template
from rankckpt_jax.report.cells import decimal, known
from rankckpt_jax.report.text import (
    format_certainty,
    format_percent,
    format_seconds,
    printable,
)
from rankckpt_jax.results.ranking import Ranking


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
    return template.render(
        "report.html.j2",
        "report.js",
        task=printable(ranking.task),
        description=printable(ranking.task_description),
        headline=_headline(ranking),
        conclusions=sentences.conclusions(ranking),
        facts=_facts(ranking),
        order_measure=printable(ranking.measures[0]),
        measures=[printable(measure) for measure in ranking.measures],
        table=sections.ranking_table(ranking),
        plots=sections.scatters(ranking),
        shown_plots=sections.SHOWN_PLOTS,
        ranks=sections.rank_map(ranking),
        evaluation=sections.evaluation_table(ranking),
        explanations=[
            *((heading, text) for heading, _, text in sections.METRICS),
            *sections.SIGNIFICANCE_COLUMNS,
        ],
        curves=sections.curves(ranking),
        features=sections.features(ranking),
        ablations=sections.ablations(ranking),
        samples=sections.samples(ranking),
        cost=sections.cost(ranking),
        failures=[
            (printable(row.checkpoint), _lines(row.failure)) for row in ranking.failed
        ],
        warnings=sentences.grouped_warnings(ranking),
        provenance=list(_flatten(ranking.provenance)),
    )


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
    n, failed = len(ranking.scored_rows), len(ranking.failed)
    unranked = len(ranking.rows) - n - failed
    notes = [f"{failed} failed"] * bool(failed)
    notes += [f"{unranked} without a score"] * bool(unranked)
    facts = [("Checkpoints ranked", str(n), ", ".join(notes))]
    pairs = len(ranking.evaluated_rows(first))
    scores = ranking.evaluation[first]
    measured = ranking.assessment.measures.get(first)
    if pairs > 1 and not math.isnan(scores["kendall"]):
        beyond = evaluation.is_significant(scores["kendall"], pairs)
        facts += [
            (
                "Kendall's tau",
                decimal(scores["kendall"]),
                "beyond chance" if beyond else f"within chance for {pairs}",
            )
        ]
    if pairs > 1 and not math.isnan(scores["rel@1"]):
        kept = format_percent(scores["rel@1"])
        facts.append(("Best accuracy kept", kept, "by the first in the ranking"))
    if measured is not None and ranking.num_test:
        value = format_certainty(measured.probability_best)
        facts.append(("First is truly best", value, "probability, given all noise"))
    seconds = known(row.ranking_seconds(first) for row in ranking.scored_rows)
    if seconds:
        note = f"with {printable(first)}"
        facts.append(("Time to rank", format_seconds(sum(seconds)), note))
    return facts


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
