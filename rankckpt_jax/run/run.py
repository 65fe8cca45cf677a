"""The stages of a run, in the order in which data flows through them.

    pretrain  a pool of checkpoints, where the config asks for one
    extract   images -> features, once per checkpoint
    score     features -> scores
    ablate    features -> scores by NLEEP over its options, for a plot
    finetune  images -> test accuracy, per checkpoint
    report    scores and accuracies -> ranking.csv, report.html, a printed ranking

A checkpoint that fails becomes a row that says why, and the others go on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

import rankckpt_jax
from rankckpt_jax import finetune, models, report
from rankckpt_jax.benchmark import demo as pretrain
from rankckpt_jax.benchmark import neucrab
from rankckpt_jax.benchmark import published as accuracies
from rankckpt_jax.checkpoints import backbone as backbone_lib
from rankckpt_jax.data import corrupt_images as readable
from rankckpt_jax.data import pipeline, tasks
from rankckpt_jax.data import preprocess as preprocess_lib
from rankckpt_jax.data import splits as splits_lib
from rankckpt_jax.devices import processes, signals
from rankckpt_jax.errors import (
    InputError,
    Interrupted,
    StorageError,
    UnreadableImage,
    redact,
)
from rankckpt_jax.features import extract, precomputed, views
from rankckpt_jax.features.feature_set import FeatureSet
from rankckpt_jax.results import comparison
from rankckpt_jax.results.ablation import Ablation
from rankckpt_jax.results.ranking import Ranking, rank
from rankckpt_jax.results.row import Row
from rankckpt_jax.results.summary import summarize
from rankckpt_jax.run import ablation, division, pool, scoring, validation
from rankckpt_jax.storage import claims, files, store

STAGES = ("pretrain", "extract", "score", "ablate", "finetune", "report")

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Run:
    """What every stage needs.

    Attributes:
      config: As `configs/default.py` describes.
      stages: Names of the stages to run.
      settings: What is scored; the measure that orders the ranking first.
      task: The task.
      sweep: How checkpoints are fine-tuned.
      directory: `workdir/TASK`.
      cache: Decoded images.
      members: The pool; empty where it is still to be made, or only its features are
        known.
    """

    config: Any
    stages: tuple[str, ...]
    settings: scoring.Settings
    task: tasks.Task
    sweep: finetune.Sweep
    directory: epath.Path
    cache: pipeline.ImageCache
    members: tuple[pool.Member, ...]


def run(config: Any) -> Ranking:
    """Runs a config's stages and returns the ranking.

    Args:
      config: As `configs/default.py` describes.

    Returns:
      The ranking of whatever is known: of the stages just run, and of those run
      before in the same workdir.

    Raises:
      InputError: The config, the images or the whole pool cannot be used, or another
        run is at work in the same directory; raised before any long work starts.
      StorageError: The workdir can no longer be written; what was computed is kept.
      Interrupted: The run has been told to end (SIGTERM); what was computed is kept.
    """
    with signals.handle_signals(), contextlib.ExitStack() as claimed:
        return _run(config, claimed)


def _run(config: Any, claimed: contextlib.ExitStack) -> Ranking:
    started = time.monotonic()
    validation.check_fields(config)
    stages = scoring.parse_list(config.stages, STAGES, "config.stages")
    settings = scoring.Settings(
        scoring.parse_measures(config.measures, "config.measures"),
        config.measure_options.to_dict(),
        config.seed,
        config.num_bootstrap,
    )
    scoring.check_settings(settings)
    validation.check(config, stages, settings)
    if not config.features:
        pool.check(config)
    sweep = finetune.sweep(config.finetune, config.seed)
    task = _precomputed_task(config) if config.features else tasks.load(config.task)
    if "finetune" in stages:
        finetune.check(task, sweep)
    known, source = accuracies.load_accuracies(config.accuracies, task.name)
    this = Run(
        config,
        stages,
        settings,
        task,
        sweep,
        epath.Path(config.workdir).expanduser()
        / files.directory_name(task.name, "task"),
        pipeline.ImageCache(config.image_cache_gigabytes),
        () if config.features or "pretrain" in stages else tuple(pool.members(config)),
    )
    store.check(this.directory)
    validation.check_same_images(task)
    if set(stages) != {"report"}:
        processes.sync_errors(functools.partial(_claim, this, claimed))
    this, rows = _rows_of_whole_images(this)
    task = this.task
    rows = [
        dataclasses.replace(row, warnings={**task.warnings, **row.warnings})
        for row in rows
    ]
    rows = comparison.compare_rows(rows, settings.measures)
    rows = accuracies.merge_accuracies(rows, known, source)
    ranking = rank(
        task.name,
        settings.measures,
        rows,
        task_description=task.description,
        provenance=_provenance(this, time.monotonic() - started),
        group_titles={g: neucrab.title(g) for row in rows for g in row.groups},
    )
    ranking = dataclasses.replace(ranking, ablations=_ablations(this, ranking))
    if "report" in stages and processes.is_main_process():
        report.write(summarize(_illustrated(this, ranking)), this.directory)
    return ranking


def _stored(this: Run, name: str) -> FeatureSet | None:
    """A checkpoint's features of the training images, wherever they are kept."""
    if this.config.features:
        path = dict(precomputed.find_features(this.config.features))[name]
    else:
        path = this.directory / name / "features" / "train"
    try:
        return precomputed.load_features(path)
    except InputError as error:
        _log.warning("%s", error)
        return None


