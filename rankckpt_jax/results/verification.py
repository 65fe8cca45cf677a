"""The command that verifies a ranking by fine-tuning."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from rankckpt_jax.configs import default, folder

PROGRAM = "python -m rankckpt_jax.main"


def command(config: Mapping[str, Any] | None) -> str:
    """Return the command that runs a config again, with fine-tuning.

    Args:
      config: All fields of the run's config, as plain data.

    Returns:
      A line for a shell. Empty if no flags express the config, or if fine-tuning is
      impossible or among its stages already.
    """
    if not config or config.get("features") or config.get("shard"):
        return ""
    stages = str(config["stages"]).split(",")
    if "finetune" in stages:
        return ""
    given = {**dict(_flatten(config)), "stages": "extract,score,finetune,report"}
    commands = []
    for name, base in (("default", default), ("folder", folder)):
        known = dict(_flatten(base.get_config().to_dict()))
        if given.keys() <= known.keys():
            flags = [f"--config=configs/{name}.py"]
            flags += [
                f"--config.{field}={value}"
                for field, value in given.items()
                if value != known[field]
            ]
            commands.append(" ".join([PROGRAM, *map(shlex.quote, flags)]))
    return min(commands, key=len, default="")


def _flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
