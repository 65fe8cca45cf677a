"""Refuses configs that would only fail, or mislead, after long work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rankckpt_jax.configs import default
from rankckpt_jax.data import preprocess as preprocess_lib
from rankckpt_jax.data.splits import Task
from rankckpt_jax.devices import processes
from rankckpt_jax.errors import InputError, suggest
from rankckpt_jax.features import extract
from rankckpt_jax.run import ablation, scoring

# Sections whose fields are looked at by those who know them.
_OWN_RULES = ("finetune", "measure_options", "pretrain")


def check_fields(config: Mapping[str, Any]) -> None:
    """Refuses fields that nothing would read, as a typing mistake in Python makes them.

    The command line refuses them by itself.

    Args:
      config: As `configs/default.py` describes.

    Raises:
      InputError: Names the field, and the nearest that there is.
    """
    _check_names(config, default.get_config(), "config")


def check_same_images(task: Task) -> None:
    """Refuses processes of one run that see different images; all call it.

    Raises:
      InputError: They do.
    """
    seen = processes.all_gather({n: s.fingerprint for n, s in task.splits.items()})
    other = [str(process) for process, found in enumerate(seen) if found != seen[0]]
    if other:
        raise InputError(
            "The processes do not see the same images",
            where=task.origin,
            expected="the same files on every host",
            found="others than in process 0 in process " + ", ".join(other),
            fix="copy them to all hosts anew, or put them where all hosts see them",
        )


def _check_names(given: Any, known: Any, where: str) -> None:
    for name, value in given.items():
        if name in _OWN_RULES:
            continue
        if name not in known:
            raise InputError(
                "The config has no such field",
                where=f"{where}.{name}",
                expected=", ".join(known),
                found=name,
                fix=f"{suggest(name, known)}; configs/default.py explains every field",
            )
        if isinstance(known[name], Mapping) or hasattr(known[name], "items"):
            _check_names(value, known[name], f"{where}.{name}")


def check(config: Any, stages: tuple[str, ...], settings: scoring.Settings) -> None:
    """Refuses settings that do not fit together, or that nothing can be done with.

    Args:
      config: As `configs/default.py` describes.
      stages: Names of the stages to run.
      settings: What is scored.

    Raises:
      InputError: Names the field.
    """
    if config.preprocess not in preprocess_lib.names():
        raise InputError(
            f"Unknown preprocessing {config.preprocess!r}",
            where="config.preprocess",
            expected="one of " + ", ".join(preprocess_lib.names()),
            found=str(config.preprocess),
            fix=suggest(config.preprocess, preprocess_lib.names()),
        )
    extract.compute_dtype(config.dtype)
    if config.features and {"pretrain", "finetune"} & set(stages):
        raise InputError(
            "Features alone cannot be fine-tuned",
            where="config.stages",
            expected="score, report",
            found=", ".join(stages),
            fix="start from configs/features.py, or give images and checkpoints",
        )
    if "pretrain" in stages and config.get("pretrain") is None:
        raise InputError(
            "The stage `pretrain` has no settings",
            where="config.pretrain",
            expected="a section as in configs/demo.py",
            found="none",
            fix="leave `pretrain` out of config.stages, or start from configs/demo.py",
        )
    if "ablate" in stages and ablation.MEASURE not in settings.measures:
        raise InputError(
            f"The stage `ablate` is about {ablation.MEASURE}, which is not asked for",
            where="config.measures",
            expected=f"{ablation.MEASURE} among them",
            found=", ".join(settings.measures),
            fix="add it, or leave `ablate` out of config.stages",
        )
    for field, least in (
        ("batch_size", 1),
        ("image_size", 0),
        ("image_cache_gigabytes", 0),
    ):
        if not config[field] >= least:
            raise InputError(
                f"A setting must be at least {least}",
                where=f"config.{field}",
                expected=f"at least {least}",
                found=str(config[field]),
                fix="leave it out for the default",
            )
