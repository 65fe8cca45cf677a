"""Render the templates of the page under a strict content security policy.

A page is one file: its style sheet and its script are inside. Its content security
policy names both by their SHA-256. A browser therefore ignores any other style or
script and requests nothing. `style=` attributes are forbidden too, so lengths are
classes, `share0` to `share100`. Absolute paths are shortened in every text.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import importlib.resources
import re
from collections.abc import Callable, Mapping
from typing import Any

import rankckpt_jax
from rankckpt_jax.report import paths
from rankckpt_jax.results.formatting import capitalize
from rankckpt_jax.results.summary import Summary

_STYLES = ("base.css", "tables.css", "plots.css", "print.css")

_POLICY = (
    "default-src 'none'; style-src '{style}'; script-src {script}; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)


@dataclasses.dataclass(frozen=True)
class Section:
    """One section of the page.

    Attributes:
      order: Sections with smaller numbers come first.
      title: The heading; `{metric}` and `{Metric}` stand for `Ranking.metric_title`.
      template: A Jinja template of the section's content; all values are escaped.
      values: Returns the values of the template, or None to omit the section.
      anchor: Name for links to the section.
    """

    order: int
    title: str
    template: str
    values: Callable[[Summary], Mapping[str, Any] | None]
    anchor: str = ""

    def heading(self, summary: Summary) -> str:
        """Return the heading for a ranking."""
        title = summary.ranking.metric_title
        return self.title.format(metric=title, Metric=capitalize(title))

    def render(self, summary: Summary) -> str | None:
        """Return the content as HTML, or None if there is nothing to show."""
        values = self.values(summary)
        if values is None:
            return None
        return _environment().from_string(self.template).render(**values)


def render(name: str, script: str = "", **values: Any) -> str:
    """Render a template of the directory `page` to an HTML document.

    Args:
      name: The template's file name, such as "report.html.j2".
      script: File name of the page's script, or empty.
      **values: Values of the template besides `css`, `script`, `policy` and `version`.
        All are escaped.
    """
    # Imported here for start-up time.
    from markupsafe import Markup

    shares = "".join(f".share{i}{{--share:{i}%}}" for i in range(101))
    css = "".join(map(_read, _STYLES)) + shares
    code = _read(script) if script else ""
    policy = _POLICY.format(
        style=_hash(css), script=f"'{_hash(code)}'" if code else "'none'"
    )
    return (
        _environment()
        .get_template(name)
        .render(
            css=Markup(css),
            script=Markup(code),
            policy=Markup(policy),
            version=rankckpt_jax.__version__,
            **values,
        )
    )


@functools.cache
def _environment():
    # Imported here for start-up time: a ranking is useful without the template engine.
    import jinja2
    import markupsafe

    def finalize(value: Any) -> Any:
        if isinstance(value, str) and not isinstance(value, markupsafe.Markup):
            return paths.hide_directories(value)
        return value

    def mark_code(text: str) -> markupsafe.Markup:
        """Return escaped text in which `words` between backticks are code."""
        escaped = str(markupsafe.escape(paths.hide_directories(text)))
        return markupsafe.Markup(re.sub("`([^`]+)`", r"<code>\1</code>", escaped))

    def add_breaks(name: str) -> markupsafe.Markup:
        """Return an escaped name that may break after each of its parts."""
        escaped = str(markupsafe.escape(paths.hide_directories(name)))
        return markupsafe.Markup(re.sub("(?<=[_/.])(?=[^_/.])", "<wbr>", escaped))

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read),
        autoescape=True,
        finalize=finalize,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # Only our own plots and sections are markup.
    environment.filters["markup"] = markupsafe.Markup
    environment.filters["code"] = mark_code
    environment.filters["breaks"] = add_breaks
    return environment


def _read(name: str) -> str:
    files = importlib.resources.files(__package__) / "page"
    return files.joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
