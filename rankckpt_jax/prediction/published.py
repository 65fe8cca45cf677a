"""Relations over published tasks, the default prior of a predictor.

published.json is made by `python -m tests.benchmarks.prediction --write DIRECTORY`. It
states its sources.
"""

from __future__ import annotations

import functools
import json
from importlib import resources
from typing import Any

from rankckpt_jax.prediction.relations import Relations, Sum

FILE = "published.json"


@functools.cache
def published_relations() -> Relations:
    """Return the relations over published tasks."""
    text = resources.files("rankckpt_jax.prediction").joinpath(FILE).read_text("utf-8")
    return from_plain(json.loads(text)["relations"])


def to_plain(relations: Relations) -> dict[str, Any]:
    """Return relations as plain data, with four digits.

    A correlation is [weight, mean]. Other sums are [weight, mean, mean square].
    """
    return {
        "num_tasks": relations.num_tasks,
        "relatives": {key: _moments(s) for key, s in relations.relatives.items()},
        "scale": _moments(relations.scale),
        "levels": {key: _moments(s) for key, s in sorted(relations.levels.items())},
        "correlations": {
            f"{one} {other}": _moments(s)[:2]
            for (one, other), s in sorted(relations.pairs.items())
        },
    }


def from_plain(data: dict[str, Any]) -> Relations:
    """Return the relations that `to_plain` made plain."""
    pairs = {}
    for key, moments in data["correlations"].items():
        one, other = key.split(" ")
        pairs[one, other] = _sum(*moments)
    return Relations(
        pairs,
        {key: _sum(*moments) for key, moments in data["relatives"].items()},
        _sum(*data["scale"]),
        {key: _sum(*moments) for key, moments in data["levels"].items()},
        data["num_tasks"],
    )


def _moments(s: Sum) -> list[float]:
    weight = s.weight or 1.0
    return [round(x, 4) for x in (s.weight, s.total / weight, s.squares / weight)]


def _sum(weight: float, mean: float, square: float = 0.0) -> Sum:
    return Sum(weight, weight * mean, weight * square)