def _ablations(this: Run, ranking: Ranking) -> tuple[Ablation, ...]:
    """Scores every point of the grid that is not stored; without the stage, none."""
    if ablation.MEASURE not in this.settings.measures:
        return ()
    points: dict[tuple[str, float], dict[str, float]] = {}
    compute = "ablate" in this.stages
    rows = [row for row in ranking.rows if not row.failure]
    for row in rows if compute else _with_ablations(this, rows):
        found = _stored(this, row.checkpoint)
        if found is None:
            continue
        for option, values in ablation.GRID.items():
            for value in values:
                directory = this.directory / row.checkpoint / "scores"
                scored = scoring.score_row(
                    Row(row.checkpoint),
                    found.features,
                    found.labels,
                    None,
                    ablation.settings(this.settings, option, value),
                    directory=ablation.place(directory, option, value),
                    checksum=found.checksum,
                    compute=compute,
                    tell=functools.partial(_tell_point, row.checkpoint, option, value),
                )
                if (score := scored.score(ablation.MEASURE)) is not None:
                    points.setdefault((option, value), {})[row.checkpoint] = score
    return ablation.evaluate(points, rows, this.settings)


def _with_ablations(this: Run, rows: list[Row]) -> list[Row]:
    return [
        row
        for row in rows
        if (this.directory / row.checkpoint / "scores" / "ablation").exists()
    ]


def _tell_point(
    name: str, option: str, value: float, measure: str, seconds: float
) -> None:
    _tell(f"{name}, {option} {value:g}", measure, True, seconds)


def _illustrated(this: Run, ranking: Ranking) -> Ranking:
    """Adds what the page shows of features and images."""
    ranked = [row.checkpoint for row in ranking.scored_rows]
    shown = list(dict.fromkeys(ranked[:2] + ranked[2:][-2:]))
    looked = []
    for name in shown:
        found = _stored(this, name)
        if found is not None:
            looked.append(
                views.summarize(
                    name, found.features, found.labels, this.task.class_names
                )
            )
    samples: tuple[views.Sample, ...] = ()
    test = this.task.splits.get("test")
    if ranking.best is not None and ranking.best.image_size and this.task.splits:
        samples = views.samples(
            this.task.splits["train"],
            this.task.class_names,
            size=ranking.best.image_size,
            preprocess=this.config.preprocess,
        )
    return dataclasses.replace(
        ranking,
        views=tuple(looked),
        samples=samples,
        num_test=None if test is None else test.num_examples,
    )


def _claim(this: Run, claimed: contextlib.ExitStack) -> None:
    """Keeps other runs from working here, until `claimed` is closed."""
    if processes.is_main_process():
        shared = this.config.shard_checkpoints
        claimed.enter_context(claims.sole(this.directory, shared=shared))


