"""Fine-tunes one checkpoint of a run, and adds the result to its row."""

from __future__ import annotations

import dataclasses
from typing import Any

from rankckpt_jax import finetune
from rankckpt_jax.checkpoints import network_files
from rankckpt_jax.data import preprocess as preprocess_lib
from rankckpt_jax.devices import progress, signals
from rankckpt_jax.results.row import Row
from rankckpt_jax.run.context import RunContext
from rankckpt_jax.run.events import Events
from rankckpt_jax.run.network import Network


def load_finetuned(
    context: RunContext, network: Network, name: str
) -> finetune.SweepResult | None:
    """Return the stored result of fine-tuning a checkpoint, or None."""
    return finetune.load(
        context.directory / name / "finetune",
        network.description,
        context.task,
        context.sweep,
        preprocess=rule(context, network),
    )


def _load_start(
    context: RunContext, network: Network, row: Row
) -> finetune.Start | None:
    return finetune.load_start(
        context.directory / row.checkpoint / "finetune",
        network.description,
        context.task,
        context.sweep,
        preprocess=rule(context, network),
    )


def rule(context: RunContext, network: Network) -> str:
    """Return the rule of `preprocess.resize` for a checkpoint."""
    return preprocess_lib.resolve(
        context.preprocess, network.description.own_preprocess
    )


def finetune_row(
    context: RunContext,
    network: Network,
    row: Row,
    events: Events,
    *,
    compute: bool,
    only_start: bool = False,
) -> Row:
    """Fine-tune a checkpoint, or load the stored result.

    Args:
      context: Everything that the stages need.
      network: The checkpoint.
      row: Its row.
      events: Receives what was computed.
      compute: Whether to fine-tune if no result is stored.
      only_start: Whether to end after the first part; see `finetune.start`.

    Returns:
      The row, with its accuracy if there is a result, and within a budget of time with
      the first part of its fine-tuning.

    Raises:
      InputError: See `finetune.run`, or its weights cannot be kept.
      Interrupted: The run was asked to stop.
    """
    if context.sweep.budget:
        # `halving` fine-tunes all checkpoints together.
        return row
    directory = context.directory / row.checkpoint / "finetune"
    if context.starts_first:
        row = dataclasses.replace(row, started=_load_start(context, network, row))
    result = load_finetuned(context, network, row.checkpoint)
    if result is not None:
        events.add("fine-tuning", None)
    elif compute:
        backbone = network.load()
        if context.keep:
            network_files.check(backbone.apply, row.checkpoint)
        count = len(context.sweep.trials)
        trials = "1 trial" if count == 1 else f"{count} trials"
        arguments = (directory, backbone, context.task, context.sweep)
        options: dict[str, Any] = {
            "preprocess": rule(context, network),
            "cache": context.cache,
            "description": f"{events.title}: fine-tuning",
            "should_stop": lambda step: signals.should_stop(),
        }
        if only_start:
            with progress.step(events.title, f"first part of fine-tuning, {trials}"):
                prepared = finetune.prepare(*arguments, **options)
                start = finetune.start(prepared, options["description"])
            events.add("fine-tuning", start.seconds)
            return dataclasses.replace(row, started=start)
        with progress.step(events.title, f"fine-tuning, {trials}"):
            result = finetune.run(
                *arguments, **options, keep_weights=bool(context.keep)
            )
        events.add("fine-tuning", result.seconds)
    else:
        return row
    if result.warning:
        warnings = {**row.warnings, "accuracy": result.warning}
        row = dataclasses.replace(row, warnings=warnings)
    return with_result(context, row, result)


def with_result(context: RunContext, row: Row, result: finetune.SweepResult) -> Row:
    """Return the row with the result of fine-tuning."""
    if "early_stopping" in context.settings.measures and not row.failure:
        row = _with_early_stopping(row, result.early_stop_accuracy)
    return dataclasses.replace(
        row,
        accuracy=result.accuracy,
        metrics=result.values,
        finetune_seconds=result.seconds,
        compile_seconds={
            **row.compile_seconds,
            "fine-tuning": result.compile_seconds,
        },
        finetune_images=result.images,
        curve=result.curve,
    )


def _with_early_stopping(row: Row, accuracy: float | None) -> Row:
    """Fill in the only measure that fine-tuning computes."""
    if accuracy is None:
        return row
    warnings = {k: v for k, v in row.warnings.items() if k != "early_stopping"}
    scores = {**row.scores, "early_stopping": accuracy}
    return dataclasses.replace(row, scores=scores, warnings=warnings)
