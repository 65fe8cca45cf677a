"""Refuses configs that would fail, or mislead, only after long work."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from rankckpt_jax import checkpoints, measures
from rankckpt_jax.checkpoints import in_memory, network_files, sources
from rankckpt_jax.checkpoints.fetch import uris
from rankckpt_jax.checkpoints.torch_modules import convert
from rankckpt_jax.configs import default
from rankckpt_jax.data import folder_layout, metrics, preprocess, targets
from rankckpt_jax.data.splits import Task
from rankckpt_jax.devices import compilation, processes
from rankckpt_jax.errors import InputError, unknown_name
from rankckpt_jax.features import blocks, extract
from rankckpt_jax.report import tracking
from rankckpt_jax.results import predicted
from rankckpt_jax.run import scoring
from rankckpt_jax.storage import files

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


def check_not_swapped(images: str, pool: str) -> None:
    """Raise if a folder of images was given as checkpoints, and the reverse.

    Args:
      images: As `config.task.path`, whose images could not be loaded.
      pool: As `config.checkpoints`.

    Raises:
      InputError: `images` has checkpoints, and `pool` has images.
    """
    if images and _finds(checkpoints.find, images):
        for place in uris.split_list(pool):
            if _finds(folder_layout.find, pathlib.Path(place)):
                raise InputError(
                    "Images and checkpoints are swapped",
                    expected="images first, then checkpoints",
                    found=f"checkpoints in {images}, images in {place}",
                    fix="swap the two",
                )


def _finds(find: Callable[[Any], Any], place: Any) -> bool:
    try:
        find(place)
    except InputError:
        return False
    return True


def check(config: Any, stages: Collection[str], names: Sequence[str]) -> None:
    """Raise if a setting is out of range or does not fit the others.

    Args:
      config: Fields as in configs/default.py.
      stages: Stages to run.
      names: Measures to compute; the first one orders the ranking.

    Raises:
      InputError: Names the field.
    """
    preprocess.check(config.preprocess)
    extract.compute_dtype(config.dtype)
    features_from = blocks.parse(config.get("features_from", blocks.LAST))
    if "ablate" in stages and features_from == "last,blocks":
        raise InputError(
            "The stage `ablate` varies the options of nleep on one set of features",
            where="config.features_from",
            expected="last or blocks with the stage `ablate`",
            found=features_from,
            fix="leave `ablate` out of config.stages, or choose one of the two",
        )
    engine = config.get("torch_engine", "auto")
    convert.check_engine(engine)
    if engine == "torch" and "finetune" in stages and not config.finetune.get("frozen"):
        raise InputError(
            "PyTorch itself extracts features only",
            where="config.torch_engine",
            expected="jax or auto with the stage `finetune`",
            found=engine,
            fix="--config.torch_engine=jax, or leave `finetune` out of config.stages",
        )
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
    check_ablation(stages, names)
    if "finetune" in stages:
        _check_top(config.finetune.get("top", 0), config.shard, names)
    _check_part(config, names)
    if config.get("compilation_cache", "") != compilation.OFF:
        files.to_path(config.get("compilation_cache", ""))
    if "://" in config.get("profile", ""):
        raise InputError(
            "Traces need a local directory",
            where="config.profile",
            expected="a local path",
            found=config.profile,
            fix="write them to a local directory and copy them",
        )
    sources.check_image_size(config.image_size, "config.image_size")
    for field, minimum in (("batch_size", 1), ("image_cache_gigabytes", 0)):
        # Not `<`, which is false for NaN.
        if config[field] is not None and not config[field] >= minimum:
            raise InputError(
                f"{field} must be at least {minimum}",
                where=f"config.{field}",
                expected=f"at least {minimum}",
                found=str(config[field]),
                fix="leave it out for the default",
            )


def check_ablation(
    stages: Collection[str], names: Sequence[str], target: str = targets.CLASSES
) -> None:
    """Raise if the stage `ablate` has no scores of NLEEP.

    Args:
      stages: Stages to run.
      names: Measures to compute.
      target: Kind of the task's labels.
    """
    if "ablate" not in stages or "nleep" in names:
        return
    fix = "add nleep, or leave `ablate` out of config.stages"
    if target == targets.REGRESSION:
        fix = "leave `ablate` out of config.stages, because nleep predicts no numbers"
    raise InputError(
        "The stage `ablate` needs the measure nleep",
        where="config.measures",
        expected="nleep among the measures",
        found=", ".join(names),
        fix=fix,
    )


def _check_top(top: Any, shard: str, names: Sequence[str]) -> None:
    """Raise if the best `top` checkpoints cannot be chosen for fine-tuning."""
    field = "config.finetune.top"
    if not isinstance(top, int) or top < 0:
        raise InputError(
            f"Invalid number of checkpoints to fine-tune: {top!r}",
            where=field,
            expected="a whole number of at least 0; 0 fine-tunes all",
            found=repr(top),
            fix="change it, or leave it out to fine-tune all checkpoints",
        )
    if top and shard:
        raise InputError(
            "A shard cannot fine-tune the best checkpoints of the whole pool",
            where=field,
            expected="0 with config.shard, because the other shards may not be scored",
            found=f"{top} with config.shard={shard}",
            fix="score with all shards first, then run once without config.shard",
        )
    if top and names[0] == "early_stopping":
        raise InputError(
            "Only fine-tuning computes early_stopping, so it cannot choose the "
            "checkpoints to fine-tune",
            where=field,
            expected="another first measure",
            found=", ".join(names),
            fix="name another measure first in config.measures, such as nleep",
        )


def check_confidence(value: Any) -> None:
    """Raise an `InputError` if planning cannot stop at a probability."""
    if not isinstance(value, int | float) or not 0 < value <= 1:
        raise InputError(
            f"Invalid probability: {value!r}",
            where="config.finetune.confidence",
            expected="a number above 0 and at most 1",
            found=repr(value),
            fix="change it, or leave it out for 0.9",
        )


def check_planned(metric: metrics.Metric) -> None:
    """Raise an `InputError` if values of a metric cannot be predicted."""
    if metric.name != predicted.METRIC:
        raise InputError(
            "A budget of time is planned by predicted accuracies",
            where="config.finetune.budget",
            expected=f"the metric {predicted.METRIC!r}, for one class per image",
            found=metric.title,
            fix="give a budget in steps, or set config.finetune.top",
        )


def check_budget(shard: str) -> None:
    """Raise if the checkpoints of a pool cannot be compared within a budget.

    Args:
      shard: `config.shard`.

    Raises:
      InputError: It is not empty.
    """
    if shard:
        raise InputError(
            "A shard cannot compare the checkpoints of the whole pool",
            where="config.finetune.budget",
            expected="no config.shard",
            found=f"config.shard={shard}",
            fix="score with all shards first, then run once without config.shard",
        )


def check_keep(
    keep: Any,
    stages: Collection[str],
    config: Any,
    objects: Sequence[in_memory.Model] = (),
) -> None:
    """Raise if the weights of the best checkpoint cannot be kept.

    Args:
      keep: `config.finetune.keep`, not empty.
      stages: Stages to run.
      config: Fields as in configs/default.py.
      objects: Models in memory that are ranked too.

    Raises:
      InputError: Names the field, or the model in memory.
    """
    field = "config.finetune.keep"
    if keep != "best":
        raise unknown_name("value", keep, ("best",), field)
    if set(stages) == {"report"}:
        return
    if "finetune" not in stages:
        raise InputError(
            "Only fine-tuning gives weights to keep",
            where=field,
            expected="the stage `finetune` in config.stages",
            found=", ".join(stages),
            fix="add --finetune, or leave the field empty",
        )
    if config.shard:
        raise InputError(
            "A shard cannot keep the best checkpoint of the whole pool",
            where=field,
            expected="no config.shard",
            found=config.shard,
            fix="run all shards first, then run once without config.shard",
        )
    for model in objects:
        if model.backbone is not None:
            network_files.check(model.backbone.apply, model.name)


def _check_part(config: Any, names: Sequence[str]) -> None:
    """Raise if `score_on` or `race` cannot be used."""
    count, is_race = config.score_on, config.race
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise InputError(
            f"Invalid number of images to score on: {count!r}",
            where="config.score_on",
            expected="a whole number of at least 0; 0 scores on all",
            found=repr(count),
            fix="change it, or leave it out to score on all training images",
        )
    field = "config.race" if is_race else "config.score_on"
    if config.features and (count or is_race):
        raise InputError(
            "Features that were extracted already leave no extraction to save",
            where=field,
            expected="images and checkpoints",
            found=f"config.features={config.features}",
            fix=f"leave {field} out",
        )
    if is_race and config.shard:
        raise InputError(
            "A race needs the scores of the whole pool after each part",
            where="config.race",
            expected="no config.shard",
            found=f"config.shard={config.shard}",
            fix="run without config.shard, or score all checkpoints with "
            "--config.score_on=N",
        )
    if not is_race:
        return
    if (layers := blocks.parse(config.get("features_from", blocks.LAST))) != "last":
        raise InputError(
            "A race compares checkpoints by their last features only",
            where="config.features_from",
            expected="last with config.race",
            found=layers,
            fix="leave config.race out, or config.features_from",
        )
    first = measures.get(names[0])
    if names[0] == "early_stopping" or not first.reads_images or first.combine:
        why = (
            "is relative to the pool"
            if first.combine
            else "does not depend on the number of images"
        )
        raise InputError(
            f"A race cannot be run by {names[0]}, which {why}",
            where="config.race",
            expected="a first measure that scores each checkpoint on images",
            found=", ".join(names),
            fix="name another measure first in config.measures, such as logme",
        )


def check_trackers(given: str, stages: Collection[str]) -> tuple[str, ...]:
    """Return the trackers of `config.track`, whose packages are then imported.

    Raises:
      InputError: A name is unknown, its package is missing, or nothing is reported.
    """
    if not given.strip():
        return ()
    trackers = scoring.parse_list(given, tracking.names(), "config.track")
    if "report" not in stages:
        raise InputError(
            "Trackers record what the stage `report` writes",
            where="config.track",
            expected="the stage `report` in config.stages",
            found=", ".join(stages),
            fix="add `report` to config.stages, or leave config.track empty",
        )
    tracking.check(trackers)
    return trackers


def _check_names(given: Any, known: Any, where: str) -> None:
    for name, value in given.items():
        if name in _VALIDATED_ELSEWHERE:
            continue
        if name not in known:
            raise unknown_name("field", name, known, f"{where}.{name}")
        if hasattr(known[name], "items"):
            _check_names(value, known[name], f"{where}.{name}")