def _rows_of_whole_images(this: Run) -> tuple[Run, list[Row]]:
    """Makes all rows from the same images, those that can be decoded.

    Returns:
      The run, its task without the others; the rows.
    """
    whole = this.task
    most = this.config.task.get("max_unreadable", splits_lib.MAX_UNREADABLE)
    look_in: tuple[str, ...] = ()
    if "finetune" in this.stages:
        # Training has all processes wait for each other at every step: an image that
        # one of them cannot decode would be the end of all.
        look_in = finetune.splits_used(whole, this.sweep)
    again = False
    while True:
        task = readable.drop_corrupt(
            whole, this.directory / ".images", most, look_in=look_in, again=again
        )
        this = dataclasses.replace(this, task=task)
        _log.info("%s on %s", task.description, processes.describe_devices())
        for topic, text in task.warnings.items():
            _log.warning("%s: %s", topic, text)
        try:
            return this, _rows(this)
        except UnreadableImage as error:
            if again:
                # All were decoded a moment ago: it is not the images that are broken.
                raise
            _log.warning("%s; looking for all such images", error)
            look_in, again = (*look_in, "train"), True


def _rows(this: Run) -> list[Row]:
    """Takes every checkpoint of the pool through the stages."""
    makers = _precomputed_makers(this) if this.config.features else _makers(this)
    if this.config.shard_checkpoints:
        version = json.dumps(this.config.to_dict(), sort_keys=True, default=str)
        return division.rows(this.directory, makers, files.digest(version))
    rows = []
    for name, make in makers.items():
        if signals.should_stop():
            raise Interrupted(f"stopped before {name}, as asked")
        rows.append(make())
    return rows


def _makers(this: Run) -> dict[str, Callable[[], Row]]:
    if "pretrain" in this.stages:
        with _pretraining(this):
            _pretrain(this)
    members = this.members or pool.members(this.config)
    return {
        member.name: functools.partial(
            _row, this, member, f"[{position}/{len(members)}] {member.name}"
        )
        for position, member in enumerate(members, start=1)
    }


@contextlib.contextmanager
def _pretraining(this: Run) -> Iterator[None]:
    """One job at a time makes the pool."""
    while this.config.shard_checkpoints:
        try:
            with claims.held(this.directory, "pretrain"):
                yield
            return
        except claims.Taken:
            time.sleep(1.0)
    yield


def _precomputed_task(config: Any) -> tasks.Task:
    """Stands for a task of which only features are known."""
    found = precomputed.find_features(config.features)
    first = found[0][1]
    # Of a store, the task is three levels above `features/SPLIT`.
    folder = first.parent if first.suffix == ".npz" else first.parents[2]
    name = config.task.name or folder.resolve().name
    told = f"features of {len(found)} checkpoints, made elsewhere, from {folder}"
    return tasks.Task(name, (), {}, told)


def _precomputed_makers(this: Run) -> dict[str, Callable[[], Row]]:
    found = precomputed.find_features(this.config.features)
    return {
        name: functools.partial(
            _precomputed_row, this, name, path, f"[{position}/{len(found)}] {name}"
        )
        for position, (name, path) in enumerate(found, start=1)
    }


def _pretrain(this: Run) -> None:
    settings = this.config.pretrain
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


def _row(this: Run, member: pool.Member, title: str) -> Row:
    """Takes one checkpoint through the stages; what goes wrong becomes the row."""
    try:
        row = _measured(this, member, title)
    except (StorageError, UnreadableImage):
        # Of the disk, or of all checkpoints' images: not of this one.
        raise
    except InputError as error:
        _log.error("%s failed: %s", title, error)
        return Row(member.name, group=member.group, failure=str(error))
    if member.warning:
        warnings = {**row.warnings, "checkpoint": member.warning}
        row = dataclasses.replace(row, warnings=warnings)
    return row


def _measured(this: Run, member: pool.Member, title: str) -> Row:
    backbone = member.load()
    directory = this.directory / member.name
    row = Row(
        member.name,
        architecture=backbone.architecture,
        group=member.group,
        num_parameters=backbone.num_parameters,
        multiply_adds=_multiply_adds(backbone.architecture, backbone.image_size),
        feature_dim=backbone.feature_dim,
        image_size=backbone.image_size,
        preprocessing=_preprocessing(this, backbone),
        source_accuracy=member.facts.get("source_accuracy"),
    )
    row = _with_scores(this, directory, backbone, member.facts, row, title)
    return _with_accuracy(this, directory, backbone, row, title)


def _preprocessing(this: Run, backbone: backbone_lib.Backbone) -> str:
    low, high = backbone.input_range
    told = f"{this.config.preprocess}, values {low:g} to {high:g}"
    if any(backbone.input_mean):
        told += " less " + ", ".join(f"{value:g}" for value in backbone.input_mean)
    return told


