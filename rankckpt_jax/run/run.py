"""Ranks the checkpoints that a config names: load, evaluate, rank, write.

    workdir/TASK/CHECKPOINT/features/   images -> features
    workdir/TASK/CHECKPOINT/scores/     features -> scores
    workdir/TASK/CHECKPOINT/finetune/   images -> test accuracy
    workdir/TASK/ranking.csv, ranking.json, report.html

Everything is cached, so an interrupted run resumes when it is started again.
"""

from __future__ import annotations

import dataclasses
import logging
import platform
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

import rankckpt_jax
from rankckpt_jax import report
from rankckpt_jax.benchmark import neucrab, published, standard
from rankckpt_jax.checkpoints import in_memory
from rankckpt_jax.data import decode
from rankckpt_jax.devices import (
    compilation,
    processes,
    profiling,
    progress,
    signals,
)
from rankckpt_jax.errors import Interrupted, UnreadableImage
from rankckpt_jax.evaluation.table import Table
from rankckpt_jax.report import tracking
from rankckpt_jax.results import comparison, predicted
from rankckpt_jax.results.ranking import Ranking, rank
from rankckpt_jax.results.row import Row
from rankckpt_jax.results.summary import summarize
from rankckpt_jax.run import (
    ablation,
    checkpoint,
    halving,
    keep,
    planned,
    race,
    recording,
    scoring,
    shard,
)
from rankckpt_jax.run.context import RunContext, load
from rankckpt_jax.run.illustrations import illustrate
from rankckpt_jax.run.pool import Member
from rankckpt_jax.run.remaining import Remaining, find_pending
from rankckpt_jax.storage import files

_log = logging.getLogger(__name__)


def run(config: Any, objects: Sequence[in_memory.Model] = ()) -> Ranking:
    """Run the stages of a config and return the ranking.

    Args:
      config: Fields as in configs/default.py.
      objects: Models in memory that are ranked beside the config's checkpoints.

    Returns:
      The ranking of all results in the work directory: those of this run, and those of
      earlier runs with the same settings.

    Raises:
      InputError: The config, the images or the whole pool cannot be used, or another
        run uses the same directory. Raised before any long work.
      StorageError: The work directory cannot be written. Earlier results are kept.
      Interrupted: The run was asked to stop (SIGTERM, Ctrl-C). Its results are kept.
    """
    start = time.monotonic()
    with (
        signals.handle_signals(),
        load(config, objects) as context,
        compilation.persistent_cache(context.compilation_cache),
        profiling.profile(context.profile),
    ):
        if context.make_pool is not None:
            context.make_pool()
        with recording.recording(context) as recorder:
            context, rows = evaluate_pool(context, recorder)
        measures = context.settings.measures
        ranking = rank(
            context.task.name,
            measures,
            comparison.compare_rows(rows, measures),
            task_description=context.task.description,
            provenance=_provenance(context, time.monotonic() - start),
            group_titles={**neucrab.GROUP_TITLES, **standard.GROUP_TITLES},
            metric=context.metric,
        )
        ranking = _add_prediction(ranking, context)
        ablations = ablation.run(context, ranking.rows)
        kept = keep.keep_best(context, ranking.rows) if context.keep else None
        ranking = dataclasses.replace(ranking, ablations=ablations, kept=kept)
        if "report" in context.stages and processes.is_main_process():
            _write_report(ranking, context)
    return ranking


def evaluate_pool(
    context: RunContext, recorder: recording.Recorder
) -> tuple[RunContext, list[Row]]:
    """Evaluate all checkpoints on the same images.

    If an image cannot be decoded, all such images are dropped, and all checkpoints are
    evaluated again on the others.

    Args:
      context: Everything that the stages need.
      recorder: Receives each row as soon as it is complete.

    Returns:
      The context, whose task has no corrupt images, and one row per checkpoint.
    """
    try:
        rows = _evaluate_members(context, recorder)
    except UnreadableImage as error:
        _log.warning("%s; searching for all such images ...", error)
        context = context.without_corrupt_images(search=True)
        rows = _evaluate_members(context, recorder)
    warnings = context.task.warnings
    rows = [
        dataclasses.replace(row, warnings={**warnings, **row.warnings}) for row in rows
    ]
    return context, published.merge_accuracies(
        rows, context.accuracies, context.accuracy_source
    )


