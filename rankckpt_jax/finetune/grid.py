"""Fine-tuning of a checkpoint on a task: all runs of a sweep, the best one, the store.

finetune/result.json       the outcome, once all runs are done
finetune/runs/RUN.json     each run's, as soon as it is done
finetune/metrics/RUN...    see `metrics`
finetune/state/            Orbax's steps, while a run is under way
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from rankckpt_jax.checkpoints import backbone as backbone_lib
from rankckpt_jax.data import pipeline, tasks
from rankckpt_jax.data import preprocess as preprocess_lib
from rankckpt_jax.data.tasks import Split, Task
from rankckpt_jax.errors import InputError
from rankckpt_jax.finetune import loop, metrics, probe, recipes, saves
from rankckpt_jax.finetune import restore_batch_norm as unfold
from rankckpt_jax.finetune import step as step_lib
from rankckpt_jax.finetune.recipes import Recipe, Sweep
from rankckpt_jax.storage import store

_log = logging.getLogger(__name__)

# Fields of a recipe that do not change what a run comes to.
_NO_PART = ("save_every",)
# Ends the name of the run on all images.
_FINAL = "_final"
_METRICS, _STATE = "metrics", "state"


@dataclasses.dataclass(frozen=True)
class Run:
    """What one run came to. Accuracies are shares in [0, 1]; None after divergence.

    Attributes:
      learning_rate: Its own.
      num_steps: Its own.
      trained_on: Name of the split.
      judged_on: Name of the split that accuracies on the way were measured on.
      accuracy: Of the last step, on `test`.
      judged: Of the last step, on `judged_on`.
      best: Highest on the way and at the end, on `judged_on`.
      early_stop: After `early_stop_step` steps, on `judged_on`.
      early_stop_step: The recipe's share of the steps.
      curve: (steps, accuracy on `judged_on`), in order, the last step included.
      diverged_at: Steps taken when the loss was first not finite; -1 where it always
        was.
      final_loss: Training loss of the last batch, in nats; None after divergence.
      seconds: With evaluation, over all processes that contributed; divided evenly
        among runs that shared their steps.
      images: Images trained on, each time counted.
      metrics: Its CSV file; see `metrics`.
    """

    learning_rate: float
    num_steps: int
    trained_on: str
    judged_on: str
    accuracy: float | None
    judged: float | None
    best: float | None
    early_stop: float | None
    early_stop_step: int
    curve: tuple[tuple[int, float], ...]
    diverged_at: int
    final_loss: float | None
    seconds: float
    images: int
    metrics: str


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What fine-tuning came to: the chosen run's figures, and all runs.

    Attributes:
      recipe: The sweep's name.
      seed: Of the order of images and of augmentation.
      selection: "val" or "test": what the setting was chosen by; "none" for one run.
      accuracy: Test accuracy of the last step, in [0, 1]; None where all diverged.
      best_accuracy: The chosen run's highest on the way; see `Run.best`.
      early_stop_accuracy: The chosen run's; see `Run.early_stop`.
      learning_rate: The chosen run's.
      num_steps: The chosen run's.
      diverged_at: The chosen run's; -1 where it did not.
      seconds: Of all runs together.
      images: Trained on in all runs together.
      runs: All runs of the grid; last, if there is one, that of the chosen setting on
        train and val.
    """

    recipe: str
    seed: int
    selection: str
    accuracy: float | None
    best_accuracy: float | None
    early_stop_accuracy: float | None
    learning_rate: float
    num_steps: int
    diverged_at: int
    seconds: float
    images: int
    runs: tuple[Run, ...]


@dataclasses.dataclass(frozen=True)
class Splits:
    """Which images a sweep uses for what.

    Attributes:
      train: The grid is trained on it.
      judge: Settings are compared on it.
      test: The accuracy that counts is measured on it.
      final: The chosen setting is then trained on it; None to leave it at that.
    """

    train: Split
    judge: Split
    test: Split
    final: Split | None


def divide(task: Task, sweep: Sweep) -> Splits:
    """Tells which images a sweep uses for what; see `Sweep.select_by`.

    A task without `val` images has some of `train` held out where they are needed.

    Raises:
      InputError: They are needed, and nothing can be held out.
    """
    train, test = task.splits["train"], task.splits["test"]
    both = task.splits.get("trainval", train)
    whole = both if sweep.train_on == "trainval" else train
    if sweep.select_by == "test" or len(sweep.runs) == 1:
        return Splits(whole, test, test, None)
    final = both if sweep.train_on == "trainval" else None
    if "val" in task.splits:
        return Splits(train, task.splits["val"], test, final)
    kept, held = tasks.hold_out(train)
    return Splits(kept, held, test, final)


