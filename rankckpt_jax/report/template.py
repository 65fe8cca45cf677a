"""Fills in the pages' templates, under a policy that lets nothing else in.

A page is one file: its style and its script stand inside. Its content security policy
names them by their SHA-256, so that a browser applies these two and neither runs nor
applies anything that might get into the page otherwise, nor asks for anything from
outside. Attributes `style=` are shut out too: shares are classes, share0 to share100.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
from typing import Any

import rankckpt_jax

_POLICY = (
    "default-src 'none'; style-src '{style}'; script-src {script}; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)


def render(name: str, script: str = "", **values: Any) -> str:
    """Renders a template of this directory; all values are escaped.

    Args:
      name: Of the template, "report.html.j2".
      script: Name of the page's script; none if empty.
      **values: What the template names, besides `css`, `script`, `policy` and
        `version`.

    Returns:
      The HTML document.
    """
    # Imported here: rows and rankings are of use without the template engine.
    import jinja2
    import markupsafe

    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # What `plots` draws is markup; everything else is text.
    environment.filters["svg"] = markupsafe.Markup
    shares = "".join(f".share{i}{{--share:{i}%}}" for i in range(101))
    css = f"{_read('report.css')}\n{shares}"
    code = _read(script) if script else ""
    policy = _POLICY.format(
        style=_hash(css), script=f"'{_hash(code)}'" if code else "'none'"
    )
    return environment.from_string(_read(name)).render(
        css=markupsafe.Markup(css),
        script=markupsafe.Markup(code),
        policy=markupsafe.Markup(policy),
        version=rankckpt_jax.__version__,
        **values,
    )


def _read(name: str) -> str:
    files = importlib.resources.files(__package__)
    return files.joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
