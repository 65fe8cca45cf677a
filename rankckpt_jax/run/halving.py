"""Fine-tunes checkpoints within a budget of steps, by successive halving.

    workdir/TASK/halving.json                             the result
    workdir/TASK/CHECKPOINT/finetune/runs/TRIAL_untilN.json   a trial after a round
    workdir/TASK/CHECKPOINT/finetune/state/TRIAL/         its state, while it is in

A trial of a later round continues from its state, with the schedule of the last round's
number of steps. A stopped run resumes.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rankckpt_jax import finetune
from rankckpt_jax.checkpoints import network_files
from rankckpt_jax.devices import processes, signals
from rankckpt_jax.errors import (
    InputError,
    Interrupted,
    StorageError,
    UnreadableImage,
    describe_unexpected,
)
from rankckpt_jax.finetune import halving, results, trials
from rankckpt_jax.finetune.halving import Round
from rankckpt_jax.finetune.results import SweepResult, TrialResult
from rankckpt_jax.results.formatting import format_metric
from rankckpt_jax.results.row import Row, Tried
from rankckpt_jax.run.context import RunContext
from rankckpt_jax.run.finetuning import rule, with_result
from rankckpt_jax.run.network import Network, open_network
from rankckpt_jax.storage import store

_RESULT = "halving.json"

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Trial:
    """A checkpoint with a learning rate."""

    checkpoint: str
    learning_rate: float

    def __str__(self) -> str:
        """Return its name for the log."""
        return f"{self.checkpoint} (rate {self.learning_rate:g})"


def run(context: RunContext, rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """Fine-tune checkpoints within `context.sweep.budget` steps.

    Args:
      context: Everything that the stages need.
      rows: All rows.
      names: The checkpoints to try, best-ranked first.

    Returns:
      The rows; those of `names` have `tried`, and the one that is left its accuracy.

    Raises:
      InputError: The budget is too small.
      StorageError, UnreadableImage, Interrupted: See `checkpoint.evaluate`.
    """
    task, sweep = context.task.name, context.sweep
    rates = sweep.learning_rates
    started = [Trial(name, rate) for name in names for rate in rates]
    if not started:
        _log.warning("%s: no checkpoint to fine-tune", task)
        return list(rows)
    rounds = halving.plan(len(started), sweep.budget)
    networks = {name: _open(context, name) for name in names}
    key = _key(context, started, rounds, networks)
    path = context.directory / _RESULT
    entry = store.load_result(path, key)
    failures: dict[str, str] = {}
    left: SweepResult | None
    if entry is not None:
        tried = {name: Tried(**item) for name, item in entry.result["tried"].items()}
        left = results.sweep_from_store(entry.result["result"])
        best = entry.result["checkpoint"]
    else:
        if "finetune" not in context.stages:
            return list(rows)
        _log.info(
            "%s: fine-tuning %d trials of %d checkpoints by successive halving: %s",
            *(task, len(started), len(names)),
            ", then ".join(f"{r.trials} up to step {r.step}" for r in rounds),
        )
        tried, failures, best, left = _halve(context, started, rounds, networks)
        if not failures and left is not None:
            found = {name: dataclasses.asdict(item) for name, item in tried.items()}
            result = dataclasses.asdict(left)
            stored = {"tried": found, "checkpoint": best, "result": result}
            store.save_result(path, key, stored)
    if left is not None:
        network = networks[best]
        finetune.save(
            context.directory / best / "finetune",
            network.description,
            context.task,
            sweep,
            left,
            preprocess=rule(context, network),
        )
    finished = []
    for row in rows:
        name = row.checkpoint
        if name in failures:
            row = Row(name, group=row.group, failure=failures[name])
        elif name in tried:
            row = dataclasses.replace(row, tried=tried[name])
        if name == best and left is not None:
            row = with_result(context, row, left)
        finished.append(row)
    return finished


def _open(context: RunContext, name: str) -> Network:
    [member] = [member for member in context.members if member.name == name]
    return open_network(context, member, name, lambda what, seconds: None)


def _key(
    context: RunContext,
    started: Sequence[Trial],
    rounds: Sequence[Round],
    networks: Mapping[str, Network],
) -> dict[str, Any]:
    """Return the inputs that determine the result."""
    task, sweep = context.task, context.sweep
    return {
        "trials": [dataclasses.astuple(trial) for trial in started],
        "rounds": [dataclasses.astuple(item) for item in rounds],
        "checkpoints": {
            name: finetune.result_key(
                network.description, task, sweep, preprocess=rule(context, network)
            )
            for name, network in networks.items()
        },
    }


def _halve(
    context: RunContext,
    started: Sequence[Trial],
    rounds: Sequence[Round],
    networks: Mapping[str, Network],
) -> tuple[dict[str, Tried], dict[str, str], str, SweepResult | None]:
    """Run all rounds.

    Returns:
      (how far each checkpoint came, why others failed, the checkpoint that is left, its
      result); "" and None if none is left.
    """
    total = rounds[-1].step
    seen: dict[Trial, tuple[int, TrialResult]] = {}
    failures: dict[str, str] = {}
    remaining = list(started)
    for number, item in enumerate(rounds, start=1):
        title = f"round {number} of {len(rounds)}"
        by_checkpoint = collections.defaultdict(list)
        for trial in remaining:
            by_checkpoint[trial.checkpoint].append(trial)
        for name, group in by_checkpoint.items():
            if signals.should_stop():
                raise Interrupted(
                    f"{context.task.name}: stopped before {name}, {title}"
                )
            try:
                found = _train(context, networks[name], group, item.step, total, title)
            except (StorageError, UnreadableImage, Interrupted):
                raise
            except InputError as error:
                _log.error("%s: failed: %s", name, error)
                failures[name] = str(error)
                continue
            except Exception as error:
                if processes.process_count() > 1:
                    raise
                _log.exception("%s: failed", name)
                failures[name] = describe_unexpected(error)
                continue
            for trial, result in zip(group, found, strict=True):
                seen[trial] = item.step, result
        remaining = [t for t in remaining if t.checkpoint not in failures]
        values = [_value(seen[trial][1]) for trial in remaining]
        # Processes may differ by rounding, and all must drop the same.
        values = processes.broadcast_from_main(values)
        count = rounds[number].trials if number < len(rounds) else 1
        kept = [remaining[i] for i in halving.survivors(values, count)]
        for trial, value in zip(remaining, values, strict=True):
            state = "kept" if trial in kept else "dropped"
            _log.info(
                "%s: %s after %d of %d steps at %s on held-out images",
                *(trial, state, item.step, total),
                "divergence" if value is None else format_metric(value, context.metric),
            )
        _remove_states(context, [t for t in remaining if t not in kept], total)
        remaining = kept
    left = [trial for trial in remaining if _value(seen[trial][1]) is not None]
    best = left[0] if left else None
    tried = {
        name: _describe(name, seen, total, best)
        for name in {trial.checkpoint: None for trial in started}
        if name not in failures
    }
    if best is None:
        _log.warning("%s: all trials failed or diverged", context.task.name)
        return tried, failures, "", None
    chosen = seen[best][1]
    own = [result for t, (_, result) in seen.items() if t.checkpoint == best.checkpoint]
    sweep = context.sweep
    swept = results.summarize(
        chosen,
        own,
        recipe=sweep.name,
        seed=sweep.recipe.seed,
        selection="val",
        metric=context.metric,
    )
    # The others ended after fewer steps.
    swept = dataclasses.replace(swept, trials=(chosen,))
    return tried, failures, best.checkpoint, swept


def _train(
    context: RunContext,
    network: Network,
    group: Sequence[Trial],
    step: int,
    total: int,
    title: str,
) -> list[TrialResult]:
    """Train the trials of one checkpoint up to a step of `total`, one by one."""
    name = group[0].checkpoint
    backbone = network.load()
    if context.keep:
        network_files.check(backbone.apply, name)
    prepared = finetune.prepare(
        context.directory / name / "finetune",
        backbone,
        context.task,
        context.sweep,
        preprocess=rule(context, network),
        cache=context.cache,
        description=f"{name}: fine-tuning",
        should_stop=lambda step: signals.should_stop(),
        keep_weights=bool(context.keep),
    )
    splits = prepared.splits
    found = []
    for trial in group:
        recipe = _recipe(prepared.sweep, trial, total)
        images = splits.train, splits.validation
        text = f"{title}, {trial}"
        if step < total:
            result = trials.train_until(
                prepared.context, recipe, *images, step, description=text
            )
        else:
            [result] = trials.load_or_train(
                prepared.context, [recipe], *images, description=text
            )
        found.append(result)
    return found


def _recipe(sweep: finetune.Sweep, trial: Trial, total: int) -> finetune.Recipe:
    return dataclasses.replace(
        sweep.recipe, learning_rate=trial.learning_rate, num_steps=total
    )


def _value(result: TrialResult) -> float | None:
    """Return the metric on held-out images; None for a trial that diverged."""
    return None if result.diverged_at >= 0 else result.validation_accuracy


def _describe(
    name: str,
    seen: Mapping[Trial, tuple[int, TrialResult]],
    total: int,
    best: Trial | None,
) -> Tried:
    """Return how far a checkpoint came, by its best trial."""
    own = [trial for trial in seen if trial.checkpoint == name]

    def standing(trial: Trial) -> tuple[bool, int, float]:
        step, result = seen[trial]
        value = _value(result)
        return trial == best, step, -math.inf if value is None else value

    trial = max(own, key=standing)
    step, result = seen[trial]
    return Tried(
        trial.learning_rate, step, total, _value(result), trial == best, len(own)
    )


def _remove_states(context: RunContext, dropped: Sequence[Trial], total: int) -> None:
    """Remove what dropped trials would need to continue."""
    for trial in dropped:
        directory = context.directory / trial.checkpoint / "finetune"
        recipe = _recipe(context.sweep, trial, total)
        trials.remove_trial_state(directory, recipe)