def splits_used(task: Task, sweep: Sweep) -> tuple[str, ...]:
    """Names of the task's splits that a sweep reads images of.

    Raises:
      InputError: The task lacks what the sweep needs; see `divide`.
    """
    found = divide(task, sweep)
    used = [found.train, found.judge, found.test, found.final]
    # What is held out of a split is named after it.
    names = {split.name.partition("_")[0] for split in used if split is not None}
    return tuple(name for name in task.splits if name in names)


def check(task: Task, sweep: Sweep) -> None:
    """Refuses a sweep that does not suit the task or the devices, before long work.

    Raises:
      InputError: It does not.
    """
    if "test" not in task.splits or not task.splits["test"].num_examples:
        raise InputError(
            "There are no test images to measure accuracy on",
            where="config.task",
            expected="a folder `test` with images, or classes of several images each, "
            "of which some are held out; of TFDS, config.task.test",
            found=task.description,
            fix="add some, or leave `finetune` out of config.stages",
        )
    divide(task, sweep)
    step_lib.check_batch(sweep.recipe.batch_size, sweep.recipe.accumulate)


def get(
    directory: epath.Path,
    backbone: backbone_lib.Backbone,
    task: Task,
    sweep: Sweep | Recipe,
    *,
    preprocess: str,
    cache: pipeline.ImageCache,
    description: str = "fine-tuning",
    compute: bool = True,
    should_stop: Callable[[int], bool] = lambda step: False,
) -> tuple[Outcome | None, bool]:
    """Loads the outcome from the store, or fine-tunes and stores it.

    Runs that are done are not repeated, also where the grid has changed since, and a
    run that was killed goes on from its last saved step.

    Args:
      directory: The checkpoint's `finetune` directory.
      backbone: Where to start from.
      task: Its images.
      sweep: The runs, or a single one.
      preprocess: See `preprocess.resize`.
      cache: Where decoded images are kept.
      description: What the progress bar says.
      compute: Whether to compute what the store does not have.
      should_stop: See `loop.train_cells`.

    Returns:
      (the outcome, whether there was anything to compute); (None, False) where there
      is none and it is not to be computed.

    Raises:
      InputError: The sweep does not suit the task or the devices.
      Interrupted: `should_stop` said so; the state is saved.
    """
    if isinstance(sweep, Recipe):
        sweep = recipes.single(sweep)
    splits = divide(task, sweep)
    place = epath.Path(directory)
    shared = {
        "checkpoint": backbone.fingerprint,
        "architecture": backbone.architecture,
        "image_size": backbone.image_size,
        "input_range": list(backbone.input_range),
        "input_mean": list(backbone.input_mean),
        "test": splits.test.fingerprint,
        "preprocess": preprocess,
        "jpeg_decoder": preprocess_lib.JPEG_DECODER,
    }
    folded = not sweep.recipe.frozen and unfold.is_folded(backbone)
    if folded:
        shared["batch_norm"] = "unfolded"
    wanted = {
        **shared,
        **_fields(sweep.recipe),
        "name": sweep.name,
        "learning_rate": list(sweep.learning_rates),
        "num_steps": list(sweep.num_steps),
        "select_by": sweep.select_by,
        "train": splits.train.fingerprint,
        "judge": splits.judge.fingerprint,
        "final": None if splits.final is None else splits.final.fingerprint,
    }
    found = store.load_result(place / "result.json", wanted)
    if found is not None:
        outcome = _outcome(found.result)
        _write_metrics(place, outcome, len(sweep.runs))
        return outcome, False
    if not compute:
        return None, False
    if folded:
        text = "%s: batch norm was folded away; its moments are measured anew"
        _log.info(text, description)
        backbone = unfold.unfold(
            backbone, splits.train, preprocess=preprocess, cache=cache
        )
    if sweep.recipe.frozen:
        cache = probe.FeatureCache(
            backbone,
            cache,
            dtype=sweep.recipe.dtype,
            batch_size=sweep.recipe.batch_size,
            description=description,
        )
        backbone = probe.headless(backbone)
    job = _Job(
        place,
        backbone,
        task.num_classes,
        splits.test,
        shared,
        preprocess,
        cache,
        should_stop,
    )
    runs = list(_grid(job, sweep, splits, description))
    chosen = choose(runs)
    if splits.final is not None and chosen.accuracy is not None:
        recipe = dataclasses.replace(
            sweep.recipe,
            learning_rate=chosen.learning_rate,
            num_steps=chosen.num_steps,
        )
        text = f"{description}, on all images"
        [chosen] = _together(job, (recipe,), splits.final, splits.test, _FINAL, text)
        runs.append(chosen)
    # Still there where a run was killed after its outcome was known.
    saves.remove(place / _STATE)
    outcome = Outcome(
        recipe=sweep.name,
        seed=sweep.recipe.seed,
        selection="none" if len(sweep.runs) == 1 else sweep.select_by,
        accuracy=chosen.accuracy,
        best_accuracy=chosen.best,
        early_stop_accuracy=chosen.early_stop,
        learning_rate=chosen.learning_rate,
        num_steps=chosen.num_steps,
        diverged_at=chosen.diverged_at,
        seconds=sum(run.seconds for run in runs),
        images=sum(run.images for run in runs),
        runs=tuple(runs),
    )
    store.save_result(place / "result.json", wanted, dataclasses.asdict(outcome))
    _write_metrics(place, outcome, len(sweep.runs))
    return outcome, True