def _evaluate_members(context: RunContext, recorder: recording.Recorder) -> list[Row]:
    """Evaluate the checkpoints of this shard, and load the rows of the others."""
    recorder.start(context)
    _log.info("%s on %s", context.task.description, processes.describe_devices())
    if known := recording.describe_known(context.known):
        _log.info("History: %s", known)
    for topic, text in context.task.warnings.items():
        _log.warning("%s: %s", topic, text)
    decided = race.run(context) if context.race else {}
    rows = []
    own = [
        member
        for member in context.members
        if context.evaluates(member.name) and member.name not in decided
    ]
    pending = find_pending(context, own)
    remaining = Remaining(pending)
    following = dict(zip([member.name for member in own], own[1:], strict=False))
    loading: dict[str, Member] = {}
    for position, member in enumerate(context.members):
        if member.name in decided:
            rows.append(decided[member.name])
            continue
        key = {} if context.shard is None else _row_key(context, member)
        if context.shard is None or context.shard.contains(position):
            if signals.should_stop():
                raise Interrupted(f"stopped before {member.name}")
            title = f"[{position + 1}/{len(context.members)}] {member.name}"
            later = following.get(member.name)
            if later is not None and "features" in pending[later.name]:
                loading[later.name] = checkpoint.load_ahead(context, later)
            member = loading.pop(member.name, member)
            row = checkpoint.evaluate(context, member, title, remaining.add)
            if estimate := remaining.finish(member.name):
                _log.info("%s: %s", context.task.name, estimate)
            if context.shard is not None:
                shard.save_row(context.directory, row, key)
        else:
            stored = shard.load_row(context.directory, member.name, key)
            owner = context.shard.owner(position)
            text = f"not evaluated yet: --config.shard={owner} evaluates it"
            row = stored or Row(
                member.name, group=member.group, warnings={"shard": text}
            )
        rows.append(row)
        recorder.add(row)
    if context.finetune_budget and "finetune" in context.stages:
        rows = planned.run(context, rows, _best(context, rows), recorder)
    elif context.sweep.budget and {"finetune", "report"} & set(context.stages):
        rows = halving.run(context, rows, _best(context, rows))
        recorder.add(*rows)
    elif "finetune" in context.stages and context.finetune_top:
        rows = _finetune_best(context, rows, recorder)
    return rows


def _best(context: RunContext, rows: Sequence[Row]) -> list[str]:
    """Return the best-ranked checkpoints, `context.finetune_top` of them or all."""
    measures = context.settings.measures
    compared = comparison.compare_rows(rows, measures)
    ranked = rank(context.task.name, measures, compared)
    if context.finetune_top:
        names = [row.checkpoint for row in ranked.scored_rows[: context.finetune_top]]
    else:
        names = [row.checkpoint for row in ranked.rows if not row.failure]
    # Scores may differ between processes by rounding, and all must train the same.
    return processes.broadcast_from_main(names)


def _finetune_best(
    context: RunContext, rows: Sequence[Row], recorder: recording.Recorder
) -> list[Row]:
    """Fine-tune the best-ranked checkpoints, `context.finetune_top` of them."""
    names = _best(context, rows)
    evaluated = {row.checkpoint: row for row in rows}
    members = {member.name: member for member in context.members}
    # A stored result has been loaded already.
    missing = [name for name in names if evaluated[name].finetune_seconds is None]
    if missing:
        _log.info(
            "%s: fine-tuning the best %d of %d by %s",
            *(context.task.name, len(names), len(rows)),
            context.settings.measures[0],
        )
    remaining = Remaining({name: ("loading", "fine-tuning") for name in missing})
    for number, name in enumerate(missing, start=1):
        if signals.should_stop():
            raise Interrupted(f"stopped before fine-tuning {name}")
        title = f"[{number}/{len(missing)}] {name}"
        evaluated[name] = checkpoint.finetune_later(
            context, members[name], evaluated[name], title, remaining.add
        )
        recorder.add(evaluated[name])
        if estimate := remaining.finish(name):
            _log.info("%s: %s", context.task.name, estimate)
    return list(evaluated.values())


def _add_prediction(ranking: Ranking, context: RunContext) -> Ranking:
    """Add the predicted accuracies; only process 0 has read the history.

    The demo has no prediction. Recorded tasks have public networks, and its networks
    are tiny, some of them trained on random labels.
    """
    if not processes.is_main_process() or "pretrain" in context.config:
        return ranking

    def read_history() -> list[Table]:
        table = recording.earlier_results(context, ranking.rows)
        return [] if table is None else [table]

    test = context.task.splits.get("test")
    return predicted.add_prediction(
        ranking, read_history, test.num_examples if test is not None else None
    )


def _write_report(ranking: Ranking, context: RunContext) -> None:
    with progress.step(ranking.task, "writing the report"):
        summary = summarize(illustrate(ranking, context))
        path = report.write(summary, context.directory)
    with progress.step(ranking.task, "recording the ranking", announce=False):
        tracking.track(context.trackers, summary, context.directory)
    _log.info("Report: %s", files.display(path))


def _row_key(context: RunContext, member: Member) -> dict[str, Any]:
    settings = context.settings
    input_files = {
        measure: scoring.digest_files(measure, settings.options.get(measure, {}))
        for measure in settings.measures
    }
    return shard.row_key(context.config, context.images, input_files, member.identify())


def _provenance(context: RunContext, seconds: float) -> dict[str, Any]:
    """Return what made a ranking: config, versions, devices and images."""
    left_out = {
        split.name: dict(split.unreadable)
        for split in context.task.splits.values()
        if split.unreadable
    }
    return {
        "config": context.config,
        "rankckpt_jax": rankckpt_jax.__version__,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "numpy": np.__version__,
        "devices": processes.describe_devices(),
        "jpeg decoder": decode.JPEG_DECODER,
        "images": context.images,
        **({"images left out": left_out} if left_out else {}),
        **({"accuracies": context.unmatched} if context.unmatched else {}),
        "seconds of this run": round(seconds, 1),
    }
