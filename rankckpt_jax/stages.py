"""The stages of a run, in the order in which data flows through them.

    pretrain  a pool of checkpoints, where the config asks for one
    extract   images -> features, once per checkpoint
    score     features -> scores
    finetune  images -> test accuracy, per checkpoint
    report    scores and accuracies -> ranking.csv, report.html, a printed ranking

A checkpoint that fails becomes a row that says why, and the others go on.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import platform
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath

import rankckpt_jax
from rankckpt_jax import (
    checkpoints,
    features,
    finetune,
    measures,
    models,
    parallel,
    pretrain,
    report,
    store,
)
from rankckpt_jax.checkpoints import backbone as backbone_lib
from rankckpt_jax.data import pipeline, tasks
from rankckpt_jax.data import preprocess as preprocess_lib
from rankckpt_jax.errors import InputError
from rankckpt_jax.ranking import Ranking, Row, rank

STAGES = ("pretrain", "extract", "score", "finetune", "report")

Load = Callable[[], backbone_lib.Backbone]
"""Reads, or makes, one checkpoint of the pool."""

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Run:
    """What every stage needs.

    Attributes:
      config: As `configs/default.py` describes.
      stages: Names of the stages to run.
      measures: Names of the measures, the one that orders the ranking first.
      task: The task.
      sweep: How checkpoints are fine-tuned.
      directory: `workdir/TASK`.
      cache: Decoded images.
    """

    config: Any
    stages: tuple[str, ...]
    measures: tuple[str, ...]
    task: tasks.Task
    sweep: finetune.Sweep
    directory: epath.Path
    cache: pipeline.ImageCache


def run(config: Any) -> Ranking:
    """Runs a config's stages and returns the ranking.

    Args:
      config: As `configs/default.py` describes.

    Returns:
      The ranking of whatever is known: of the stages just run, and of those run
      before in the same workdir.

    Raises:
      InputError: The config, the images or the whole pool cannot be used; raised
        before any long work starts.
    """
    started = time.monotonic()
    stages = _names(config.stages, STAGES, "config.stages")
    chosen = _measures(config)
    _check(config)
    sweep = finetune.sweep(config.finetune, config.seed)
    task = tasks.load(config.task)
    this = Run(
        config,
        stages,
        chosen,
        task,
        sweep,
        epath.Path(config.workdir).expanduser() / _safe(task.name),
        pipeline.ImageCache(config.image_cache_gigabytes),
    )
    _log.info("%s on %s", task.description, parallel.describe_devices())
    if "finetune" in stages:
        finetune.check(task, sweep)
    if "pretrain" in stages:
        _pretrain(this)
    found = checkpoints.find(config.checkpoints, _storage(config))
    pool: list[tuple[str, Load]] = [
        (name, functools.partial(_load, config, name, path)) for name, path in found
    ]
    pool += _controls(config)
    rows = []
    for position, (name, load) in enumerate(pool, start=1):
        rows.append(_row(this, name, load, f"[{position}/{len(pool)}] {name}"))
    rows = _relative_to_pool(rows, this.measures)
    ranking = rank(
        task.name,
        this.measures,
        rows,
        task_description=task.description,
        provenance=_provenance(this, time.monotonic() - started),
    )
    if "report" in stages and parallel.is_main_process():
        report.write(ranking, this.directory)
    return ranking


def _pretrain(this: Run) -> None:
    settings = this.config.get("pretrain")
    if settings is None:
        raise InputError(
            "The stage `pretrain` has no settings",
            where="config.pretrain",
            mend="leave `pretrain` out of config.stages, or start from configs/demo.py",
        )
    made = pretrain.pool(
        epath.Path(this.config.checkpoints),
        tasks.from_digits(settings.digits, drawings=settings.drawings),
        architecture=settings.architecture,
        image_size=this.config.image_size,
        stages=tuple(settings.stages),
        recipe=finetune.Recipe(
            learning_rate=settings.learning_rate,
            batch_size=settings.batch_size,
            batch_norm_decay=settings.batch_norm_decay,
            seed=this.config.seed,
        ),
        preprocess=this.config.preprocess,
        cache=this.cache,
    )
    _log.info("pre-trained pool: %s", "made" if made else "found, nothing to compute")


def _load(config: Any, name: str, path: str) -> backbone_lib.Backbone:
    return checkpoints.load(
        path,
        name=name,
        image_size=config.image_size,
        use_moving_averages=config.use_moving_averages,
        storage=_storage(config),
        cache=epath.Path(config.workdir).expanduser() / "converted",
    )


def _controls(config: Any) -> list[tuple[str, Load]]:
    """Random initialisations: what pre-training is worth shows beside them."""
    names = [name.strip() for name in config.from_scratch.split(",") if name.strip()]
    return [
        (
            f"{name}_from_scratch",
            functools.partial(
                pretrain.from_scratch, name, config.image_size, config.seed
            ),
        )
        for name in names
    ]


def _row(this: Run, name: str, load: Load, title: str) -> Row:
    """Takes one checkpoint through the stages; what goes wrong becomes the row."""
    try:
        return _measured(this, name, load(), title)
    except InputError as error:
        _log.error("%s failed: %s", title, error)
        return Row(name, failure=error.what)


def _measured(this: Run, name: str, backbone: backbone_lib.Backbone, title: str) -> Row:
    directory = this.directory / name
    row = Row(
        name,
        architecture=backbone.architecture,
        num_parameters=backbone.num_parameters,
        feature_dim=backbone.feature_dim,
        image_size=backbone.image_size,
    )
    row = _with_scores(this, directory, backbone, row, title)
    return _with_accuracy(this, directory, backbone, row, title)


def _storage(config: Any) -> checkpoints.download.Storage:
    return checkpoints.download.storage(config.get("download"))


def _with_scores(
    this: Run,
    directory: epath.Path,
    backbone: backbone_lib.Backbone,
    row: Row,
    title: str,
) -> Row:
    extract = functools.partial(
        features.get,
        directory / "features",
        backbone,
        this.task.splits["train"],
        preprocess=this.config.preprocess,
        dtype=features.compute_dtype(this.config.dtype),
        batch_size=this.config.batch_size,
        cache=this.cache,
        description=f"{title}: features",
    )
    extracted, computed = extract(compute="extract" in this.stages)
    if extracted is None:
        return dataclasses.replace(
            row, failure="no features yet: run the stage `extract`"
        )
    _tell(title, "features", computed, extracted.seconds)
    facts = {"name": row.checkpoint, "num_parameters": row.num_parameters}
    inputs = functools.cache(
        lambda: measures.prepare(
            extracted.features, extracted.labels, extracted.logits, facts
        )
    )
    scores, spreads, warnings, seconds, terms = {}, {}, {}, {}, {}
    for measure in this.measures:
        result = _score(this, directory, measure, extracted.checksum, inputs, title)
        if result is None:
            continue
        seconds[measure] = result["seconds"]
        warnings[measure] = result["warning"]
        if result["score"] is not None:
            scores[measure] = result["score"]
        if (spread := result["details"].get("spread")) is not None:
            spreads[measure] = spread
        if measures.is_relative(measure) and "terms" in result["details"]:
            terms[measure] = result["details"]["terms"]
    return dataclasses.replace(
        row,
        extract_seconds=extracted.seconds,
        scores=scores,
        spreads=spreads,
        warnings={name: text for name, text in warnings.items() if text},
        score_seconds=seconds,
        terms=terms,
    )


def _relative_to_pool(rows: list[Row], names: tuple[str, ...]) -> list[Row]:
    """Puts the scores of measures that are relative to the pool in place."""
    for name in filter(measures.is_relative, names):
        known = [i for i, row in enumerate(rows) if name in row.terms]
        if not known:
            continue
        combined = measures.combine(name, [rows[i].terms[name] for i in known])
        for i, score in zip(known, combined, strict=True):
            scores = {**rows[i].scores, name: float(score)}
            rows[i] = dataclasses.replace(rows[i], scores=scores)
    return rows


def _score(
    this: Run,
    directory: epath.Path,
    measure: str,
    checksum: str,
    inputs: Callable[[], measures.Inputs],
    title: str,
) -> dict[str, Any] | None:
    """Returns the stored or computed result; None where there is none to be had."""
    options = this.config.measure_options.get(measure, {})
    wanted = {
        "measure": measure,
        "options": dict(options),
        "seed": this.config.seed,
        "num_bootstrap": this.config.num_bootstrap,
        "features": checksum,
        "version": rankckpt_jax.__version__,
    }
    place = directory / "scores" / f"{measure}.json"
    found = store.load_result(place, wanted)
    if found is not None:
        return dict(found.result)
    if "score" not in this.stages:
        return None
    start = time.monotonic()
    outcome: dict[str, Any]
    try:
        result = measures.compute_prepared(
            measure,
            inputs(),
            this.config.seed,
            this.config.num_bootstrap,
            **options,
        )
        outcome = {
            "score": result.score,
            "details": dict(result.details),
            "warning": result.warning,
        }
    except InputError as error:
        # A measure that is not defined here (no logits, say) says so in its cell.
        outcome = {"score": None, "details": {}, "warning": error.what}
    outcome["seconds"] = time.monotonic() - start
    store.save_result(place, wanted, outcome)
    _tell(title, measure, True, outcome["seconds"])
    return outcome


def _with_accuracy(
    this: Run,
    directory: epath.Path,
    backbone: backbone_lib.Backbone,
    row: Row,
    title: str,
) -> Row:
    outcome, computed = finetune.get(
        directory / "finetune",
        backbone,
        this.task,
        this.sweep,
        preprocess=this.config.preprocess,
        cache=this.cache,
        description=f"{title}: fine-tuning",
        compute="finetune" in this.stages,
    )
    if outcome is None:
        return row
    _tell(title, "fine-tuning", computed, outcome.seconds)
    diverged = sum(run.diverged_at >= 0 for run in outcome.runs)
    if outcome.accuracy is None:
        text = f"fine-tuning diverged at step {outcome.diverged_at}"
    elif diverged:
        text = f"{diverged} of {len(outcome.runs)} runs of fine-tuning diverged"
    else:
        text = ""
    if text:
        row = dataclasses.replace(row, warnings={**row.warnings, "accuracy": text})
    if (
        "early_stopping" in this.measures
        and outcome.early_stop_accuracy is not None
        and not row.failure
    ):
        # The one measure that fine-tuning itself makes.
        row = dataclasses.replace(
            row,
            scores={**row.scores, "early_stopping": outcome.early_stop_accuracy},
            warnings={
                name: text
                for name, text in row.warnings.items()
                if name != "early_stopping"
            },
        )
    return dataclasses.replace(
        row, accuracy=outcome.accuracy, finetune_seconds=outcome.seconds
    )


def _tell(title: str, what: str, computed: bool, seconds: float) -> None:
    how = f"computed in {seconds:.1f} s" if computed else "found, nothing to compute"
    _log.info("%s: %s %s", title, what, how)


def _measures(config: Any) -> tuple[str, ...]:
    """The measures that the config names; `all` leaves out what needs a file."""
    if config.measures.strip() == "all":
        return tuple(name for name in measures.names() if name != "static")
    return _names(config.measures, measures.names(), "config.measures")


def _names(given: str, known: tuple[str, ...], field: str) -> tuple[str, ...]:
    """Splits a comma-separated field and checks each name."""
    names = tuple(name.strip() for name in given.split(",") if name.strip())
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise InputError(
            f"Unknown name in {field}" if unknown else f"Nothing named in {field}",
            where=field,
            expected="some of " + ", ".join(known) + ", separated by commas",
            found=", ".join(unknown) or "nothing",
        )
    return names


def _check(config: Any) -> None:
    """Refuses what would only fail after long work."""
    if config.preprocess not in preprocess_lib.names():
        raise InputError(
            f"Unknown preprocessing {config.preprocess!r}",
            where="config.preprocess",
            expected="one of " + ", ".join(preprocess_lib.names()),
        )
    features.compute_dtype(config.dtype)
    for name in config.from_scratch.split(","):
        if name.strip():
            models.get(name.strip())
    if config.batch_size < 1:
        raise InputError(
            "A count must be at least 1",
            where="config.batch_size",
            found=str(config.batch_size),
        )
    if not config.checkpoints:
        raise InputError(
            "The config names no checkpoints",
            where="config.checkpoints",
            expected="a directory or glob with checkpoints below it, or hub handles",
            mend="--config.checkpoints=DIR",
        )


def _safe(name: str) -> str:
    """A task's name as one directory's name."""
    kept = "".join(c if c.isalnum() or c in "._-" else "_" for c in name).strip(".")
    return kept or "task"


def _provenance(this: Run, seconds: float) -> dict[str, Any]:
    return {
        "config": this.config.to_dict(),
        "rankckpt_jax": rankckpt_jax.__version__,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "numpy": np.__version__,
        "devices": parallel.describe_devices(),
        "jpeg decoder": preprocess_lib.JPEG_DECODER,
        "images": {
            split.name: split.fingerprint for split in this.task.splits.values()
        },
        "seconds of this run": round(seconds, 1),
    }