def _write_metrics(place: epath.Path, outcome: Outcome, num_grid: int) -> None:
    """Puts right the CSV files that are not what the runs have recorded."""
    for i, run in enumerate(outcome.runs):
        name = _name(run) + ("" if i < num_grid else _FINAL)
        metrics.put_right(place / _METRICS / name, run.metrics)


def choose(runs: Sequence[Run]) -> Run:
    """The run of highest accuracy at the last step on the split it was judged on.

    Of equal ones the first; where all have diverged, the one that lasted longest.
    """

    def order(run: Run) -> tuple[float, int]:
        return (-1.0 if run.judged is None else run.judged), run.diverged_at

    return max(runs, key=order)


@dataclasses.dataclass(frozen=True)
class _Job:
    """What all runs of a sweep need; fields as for `get`."""

    place: epath.Path
    backbone: backbone_lib.Backbone
    num_classes: int
    test: Split
    wanted: dict[str, Any]
    preprocess: str
    cache: pipeline.ImageCache
    should_stop: Callable[[int], bool]


def _grid(job: _Job, sweep: Sweep, splits: Splits, description: str) -> Iterator[Run]:
    total = len(sweep.runs)
    done = 0
    for _, same_steps in itertools.groupby(sweep.runs, lambda run: run.num_steps):
        left = list(same_steps)
        while left:
            cells, left = left[: sweep.cells_at_once], left[sweep.cells_at_once :]
            rates = ", ".join(f"{cell.learning_rate:g}" for cell in cells)
            text = f"{description} at {rates} for {cells[0].num_steps}"
            if total > 1:
                text += f" [{done + 1}/{total}]"
            yield from _together(job, cells, splits.train, splits.judge, "", text)
            done += len(cells)


def _together(
    job: _Job,
    cells: Sequence[Recipe],
    split: Split,
    judge: Split,
    suffix: str,
    description: str,
) -> list[Run]:
    """Runs that share their steps: those done from the store, the others trained."""
    images = {"train": split.fingerprint, "judge": judge.fingerprint}
    requests = [{**job.wanted, **images, **_fields(cell)} for cell in cells]
    places = [job.place / "runs" / f"{_name(cell)}{suffix}.json" for cell in cells]
    runs: list[Run | None] = []
    for place, wanted in zip(places, requests, strict=True):
        found = store.load_result(place, wanted)
        runs.append(None if found is None else _run(found.result))
    missing = [i for i, run in enumerate(runs) if run is None]
    if missing:
        left = [cells[i] for i in missing]
        wanted = {"runs": [requests[i] for i in missing]}
        with contextlib.closing(saves.Saves(job.place / _STATE, wanted)) as kept:
            made = _train(job, left, split, judge, suffix, description, kept)
            for i, run in zip(missing, made, strict=True):
                store.save_result(places[i], requests[i], dataclasses.asdict(run))
                runs[i] = run
            kept.discard()
    return [run for run in runs if run is not None]


