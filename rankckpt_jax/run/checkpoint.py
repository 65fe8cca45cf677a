"""Takes one checkpoint through extraction, scoring and fine-tuning, into a `Row`."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable
from typing import Any

from rankckpt_jax import finetune, measures
from rankckpt_jax.data.splits import Split
from rankckpt_jax.devices import background, processes, progress
from rankckpt_jax.errors import (
    InputError,
    Interrupted,
    StorageError,
    UnreadableImage,
    describe_unexpected,
)
from rankckpt_jax.features import blocks as blocks_lib
from rankckpt_jax.features import extract, parts, precomputed
from rankckpt_jax.features.feature_set import FeatureSet
from rankckpt_jax.measures import weight_spectra
from rankckpt_jax.results.row import Row
from rankckpt_jax.run import finetuning, layers, scoring
from rankckpt_jax.run.context import RunContext
from rankckpt_jax.run.events import Events, OnComputed, ignore
from rankckpt_jax.run.network import Network, load_weight_spectra, open_network
from rankckpt_jax.run.pool import Member

NO_FEATURES = "no features yet: run the stage `extract`"
"""The failure of a checkpoint whose features are missing."""

_log = logging.getLogger(__name__)


def evaluate(
    context: RunContext,
    member: Member,
    title: str,
    on_computed: OnComputed = ignore,
) -> Row:
    """Evaluate one checkpoint; what it raises becomes the row's failure.

    The traceback of an error that is not an `InputError` is logged. With several
    processes such an error is raised, because the others would wait for this one.

    Args:
      context: Everything that the stages need.
      member: The checkpoint.
      title: Prefix of log lines, such as "[2/5] resnet_v1_50".
      on_computed: Called with the name and the seconds of each computed result; see
        `remaining.Remaining`.

    Raises:
      StorageError: Results cannot be written, which would fail for every checkpoint.
      UnreadableImage: An image cannot be decoded, which concerns every checkpoint.
      Interrupted: The run was asked to stop.
    """
    events = Events(title, on_computed)

    def evaluate_member() -> Row:
        if member.features is not None:
            row = _evaluate_features(context, member, events)
        else:
            row = _evaluate_backbone(context, member, events)
        if member.warning:
            row = with_warning(row, "checkpoint", member.warning)
        return row

    return with_failures(member, events, evaluate_member)


def finetune_later(
    context: RunContext,
    member: Member,
    row: Row,
    title: str,
    on_computed: OnComputed = ignore,
    *,
    only_start: bool = False,
) -> Row:
    """Fine-tune a checkpoint that `evaluate` only scored.

    Args:
      context: Everything that the stages need.
      member: The checkpoint.
      row: The result of `evaluate`.
      title: Prefix of log lines.
      on_computed: As for `evaluate`.
      only_start: Whether to end after the first part; see `finetune.start`.

    Returns:
      The row with its accuracy; what fine-tuning raises becomes its failure.

    Raises:
      StorageError, UnreadableImage, Interrupted: See `evaluate`.
    """
    events = Events(title, on_computed)

    def finetune_member() -> Row:
        network = open_network(context, member, title, on_computed)
        return finetuning.finetune_row(
            context, network, row, events, compute=True, only_start=only_start
        )

    return with_failures(member, events, finetune_member)


def with_failures(member: Member, events: Events, make_row: Callable[[], Row]) -> Row:
    """Return what `make_row` returns; what it raises becomes the row's failure.

    Raises:
      StorageError, UnreadableImage, Interrupted: See `evaluate`.
    """
    try:
        return make_row()
    except (StorageError, UnreadableImage, Interrupted):
        raise
    except InputError as error:
        _log.error("%s: failed: %s", events.title, error)
        return Row(member.name, group=member.group, failure=str(error))
    except Exception as error:
        if processes.process_count() > 1:
            raise
        _log.exception("%s: failed", events.title)
        return Row(member.name, group=member.group, failure=describe_unexpected(error))
    finally:
        events.log()


def load_features(context: RunContext, name: str) -> FeatureSet | None:
    """Load the stored features of the training images, or None if there are none."""
    [member] = [member for member in context.members if member.name == name]
    directory = context.directory / name / "features"
    path = member.features or directory / context.scored_split.name
    try:
        loaded = precomputed.load_features(path, context.task.target)
        if context.features_from == "blocks" and member.features is None:
            place = blocks_lib.place(directory, context.scored_split.name)
            loaded = blocks_lib.read_joined(place, loaded)
        return loaded
    except InputError as error:
        _log.warning("%s", error)
        return None


def _evaluate_backbone(context: RunContext, member: Member, events: Events) -> Row:
    network = open_network(context, member, events.title, events.on_computed)
    row = describe(context, member, network)
    # The best checkpoints are known, and fine-tuned, only after all are scored.
    compute = "finetune" in context.stages and not context.finetunes_later
    wait = (
        _compile_finetuning(context, network, member.name, events) if compute else None
    )
    if any(measures.get(name).needs_weights for name in context.settings.measures):
        member = _with_weight_spectra(context, member, network, events)
    row = _extract_and_score(context, member, network, row, events)
    if wait is not None:
        wait()
    return finetuning.finetune_row(context, network, row, events, compute=compute)


def describe(context: RunContext, member: Member, network: Network) -> Row:
    """Return the row of a checkpoint without its results."""
    checkpoint = network.description
    low, high = checkpoint.input_range
    preprocess = finetuning.rule(context, network)
    preprocessing = f"{preprocess}, values {low:g} to {high:g}"
    if any(checkpoint.input_mean):
        mean = ", ".join(f"{value:g}" for value in checkpoint.input_mean)
        preprocessing += f" less {mean}"
    return Row(
        member.name,
        architecture=checkpoint.architecture,
        group=member.group,
        num_parameters=checkpoint.num_parameters,
        multiply_adds=checkpoint.multiply_adds,
        feature_dim=checkpoint.feature_dim,
        image_size=checkpoint.image_size,
        own_image_size=checkpoint.own_image_size,
        warnings=checkpoint.warnings,
        feature_tensor=checkpoint.feature_tensor,
        preprocess=preprocess,
        preprocessing=preprocessing,
        weights=checkpoint.fingerprint,
        source_accuracy=member.facts.get("source_accuracy"),
    )


def _with_weight_spectra(
    context: RunContext, member: Member, network: Network, events: Events
) -> Member:
    """Add what measures of the weights read to the facts of a checkpoint."""
    if not {"extract", "score"} & set(context.stages):
        return member
    spectra = load_weight_spectra(context, member, network, events.title, events.add)
    facts = {**member.facts, weight_spectra.FACT: spectra}
    return dataclasses.replace(member, facts=facts)


def _compile_finetuning(
    context: RunContext, network: Network, name: str, events: Events
) -> Callable[[], Any]:
    """Start to compile the programs of fine-tuning, while features are extracted."""
    if finetuning.load_finetuned(context, network, name) is not None:
        return lambda: None
    # Loaded in this thread, which needs it too.
    backbone, task, sweep = network.load(), context.task, context.sweep
    return background.prepare(
        f"{events.title}: fine-tuning",
        lambda: backbone,
        lambda backbone: finetune.compile_programs(backbone, task, sweep),
    )


def load_ahead(context: RunContext, member: Member) -> Member:
    """Start to load a checkpoint and to compile its forward pass, if this saves time.

    Args:
      context: Everything that the stages need.
      member: The checkpoint, whose features are needed later.

    Returns:
      The checkpoint, whose `load` waits for the result.
    """
    compile_forward = functools.partial(
        extract.compile_forward,
        split=context.scored_split,
        dtype=context.dtype,
        batch_size=context.batch_size,
        with_blocks=context.with_blocks,
    )
    title = f"{member.name}: extraction"
    load = background.prepare(title, member.load, compile_forward)
    return dataclasses.replace(member, load=load)


def _evaluate_features(context: RunContext, member: Member, events: Events) -> Row:
    assert member.features is not None
    loaded = precomputed.load_features(member.features, context.task.target)
    if loaded.target != context.task.target:
        raise InputError(
            "The labels are of another kind than those of the first checkpoint",
            where=str(member.features),
            expected=f"{context.task.target}, as config.task.target",
            found=loaded.target,
            fix="rank the checkpoints of each task separately",
        )
    scoring.check(loaded, str(member.features))
    known = loaded.accuracy is not None
    row = Row(
        member.name,
        architecture=loaded.architecture,
        group=member.group,
        accuracy=loaded.accuracy,
        accuracy_source=member.features.name if known else "",
        extract_seconds=loaded.seconds,
        compile_seconds=_compile_seconds("features", loaded.compile_seconds),
        extract_images=len(loaded.labels),
        num_parameters=loaded.num_parameters,
        feature_dim=loaded.features.shape[-1],
        image_size=loaded.image_size,
    )
    if context.with_blocks:
        row = with_warning(row, "features_from", blocks_lib.NO_BLOCKS)
    return _score(context, member, loaded, None, row, events)


def _extract_and_score(
    context: RunContext, member: Member, network: Network, row: Row, events: Events
) -> Row:
    split, train = context.scored_split, context.task.splits["train"]
    directory = context.directory / member.name / "features"
    settings = extraction_settings(context, network)
    extracted = extract.load(directory, network.description, split, **settings)
    load_blocks = functools.partial(
        extract.load_blocks, directory, network.description, split, settings
    )
    blocks = load_blocks() if context.with_blocks else None
    if extracted is None and context.subset is not None:
        complete = extract.load(directory, network.description, train, **settings)
        if complete is not None:
            some = parts.take(complete, context.subset.rows)
            extracted = parts.save(
                directory, network.description, split, some, **settings
            )
    if extracted is None or (blocks is None and context.with_blocks):
        extracted = extract_split(context, member, network, split, events)
        blocks = load_blocks() if context.with_blocks else None
    else:
        events.add("features", None)
    if extracted is None:
        return dataclasses.replace(row, failure=NO_FEATURES)
    row = with_features(row, extracted, train.num_examples)
    return _score(context, member, extracted, blocks, row, events)


def extraction_settings(context: RunContext, network: Network) -> dict[str, Any]:
    """Return the settings that decide the features of a checkpoint."""
    return {
        "preprocess": finetuning.rule(context, network),
        "dtype": context.dtype,
        "torch_engine": context.torch_engine,
    }


def extract_split(
    context: RunContext,
    member: Member,
    network: Network,
    split: Split,
    events: Events,
) -> FeatureSet | None:
    """Extract and store the features of a split; None without the stage `extract`."""
    if "extract" not in context.stages:
        return None
    backbone = network.load()
    with progress.step(events.title, f"extracting {split.num_examples:,} images"):
        extracted = extract.extract_and_store(
            context.directory / member.name / "features",
            backbone,
            split,
            **extraction_settings(context, network),
            batch_size=context.batch_size,
            cache=context.cache,
            description=f"{events.title}: extracting",
            with_blocks=context.with_blocks,
        )
    events.add("features", extracted.seconds)
    return extracted


def with_features(row: Row, extracted: FeatureSet, num_train: int) -> Row:
    """Return the row with what is known of its features.

    Args:
      row: Row of the checkpoint.
      extracted: The features that are scored.
      num_train: Number of all training images.
    """
    return dataclasses.replace(
        row,
        engine=extracted.engine,
        extract_seconds=extracted.seconds,
        compile_seconds=_compile_seconds("features", extracted.compile_seconds),
        extract_images=len(extracted.features),
        train_images=num_train,
    )


def _score(
    context: RunContext,
    member: Member,
    extracted: FeatureSet,
    blocks: blocks_lib.Blocks | None,
    row: Row,
    events: Events,
) -> Row:
    return layers.score_row(
        row,
        extracted,
        blocks,
        context.features_from,
        context.settings,
        facts=member.facts,
        directory=context.directory / member.name / "scores",
        compute="score" in context.stages,
        title=events.title,
        on_result=events.add,
    )


def _compile_seconds(work: str, seconds: float | None) -> dict[str, float]:
    return {} if seconds is None else {work: seconds}


def with_warning(row: Row, topic: str, text: str) -> Row:
    """Return the row with one more warning."""
    return dataclasses.replace(row, warnings={**row.warnings, topic: text})
