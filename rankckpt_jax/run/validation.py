"""Refuses configs that would fail, or mislead, only after long work."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from rankckpt_jax.checkpoints import sources
from rankckpt_jax.configs import default
from rankckpt_jax.data import preprocess
from rankckpt_jax.data.splits import Task
from rankckpt_jax.devices import processes
from rankckpt_jax.errors import InputError, unknown_name
from rankckpt_jax.features import extract

# Sections that other modules validate.
_VALIDATED_ELSEWHERE = ("finetune", "measure_options", "pretrain")


def check_fields(config: Mapping[str, Any]) -> None:
    """Raise if a config has an unknown field, such as a typing mistake in Python.

    The command line refuses such fields itself.

    Args:
      config: Fields as in configs/default.py.

    Raises:
      InputError: Names the field and the nearest known one.
    """
    _check_names(config, default.get_config(), "config")


def check_same_images(task: Task) -> None:
    """Raise if the processes of a run read different images; all processes call it.

    Raises:
      InputError: Names the processes that differ from process 0.
    """
    images = {name: split.fingerprint for name, split in task.splits.items()}
    gathered = processes.all_gather(images)
    others = [str(i) for i, other in enumerate(gathered) if other != gathered[0]]
    if others:
        raise InputError(
            "The processes read different images",
            where=task.origin,
            expected="the same files on every host",
            found="files that differ from those of process 0, in process "
            + ", ".join(others),
            fix="copy the images to all hosts again, or use a shared file system",
        )


def check(config: Any, stages: Collection[str], measures: Collection[str]) -> None:
    """Raise if a setting is out of range or does not fit the others.

    Args:
      config: Fields as in configs/default.py.
      stages: Stages to run.
      measures: Measures to compute.

    Raises:
      InputError: Names the field.
    """
    if config.preprocess not in preprocess.names():
        raise unknown_name(
            "preprocessing", config.preprocess, preprocess.names(), "config.preprocess"
        )
    extract.compute_dtype(config.dtype)
    if config.features and {"pretrain", "finetune"} & set(stages):
        raise InputError(
            "Features alone cannot be fine-tuned",
            where="config.stages",
            expected="score, ablate, report",
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
    if "pretrain" in stages and config.shard:
        raise InputError(
            "Shards cannot pre-train their pool",
            where="config.shard",
            expected="stages without `pretrain`",
            found=", ".join(stages),
            fix="run --config.stages=pretrain first, without config.shard",
        )
    if "ablate" in stages and "nleep" not in measures:
        raise InputError(
            "The stage `ablate` needs the measure nleep",
            where="config.measures",
            expected="nleep among the measures",
            found=", ".join(measures),
            fix="add nleep, or leave `ablate` out of config.stages",
        )
    sources.check_image_size(config.image_size, "config.image_size")
    for field, minimum in (("batch_size", 1), ("image_cache_gigabytes", 0)):
        # Not `<`, which is false for NaN.
        if not config[field] >= minimum:
            raise InputError(
                f"{field} must be at least {minimum}",
                where=f"config.{field}",
                expected=f"at least {minimum}",
                found=str(config[field]),
                fix="leave it out for the default",
            )


def _check_names(given: Any, known: Any, where: str) -> None:
    for name, value in given.items():
        if name in _VALIDATED_ELSEWHERE:
            continue
        if name not in known:
            raise unknown_name("field", name, known, f"{where}.{name}")
        if hasattr(known[name], "items"):
            _check_names(value, known[name], f"{where}.{name}")
