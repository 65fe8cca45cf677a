"""The configuration, versions and devices of the run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rankckpt_jax.report.rendering import Section
from rankckpt_jax.results.formatting import printable
from rankckpt_jax.results.summary import Summary

_TEMPLATE = """
<details>
<summary>Configuration, versions and devices</summary>
<table class="provenance">
<tbody>
{% for path, text in fields %}
<tr><th scope="row">{{ path }}</th><td>{{ text }}</td></tr>
{% endfor %}
</tbody>
</table>
</details>
"""


def _values(summary: Summary) -> dict[str, Any] | None:
    fields = list(_flatten(summary.ranking.provenance))
    return {"fields": fields} if fields else None


def _flatten(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted path and the text of each leaf of nested plain data."""
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


SECTION = Section(120, "Provenance", _TEMPLATE, _values)
