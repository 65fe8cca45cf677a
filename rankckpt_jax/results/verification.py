"""The command that verifies a ranking by fine-tuning."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from rankckpt_jax import short_form
from rankckpt_jax.configs import default, folder
from rankckpt_jax.errors import HIDDEN

PROGRAM = "rankckpt"

_TOP = 2
"""The number of best-ranked checkpoints to fine-tune: enough to confirm the first."""


def command(config: Mapping[str, Any] | None) -> str:
    """Return the command that runs a config again and fine-tunes the best two.

    Args:
      config: All fields of the run's config, as plain data.

    Returns:
      A line for a shell, in the short form if it can express the config. Empty if no
      flags express the config, or if fine-tuning is impossible or among its stages
      already.
    """
    if not config or config.get("features") or config.get("shard"):
        return ""
    given = dict(flatten(config))
    stages = {name.strip() for name in given["stages"].split(",")}
    # Only fine-tuning computes early_stopping, so it cannot choose what to fine-tune.
    by_finetuning = given["measures"].partition(",")[0].strip() == "early_stopping"
    # A secret of the config is not stored, so the command would lack it.
    if "finetune" in stages or by_finetuning or HIDDEN in str(given):
        return ""
    if not {"extract", "score", "report"} <= stages:
        given["stages"] = default.get_config().stages
    short = _short(given)
    if short:
        return short
    given |= short_form.to_fields(finetune=_TOP, stages=given["stages"])
    commands = [
        _join(f"--config=configs/{name}.py", *_fields(given, base.get_config()))
        for name, base in (("default", default), ("folder", folder))
        if _has_fields(base.get_config(), given)
    ]
    return min(commands, key=len, default="")


def _short(given: Mapping[str, Any]) -> str:
    """Return `rankckpt IMAGES CHECKPOINTS ...`, or "" if it cannot express a config."""
    base = folder.get_config()
    images = given["task.path"] or given["task.tfds"]
    words = [images, *_split_existing(given["checkpoints"])]
    same = short_form.to_fields(images, given["checkpoints"])
    if (
        not images
        or images in short_form.COMMANDS
        or any(word.startswith("-") for word in words)
        or not (given["checkpoints"] or given["neucrab"] or given["pool"])
        or not _has_fields(base, given)
        or any(given[field] != value for field, value in same.items())
    ):
        return ""
    base.update_from_flattened_dict({**same, "finetune.top": given["finetune.top"]})
    flags = _fields(given, base, short_form.OPTIONS)
    return _join(*words, *flags, f"--finetune={_TOP}")


def _split_existing(checkpoints: str) -> list[str]:
    """Split a list at its commas if each part exists, for words that are short."""
    parts = checkpoints.split(",")
    if all(part and os.path.exists(part) for part in parts):
        return parts
    return [checkpoints] if checkpoints else []


def _has_fields(base: Any, given: Mapping[str, Any]) -> bool:
    """Return whether flags can set a config to the given fields."""
    known = dict(flatten(base.to_dict()))
    return all(
        name in known and (value is not None or known[name] is None)
        for name, value in given.items()
    )


def _fields(
    given: Mapping[str, Any], base: Any, options: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Yield a flag for each field that differs from those of another config."""
    options = options or {}
    known = dict(flatten(base.to_dict()))
    # Short options come first.
    for field in [*options, *(field for field in given if field not in options)]:
        if given[field] != known[field]:
            yield f"{options.get(field, f'--config.{field}')}={given[field]}"


def _join(*arguments: str) -> str:
    return shlex.join([PROGRAM, *arguments])


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the fields of a nested config as (dotted name, value)."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
