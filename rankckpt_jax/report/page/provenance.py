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
{% if fields %}
<table class="provenance">
<tbody>
{% for path, text in fields %}
<tr><th scope="row">{{ path }}</th><td>{{ text }}</td></tr>
{% endfor %}
</tbody>
</table>
{% endif %}
{% if unset %}
<details>
<summary>Fields without a value</summary>
<p class="note">{{ unset | join(", ") }}</p>
</details>
{% endif %}
</details>
"""


def _values(summary: Summary) -> dict[str, Any] | None:
    fields = list(_flatten(summary.ranking.provenance))
    if not fields:
        return None
    return {
        "fields": [(path, text) for path, text in fields if text],
        "unset": [path for path, text in fields if not text],
    }


def _flatten(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted path and the text of each leaf of nested plain data.

    The text of None is empty.
    """
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flatten(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple) and any(isinstance(v, Mapping) for v in value):
        for i, inner in enumerate(value):
            yield from _flatten(inner, f"{path}[{i}]")
    elif isinstance(value, list | tuple):
        yield printable(path), ", ".join(map(printable, value))
    elif path:
        is_empty = value is None or isinstance(value, Mapping)
        yield printable(path), "" if is_empty else printable(value)


SECTION = Section(120, "How this was made", _TEMPLATE, _values, anchor="provenance")
