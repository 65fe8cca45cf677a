"""Takes one checkpoint through extraction, scoring and fine-tuning, into a `Row`."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable

from rankckpt_jax import finetune, models
from rankckpt_jax.checkpoints.backbone import Backbone
from rankckpt_jax.devices import processes, signals
from rankckpt_jax.errors import (
    InputError,
    Interrupted,
    StorageError,
    UnreadableImage,
    describe_unexpected,
)
from rankckpt_jax.features import extract, precomputed
from rankckpt_jax.features.feature_set import FeatureSet
from rankckpt_jax.results.row import Row
from rankckpt_jax.run import scoring
from rankckpt_jax.run.context import RunContext
from rankckpt_jax.run.pool import Member

_log = logging.getLogger(__name__)


def evaluate(context: RunContext, member: Member, title: str) -> Row:
    """Evaluate one checkpoint; what it raises becomes the row's failure.

    The traceback of an error that is not an `InputError` is logged. With several
    processes such an error is raised, because the others would wait for this one.

    Args:
      context: Everything that the stages need.
      member: The checkpoint.
      title: Prefix of log lines, such as "[2/5] resnet_v1_50".

    Raises:
      StorageError: Results cannot be written, which would fail for every checkpoint.
      UnreadableImage: An image cannot be decoded, which concerns every checkpoint.
      Interrupted: The run was asked to stop.
    """

    def evaluate_member() -> Row:
        if member.features is not None:
            row = _evaluate_features(context, member, title)
        else:
            row = _evaluate_backbone(context, member, title)
        if member.warning:
            row = _with_warning(row, "checkpoint", member.warning)
        return row

    return _with_failures(member, title, evaluate_member)


def finetune_later(context: RunContext, member: Member, row: Row, title: str) -> Row:
    """Fine-tune a checkpoint that `evaluate` only scored.

    Args:
      context: Everything that the stages need.
      member: The checkpoint.
      row: The result of `evaluate`.
      title: Prefix of log lines.

    Returns:
      The row with its accuracy; what fine-tuning raises becomes its failure.

    Raises:
      StorageError, UnreadableImage, Interrupted: See `evaluate`.
    """
    return _with_failures(
        member,
        title,
        lambda: _finetune(context, member.load(), row, title, compute=True),
    )


def _with_failures(member: Member, title: str, make_row: Callable[[], Row]) -> Row:
    try:
        return make_row()
    except (StorageError, UnreadableImage, Interrupted):
        raise
    except InputError as error:
        _log.error("%s: failed: %s", title, error)
        return Row(member.name, group=member.group, failure=str(error))
    except Exception as error:
        if processes.process_count() > 1:
            raise
        _log.exception("%s: failed", title)
        return Row(member.name, group=member.group, failure=describe_unexpected(error))


def load_features(context: RunContext, name: str) -> FeatureSet | None:
    """Load the stored features of the training images, or None if there are none."""
    [member] = [member for member in context.members if member.name == name]
    path = member.features or context.directory / name / "features" / "train"
    try:
        return precomputed.load_features(path)
    except InputError as error:
        _log.warning("%s", error)
        return None


def log_event(title: str, what: str, seconds: float | None) -> None:
    """Log that a result was computed in so many seconds, or loaded."""
    if seconds is None:
        _log.info("%s: loaded cached %s", title, what)
    else:
        _log.info("%s: computed %s (%.1f s)", title, what, seconds)


def _evaluate_backbone(context: RunContext, member: Member, title: str) -> Row:
    backbone = member.load()
    low, high = backbone.input_range
    preprocessing = f"{context.preprocess}, values {low:g} to {high:g}"
    if any(backbone.input_mean):
        mean = ", ".join(f"{value:g}" for value in backbone.input_mean)
        preprocessing += f" less {mean}"
    row = Row(
        member.name,
        architecture=backbone.architecture,
        group=member.group,
        num_parameters=backbone.num_parameters,
        multiply_adds=_multiply_adds(backbone.architecture, backbone.image_size),
        feature_dim=backbone.feature_dim,
        image_size=backbone.image_size,
        own_image_size=backbone.own_image_size,
        warnings=backbone.warnings,
        feature_tensor=backbone.feature_tensor,
        preprocessing=preprocessing,
        source_accuracy=member.facts.get("source_accuracy"),
    )
    row = _extract_and_score(context, member, backbone, row, title)
    # The best checkpoints are known, and fine-tuned, only after all are scored.
    compute = "finetune" in context.stages and not context.finetune_top
    return _finetune(context, backbone, row, title, compute=compute)


def _evaluate_features(context: RunContext, member: Member, title: str) -> Row:
    assert member.features is not None
    loaded = precomputed.load_features(member.features)
    scoring.check(loaded, str(member.features))
    known = loaded.accuracy is not None
    row = Row(
        member.name,
        architecture=loaded.architecture,
        group=member.group,
        accuracy=loaded.accuracy,
        accuracy_source=member.features.name if known else "",
        extract_seconds=loaded.seconds,
        extract_images=len(loaded.labels),
        num_parameters=loaded.num_parameters,
        feature_dim=loaded.features.shape[-1],
        image_size=loaded.image_size,
    )
    return _score(context, member, loaded, row, title)


@functools.cache
def _multiply_adds(architecture: str, image_size: int) -> int | None:
    """Return the cost of one image, or None for a converted graph."""
    if architecture not in models.names():
        return None
    return models.multiply_adds(architecture, image_size)


def _extract_and_score(
    context: RunContext, member: Member, backbone: Backbone, row: Row, title: str
) -> Row:
    split = context.task.splits["train"]
    extracted, computed = extract.load_or_extract(
        context.directory / member.name / "features",
        backbone,
        split,
        preprocess=context.preprocess,
        dtype=context.dtype,
        batch_size=context.batch_size,
        cache=context.cache,
        description=f"{title}: features",
        compute="extract" in context.stages,
    )
    if extracted is None:
        failure = "no features yet: run the stage `extract`"
        return dataclasses.replace(row, failure=failure)
    log_event(title, "features", extracted.seconds if computed else None)
    row = dataclasses.replace(
        row, extract_seconds=extracted.seconds, extract_images=split.num_examples
    )
    return _score(context, member, extracted, row, title)


def _score(
    context: RunContext,
    member: Member,
    extracted: FeatureSet,
    row: Row,
    title: str,
) -> Row:
    return scoring.score_row(
        row,
        extracted,
        context.settings,
        facts=member.facts,
        directory=context.directory / member.name / "scores",
        compute="score" in context.stages,
        on_computed=functools.partial(log_event, title),
    )


def _finetune(
    context: RunContext, backbone: Backbone, row: Row, title: str, *, compute: bool
) -> Row:
    result, computed = finetune.load_or_run(
        context.directory / row.checkpoint / "finetune",
        backbone,
        context.task,
        context.sweep,
        preprocess=context.preprocess,
        cache=context.cache,
        description=f"{title}: fine-tuning",
        compute=compute,
        should_stop=lambda step: signals.should_stop(),
    )
    if result is None:
        return row
    log_event(title, "fine-tuning", result.seconds if computed else None)
    if result.warning:
        row = _with_warning(row, "accuracy", result.warning)
    if "early_stopping" in context.settings.measures and not row.failure:
        row = _with_early_stopping(row, result.early_stop_accuracy)
    return dataclasses.replace(
        row,
        accuracy=result.accuracy,
        finetune_seconds=result.seconds,
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


def _with_warning(row: Row, topic: str, text: str) -> Row:
    return dataclasses.replace(row, warnings={**row.warnings, topic: text})
