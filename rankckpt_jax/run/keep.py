"""Keeps the weights of the checkpoint with the highest accuracy, as a model.

workdir/TASK/model/     see `checkpoints.model_directory`
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from rankckpt_jax import finetune
from rankckpt_jax.checkpoints import model_directory
from rankckpt_jax.data import targets
from rankckpt_jax.devices import processes, progress, signals
from rankckpt_jax.errors import describe_unexpected
from rankckpt_jax.finetune import serving, weights
from rankckpt_jax.results.kept_model import KeptModel
from rankckpt_jax.results.row import Row
from rankckpt_jax.run.context import RunContext
from rankckpt_jax.run.finetuning import load_finetuned, rule
from rankckpt_jax.run.network import Network, open_network
from rankckpt_jax.storage import files

DIRECTORY = "model"
"""Name of the model's directory in that of the task."""

_log = logging.getLogger(__name__)


def keep_best(context: RunContext, rows: Sequence[Row]) -> KeptModel | None:
    """Keep the model of the checkpoint with the highest accuracy.

    Its weights were stored by fine-tuning. If an earlier run did not store them, the
    chosen trial is trained again. The weights of the other checkpoints are removed.

    Args:
      context: Everything that the stages need.
      rows: All rows, in the order of the ranking.

    Returns:
      The model; None if no checkpoint was fine-tuned here, or if the model is missing
      and the stage `finetune` is not run.

    Raises:
      InputError: The network cannot be kept.
      StorageError: The model cannot be written.
    """
    tuned = [
        row
        for row in rows
        if not row.failure
        and row.finite_accuracy() is not None
        # Others have an accuracy from elsewhere.
        and row.finetune_seconds is not None
    ]
    best = max(tuned, key=lambda row: row.finite_accuracy() or 0.0, default=None)
    # Processes may differ by rounding, and all must load the same.
    name = processes.broadcast_from_main(None if best is None else best.checkpoint)
    if name is None:
        _log.warning(
            "%s: no checkpoint was fine-tuned; no model kept", context.task.name
        )
        return None
    [member] = [member for member in context.members if member.name == name]
    title = f"{name}: keeping the model"
    network = open_network(context, member, title, lambda what, seconds: None)
    result = load_finetuned(context, network, name)
    assert result is not None  # Its row has an accuracy.
    directory = context.directory / DIRECTORY
    key = finetune.chosen_key(
        network.description,
        context.task,
        context.sweep,
        result,
        preprocess=rule(context, network),
    )
    # Through JSON, because a tuple is stored as a list.
    key = json.loads(json.dumps(key))
    if model_directory.read_key(directory) != key:
        if "finetune" not in context.stages:
            return None
        _write(context, network, result, directory, key, name, title)
    else:
        _log.info("%s: loaded", title)
    for other in context.members if "finetune" in context.stages else ():
        weights.remove(context.directory / other.name / "finetune")
    _log.info("kept the model of %s: %s", name, files.display(directory))
    has_serving = (directory / model_directory.SERVING).exists()
    return KeptModel(
        files.display(directory),
        name,
        files.display(directory / model_directory.SERVING) if has_serving else "",
    )


def _write(
    context: RunContext,
    network: Network,
    result: finetune.SweepResult,
    directory: epath.Path,
    key: Mapping[str, Any],
    name: str,
    title: str,
) -> None:
    backbone, task = network.load(), context.task
    prepared = finetune.prepare(
        directory.parent / name / "finetune",
        backbone,
        task,
        context.sweep,
        preprocess=rule(context, network),
        cache=context.cache,
        description=title,
        should_stop=lambda step: signals.should_stop(),
        keep_weights=True,
    )
    trained = finetune.load_weights(prepared, result, title)
    if not processes.is_main_process():
        return
    train = finetune.chosen_split(prepared, result)
    recipe = prepared.sweep.recipe
    model = finetune.make_model(
        backbone,
        trained,
        task,
        preprocess=rule(context, network),
        dtype=recipe.dtype,
        scale=targets.scale(train.labels, train.target),
    )
    program = b""
    with progress.step(title, "exporting the program"):
        try:
            program = serving.export(model)
        except Exception as error:  # The model is useful without it.
            _log.warning("%s: not exported: %s", title, describe_unexpected(error))
    facts = {
        "task": task.name,
        "images": {
            "description": task.description,
            "train": train.fingerprint,
            "train_images": train.num_examples,
            "test": task.splits["test"].fingerprint,
            "test_images": task.splits["test"].num_examples,
        },
        "checkpoint": {
            "name": name,
            "source": backbone.source,
            "architecture": backbone.architecture,
            "fingerprint": network.description.fingerprint,
        },
        "finetuning": {
            "recipe": result.recipe,
            **finetune.recipe_fields(recipe),
            "learning_rate": result.learning_rate,
            "num_steps": result.num_steps,
            "trained_on": train.name,
        },
        "metric": result.metric,
        "test": {result.metric: result.accuracy, **result.values},
    }
    finetune.save_model(directory, key, model, facts, program)
