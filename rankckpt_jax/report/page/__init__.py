"""The ranking as one self-contained HTML page.

Each module of this directory is one section of the page and defines `SECTION`. They are
found by scanning the directory, so a new section is one new file. `report.html.j2` is
the frame around them with the answer, the `.css` files are the style. `report.js` sorts
and filters the tables, copies commands and shows hints.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable

from rankckpt_jax.report import paths
from rankckpt_jax.report.names import shorten_in_text
from rankckpt_jax.report.rendering import Section, render
from rankckpt_jax.results.formatting import printable
from rankckpt_jax.results.summary import Summary

_LONG_NAME = 30
"""Longer names are smaller in the answer, and shortened in the sentences below it."""


def sections() -> list[Section]:
    """Return the sections of the page in order."""
    modules = [f"{__name__}.{module.name}" for module in pkgutil.iter_modules(__path__)]
    found = [importlib.import_module(module).SECTION for module in modules]
    return sorted(found, key=lambda section: section.order)


def to_html(summary: Summary) -> str:
    """Return a ranking as one self-contained page.

    The page requests nothing: styles, script and plots are inside, and its content
    security policy forbids everything else. All text is escaped. Sections without
    content are omitted.
    """
    ranking, conclusion = summary.ranking, summary.conclusion
    names = [printable(row.checkpoint) for row in ranking.rows]

    def shorten(sentences: Iterable[str]) -> str:
        return shorten_in_text(" ".join(sentences), names, _LONG_NAME)

    rendered = [(section, section.render(summary)) for section in sections()]
    return render(
        "report.html.j2",
        "report.js",
        task=printable(ranking.task),
        description=printable(ranking.task_description),
        answer=conclusion.answer,
        support=shorten(conclusion.support),
        verification=shorten([conclusion.verification]),
        against=shorten(conclusion.against),
        figures=conclusion.figures,
        is_long=len(conclusion.answer[1]) > _LONG_NAME,
        command=paths.relative_command(conclusion.command),
        sections=[
            (section.heading(summary), section.anchor, html)
            for section, html in rendered
            if html is not None
        ],
    )