def _train(
    job: _Job,
    cells: Sequence[Recipe],
    split: Split,
    judge: Split,
    suffix: str,
    description: str,
    kept: saves.Saves,
) -> list[Run]:
    start = time.monotonic()
    recipe, count = cells[0], len(cells)
    state = step_lib.initial_state(job.backbone, job.num_classes, count)
    state, first_step, facts = kept.restore(state)
    histories = [
        metrics.History(**history)
        for history in facts.get("histories", [{} for _ in cells])
    ]
    spent = float(facts.get("seconds", 0.0))
    writers = [
        metrics.Writer(job.place / _METRICS / (_name(cell) + suffix), first_step)
        for cell in cells
    ]
    rates = [recipes.schedule(cell) for cell in cells]
    evaluations, early = _evaluations(recipe)
    settings: dict[str, Any] = {"preprocess": job.preprocess, "cache": job.cache}

    def watch(step: int, losses: np.ndarray, speed: float) -> None:
        for i, (history, writer) in enumerate(zip(histories, writers, strict=True)):
            history.watch(step, losses[i])
            if history.diverged_at < 0:
                values = {
                    "loss": float(losses[i].mean()),
                    "learning_rate": float(rates[i][step - 1]),
                    "images_per_second": speed,
                }
                history.add(step, **values)
                writer.scalars(step, **values)

    def evaluate(step: int, state: step_lib.State, split: Split) -> np.ndarray:
        return loop.evaluate(
            job.backbone, state, split, recipe, cells=count, **settings
        )

    def note(step: int, accuracies: np.ndarray) -> None:
        for i, (history, writer) in enumerate(zip(histories, writers, strict=True)):
            if history.diverged_at < 0 and math.isfinite(accuracies[i]):
                history.add(step, accuracy=float(accuracies[i]))
                writer.scalars(step, accuracy=float(accuracies[i]))

    def pause(step: int, state: step_lib.State) -> None:
        if step in evaluations:
            note(step, evaluate(step, state, judge))
        for history, writer in zip(histories, writers, strict=True):
            writer.write(history)
        facts = {
            "histories": [dataclasses.asdict(history) for history in histories],
            "seconds": spent + time.monotonic() - start,
        }
        kept.save(step, state, facts)

    saving = range(recipe.save_every, recipe.num_steps, recipe.save_every)
    try:
        done = loop.train_cells(
            job.backbone,
            state,
            split,
            cells,
            first_step=first_step,
            pauses={*saving, *evaluations} - {recipe.num_steps},
            on_pause=pause,
            watch=watch,
            should_stop=job.should_stop,
            description=description,
            **settings,
        )
        judged = tested = np.full(count, math.nan)
        if any(history.diverged_at < 0 for history in histories):
            last = recipe.num_steps
            judged = tested = evaluate(last, done.state, judge)
            note(last, judged)
            if job.test.fingerprint != judge.fingerprint:
                tested = evaluate(last, done.state, job.test)
    finally:
        for history, writer in zip(histories, writers, strict=True):
            writer.write(history)
            writer.close()
    seconds = (spent + time.monotonic() - start) / count
    made = functools.partial(
        _made, split=split, judge=judge, early=early, seconds=seconds
    )
    return [
        made(cell, history, tested=tested[i], judged=judged[i], loss=done.loss[i])
        for i, (cell, history) in enumerate(zip(cells, histories, strict=True))
    ]


def _made(
    recipe: Recipe,
    history: metrics.History,
    *,
    split: Split,
    judge: Split,
    tested: float,
    judged: float,
    loss: float,
    early: int,
    seconds: float,
) -> Run:
    diverged_at = history.diverged_at
    if diverged_at < 0 and not math.isfinite(judged):
        # The last update left weights whose outputs are not finite.
        diverged_at = recipe.num_steps
    broken = diverged_at >= 0
    steps = diverged_at if broken else recipe.num_steps
    curve = tuple(history.accuracies)
    return Run(
        learning_rate=recipe.learning_rate,
        num_steps=recipe.num_steps,
        trained_on=split.name,
        judged_on=judge.name,
        accuracy=None if broken else float(tested),
        judged=None if broken else float(judged),
        best=None if broken else max(accuracy for _, accuracy in curve),
        early_stop=None if broken else dict(curve).get(early),
        early_stop_step=early,
        curve=curve,
        diverged_at=diverged_at,
        final_loss=None if broken else float(loss),
        seconds=seconds,
        images=steps * recipe.batch_size,
        metrics=history.csv(),
    )


def _evaluations(recipe: Recipe) -> tuple[set[int], int]:
    """(numbers of steps after which accuracy is measured, that of early stopping)."""
    steps, times = recipe.num_steps, recipe.evaluations
    early = max(1, round(recipe.early_stop * steps))
    evenly = {round(steps * k / times) for k in range(1, times + 1)}
    return (evenly | {early, steps}) - {0}, early


def _fields(recipe: Recipe) -> dict[str, Any]:
    fields = dataclasses.asdict(recipe)
    return {name: value for name, value in fields.items() if name not in _NO_PART}


def _name(recipe: Recipe | Run) -> str:
    return f"lr{recipe.learning_rate:g}_steps{recipe.num_steps}"


def _run(stored: Any) -> Run:
    curve = tuple((int(step), float(value)) for step, value in stored["curve"])
    return Run(**{**stored, "curve": curve})


def _outcome(stored: Any) -> Outcome:
    return Outcome(**{**stored, "runs": tuple(map(_run, stored["runs"]))})