@functools.cache
def _multiply_adds(architecture: str, image_size: int) -> int | None:
    """Of one image, where the network is one of `models`; graphs are not counted."""
    if architecture not in models.names():
        return None
    return models.multiply_adds(architecture, image_size)


def _precomputed_row(this: Run, name: str, path: epath.Path, title: str) -> Row:
    """The row of features that were made elsewhere."""
    group = ", ".join(neucrab.groups_of(name))
    try:
        found = precomputed.load_features(path)
        scoring.check(found.features, found.labels, found.logits, str(path))
        row = Row(
            name,
            architecture=found.architecture,
            group=group,
            accuracy=found.accuracy,
            accuracy_source="" if found.accuracy is None else path.name,
            extract_seconds=found.seconds,
            extract_images=len(found.labels),
            num_parameters=found.num_parameters,
            feature_dim=found.features.shape[-1],
            image_size=found.image_size,
        )
        return _scored(
            this, this.directory / name, found, neucrab.facts_of(name), row, title
        )
    except StorageError:
        raise
    except InputError as error:
        _log.error("%s failed: %s", title, error)
        return Row(name, group=group, failure=str(error))


def _with_scores(
    this: Run,
    directory: epath.Path,
    backbone: backbone_lib.Backbone,
    facts: Mapping[str, Any],
    row: Row,
    title: str,
) -> Row:
    split = this.task.splits["train"]
    load = functools.partial(
        extract.load_or_extract,
        directory / "features",
        backbone,
        split,
        preprocess=this.config.preprocess,
        dtype=extract.compute_dtype(this.config.dtype),
        batch_size=this.config.batch_size,
        cache=this.cache,
        description=f"{title}: features",
    )
    extracted, computed = load(compute="extract" in this.stages)
    if extracted is None:
        return dataclasses.replace(
            row, failure="no features yet: run the stage `extract`"
        )
    _tell(title, "features", computed, extracted.seconds or 0.0)
    row = dataclasses.replace(
        row, extract_seconds=extracted.seconds, extract_images=split.num_examples
    )
    return _scored(this, directory, extracted, facts, row, title)


def _scored(
    this: Run,
    directory: epath.Path,
    extracted: FeatureSet,
    facts: Mapping[str, Any],
    row: Row,
    title: str,
) -> Row:
    return scoring.score_row(
        row,
        extracted.features,
        extracted.labels,
        extracted.logits,
        this.settings,
        facts=facts,
        directory=directory / "scores",
        checksum=extracted.checksum,
        compute="score" in this.stages,
        tell=lambda measure, seconds: _tell(title, measure, True, seconds),
    )


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
        should_stop=lambda step: signals.should_stop(),
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
        "early_stopping" in this.settings.measures
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
        row,
        accuracy=outcome.accuracy,
        finetune_seconds=outcome.seconds,
        finetune_images=outcome.images,
        curve=_curve(outcome),
    )


def _curve(outcome: finetune.Outcome) -> tuple[tuple[int, float], ...]:
    """Of the run with the chosen settings that was measured most often."""
    runs = [
        run
        for run in outcome.runs
        if (run.learning_rate, run.num_steps)
        == (outcome.learning_rate, outcome.num_steps)
    ]
    curves = [tuple((int(s), float(a)) for s, a in run.curve) for run in runs]
    return max(curves, key=len, default=())


def _tell(title: str, what: str, computed: bool, seconds: float) -> None:
    how = f"computed in {seconds:.1f} s" if computed else "found, nothing to compute"
    _log.info("%s: %s %s", title, what, how)


def _provenance(this: Run, seconds: float) -> dict[str, Any]:
    left_out = {
        split.name: dict(split.unreadable)
        for split in this.task.splits.values()
        if split.unreadable
    }
    return {
        "config": redact(this.config.to_dict()),
        "rankckpt_jax": rankckpt_jax.__version__,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "numpy": np.__version__,
        "devices": processes.describe_devices(),
        "jpeg decoder": preprocess_lib.JPEG_DECODER,
        "images": {
            split.name: split.fingerprint for split in this.task.splits.values()
        },
        **({"images left out": left_out} if left_out else {}),
        "seconds of this run": round(seconds, 1),
    }
