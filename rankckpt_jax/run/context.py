"""Turns a config into a `RunContext`, and refuses everything that can be refused."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from rankckpt_jax import finetune
from rankckpt_jax.benchmark import demo, published
from rankckpt_jax.checkpoints import in_memory
from rankckpt_jax.checkpoints.fetch import uris
from rankckpt_jax.data import corrupt_images, metrics, splits, tasks
from rankckpt_jax.data.image_cache import ImageCache, open_cache
from rankckpt_jax.data.splits import Split
from rankckpt_jax.devices import processes, progress
from rankckpt_jax.errors import InputError, redact
from rankckpt_jax.features import blocks, extract
from rankckpt_jax.finetune import budget, halving
from rankckpt_jax.prediction import history as history_lib
from rankckpt_jax.prediction import planning
from rankckpt_jax.run import pool, scoring, subset, validation
from rankckpt_jax.run import shard as shard_lib
from rankckpt_jax.storage import files, lock, store

_log = logging.getLogger(__name__)

STAGES = ("pretrain", "extract", "score", "ablate", "finetune", "report")


@dataclasses.dataclass(frozen=True)
class RunContext:
    """Everything that the stages of a run need; `load` makes it.

    Attributes:
      stages: Names of the stages to run, some of STAGES.
      trackers: Names of the trackers that record the ranking.
      settings: What to score. The first measure orders the ranking.
      full_task: The task with all its images.
      task: The task without images that are known to be corrupt.
      score_on: Number of training images to score on; 0 for all.
      race: Whether to drop checkpoints while extraction goes on.
      max_unreadable: Largest share of a split's images that may be corrupt.
      members: The pool, in a fixed order.
      shard: The part of the pool that this run evaluates; None for all of it.
      make_pool: Pre-trains the demo's pool; None without the stage `pretrain`.
      sweep: How to fine-tune.
      finetune_top: How many of the best-ranked checkpoints to fine-tune; 0 for all.
      finetune_budget: Seconds for all fine-tunings of the task; 0 for no limit.
      finetune_confidence: Probability of being the best at which they stop earlier.
      keep: "best" to keep the weights of the best checkpoint, or "".
      preprocess: `config.preprocess`; see `preprocess.resolve`.
      dtype: Dtype of the networks in extraction.
      torch_engine: What computes PyTorch networks, as in the config.
      features_from: Layers whose features are scored; see `run.layers`.
      batch_size: Images per step and process in extraction.
      cache: Decoded images that checkpoints share.
      compilation_cache: Directory of compiled programs; see
        `compilation.persistent_cache`.
      profile: Directory of traces; empty for none.
      accuracies: Accuracies by checkpoint that were not measured here.
      accuracy_source: The source of `accuracies`.
      unmatched: A sentence about accuracies that match no checkpoint, or empty.
      history: Where fine-tunings are recorded; None for nowhere.
      known: Fine-tunings of earlier runs and of others; empty except in process 0.
      directory: `workdir/TASK`.
      config: All fields of the config as plain data, without secrets.
    """

    stages: tuple[str, ...]
    trackers: tuple[str, ...]
    settings: scoring.Settings
    full_task: tasks.Task
    task: tasks.Task
    score_on: int
    race: bool
    max_unreadable: float
    members: tuple[pool.Member, ...]
    shard: shard_lib.Shard | None
    make_pool: Callable[[], None] | None
    sweep: finetune.Sweep
    finetune_top: int
    finetune_budget: float
    finetune_confidence: float
    keep: str
    preprocess: str
    dtype: str
    torch_engine: str
    features_from: str
    batch_size: int
    cache: ImageCache
    compilation_cache: str
    profile: str
    accuracies: Mapping[str, float]
    accuracy_source: str
    unmatched: str
    history: epath.Path | None
    known: history_lib.History
    directory: epath.Path
    config: Mapping[str, Any]

    @property
    def metric(self) -> str:
        """Name of the metric of `data.metrics` that accuracies are values of."""
        return metrics.resolve(self.sweep.metric, self.task.target).name

    @property
    def finetunes_later(self) -> bool:
        """Whether checkpoints are fine-tuned only after all are scored."""
        return bool(self.finetune_top or self.sweep.budget or self.finetune_budget)

    @property
    def starts_first(self) -> bool:
        """Whether a fine-tuning may be left after its first part."""
        return bool(self.finetune_budget) and self.sweep.has_two_parts

    @property
    def with_blocks(self) -> bool:
        """Whether the features of last blocks are needed."""
        return self.features_from != blocks.LAST

    @property
    def images(self) -> dict[str, str]:
        """Fingerprint of the images of each split."""
        return {s.name: s.fingerprint for s in self.task.splits.values()}

    @functools.cached_property
    def subset(self) -> subset.Subset | None:
        """The training images that are scored; None for all of them.

        Raises:
          InputError: No subset of `score_on` images can be drawn.
        """
        train = self.task.splits.get("train")
        if train is None or not 0 < self.score_on < train.num_examples:
            return None
        return subset.draw(train, self.score_on, self.settings.seed)

    @property
    def scored_split(self) -> Split:
        """The images that are scored."""
        return self.task.splits["train"] if self.subset is None else self.subset.split

    def evaluates(self, name: str) -> bool:
        """Return whether this run evaluates a checkpoint, or another shard does."""
        names = [member.name for member in self.members]
        return self.shard is None or self.shard.contains(names.index(name))

    def without_corrupt_images(self, search: bool = False) -> RunContext:
        """Return the context without the images that cannot be decoded.

        Args:
          search: Whether to decode all training images to find the corrupt ones, even
            if an earlier search is stored. Test and validation images of a folder are
            always decoded once.

        Raises:
          InputError: More than `max_unreadable` of a split is corrupt.
        """
        # In fine-tuning all processes wait for each other at every step, so that a
        # corrupt image on one of them would end them all. It decodes its images first.
        names: tuple[str, ...] = ()
        if "finetune" in self.stages:
            names = finetune.splits_used(self.full_task, self.sweep)
        # Extraction reads only training images. Others of a folder are decoded once,
        # so that fine-tuning later finds no surprise. Files of TFDS are its own work.
        if "extract" in self.stages and self.config["task"]["path"]:
            names = (
                *names,
                *(s for s in ("val", "test") if s in self.full_task.splits),
            )
        task = corrupt_images.drop_corrupt(
            self.full_task,
            self.directory / ".images",
            self.max_unreadable,
            look_in=(*names, "train") if search else names,
            again=search,
        )
        return dataclasses.replace(self, task=task)


@dataclasses.dataclass(frozen=True)
class Choices:
    """The choices of a config that need neither images nor checkpoints.

    The attributes are those of `RunContext`.
    """

    stages: tuple[str, ...]
    trackers: tuple[str, ...]
    settings: scoring.Settings
    shard: shard_lib.Shard | None
    sweep: finetune.Sweep
    finetune_top: int
    finetune_budget: float
    finetune_confidence: float
    keep: str


def parse(config: Any, objects: Sequence[in_memory.Model] = ()) -> Choices:
    """Check a config as far as possible without images and checkpoints.

    Args:
      config: Fields as in configs/default.py.
      objects: Models in memory that are ranked too.

    Raises:
      InputError: A field cannot be used.
    """
    validation.check_fields(config)
    stages = scoring.parse_list(config.stages, STAGES, "config.stages")
    settings = scoring.Settings(
        scoring.parse_measures(config.measures, "config.measures"),
        config.measure_options.to_dict(),
        config.seed,
        # The interval of a subset follows from the scores of its halves.
        config.num_bootstrap or (subset.HALVES if config.score_on else 0),
    )
    scoring.check_settings(settings)
    trackers = validation.check_trackers(config.track, stages)
    shard = shard_lib.parse(config.shard)
    validation.check(config, stages, settings.measures)
    pool.check(config, objects)
    recipe = config.finetune.to_dict()
    finetune_top, keep = recipe.pop("top", 0), recipe.pop("keep", "")
    if keep:
        validation.check_keep(keep, stages, config, objects)
    confidence = recipe.pop("confidence", None)
    confidence = planning.CONFIDENCE if confidence is None else confidence
    validation.check_confidence(confidence)
    seconds = budget.parse(recipe.get("budget")).seconds
    sweep = finetune.make_sweep(recipe, config.seed)
    if (sweep.budget or seconds) and "finetune" in stages:
        validation.check_budget(config.shard)
    return Choices(
        stages,
        trackers,
        settings,
        shard,
        sweep,
        finetune_top,
        seconds,
        confidence,
        keep,
    )


@contextlib.contextmanager
def load(config: Any, objects: Sequence[in_memory.Model] = ()) -> Iterator[RunContext]:
    """Check a config, load its task and pool, and lock the task's directory.

    Args:
      config: Fields as in configs/default.py.
      objects: Models in memory that are ranked too.

    Yields:
      The context. The directory stays locked until the with-block ends.

    Raises:
      InputError: The config, the task or the pool cannot be used, or another run uses
        the same directory.
    """
    choices = parse(config, objects)
    stages, settings, shard = choices.stages, choices.settings, choices.shard
    workdir = files.to_path(config.workdir)
    cache = open_cache(config.image_cache, config.image_cache_gigabytes)
    history = history_lib.locate(config.get("history", ""))
    known = _read_history(history, config.get("shared_histories", ""))
    if config.features:
        name, origin = pool.describe_features(config.features)
        target = pool.find_target(config)
        task = tasks.Task(config.task.name or name, (), {}, origin, target=target)
    else:
        task = _load_task(config)
    metric = metrics.resolve(choices.sweep.metric, task.target)
    if choices.finetune_budget and "finetune" in stages:
        validation.check_planned(metric)
    settings = scoring.for_target(settings, task.target)
    validation.check_ablation(stages, settings.measures, task.target)
    if "finetune" in stages:
        finetune.check(task, choices.sweep)
    accuracies, source = published.load_accuracies(config.accuracies, task.name)
    with progress.step("pool", "finding the checkpoints", announce=False):
        members = pool.members(config, stages, objects)
    if choices.sweep.budget and "finetune" in stages and members:
        count = min(choices.finetune_top or len(members), len(members))
        # Refuses a budget that is too small.
        halving.plan(count * len(choices.sweep.learning_rates), choices.sweep.budget)
    unmatched = ""
    # The published accuracies are of a larger pool.
    if config.accuracies != published.PUBLISHED:
        names = [member.name for member in members]
        unmatched = published.describe_unmatched(accuracies, names)
    if unmatched:
        _log.warning("%s: %s", source, unmatched)
    context = RunContext(
        stages=stages,
        trackers=choices.trackers,
        settings=settings,
        full_task=task,
        task=task,
        score_on=config.score_on,
        race=config.race,
        max_unreadable=config.task.get("max_unreadable", splits.MAX_UNREADABLE),
        members=members,
        shard=shard,
        make_pool=_demo(config, cache) if "pretrain" in stages else None,
        sweep=choices.sweep,
        finetune_top=choices.finetune_top,
        finetune_budget=choices.finetune_budget,
        finetune_confidence=choices.finetune_confidence,
        keep=choices.keep,
        preprocess=config.preprocess,
        dtype=extract.compute_dtype(config.dtype),
        torch_engine=config.get("torch_engine", "auto"),
        features_from=blocks.parse(config.get("features_from", blocks.LAST)),
        batch_size=config.batch_size,
        cache=cache,
        compilation_cache=config.get("compilation_cache", ""),
        profile=config.get("profile", ""),
        accuracies=accuracies,
        accuracy_source=source,
        unmatched=unmatched,
        history=history,
        known=known,
        directory=workdir / files.directory_name(task.name, "task"),
        config={
            **redact(config.to_dict()),
            # No command line can name them, so that none is recommended.
            **({"models in memory": [m.name for m in objects]} if objects else {}),
        },
    )
    store.check(context.directory)
    with progress.step(task.name, "reading the images", announce=False):
        validation.check_same_images(task)
    with contextlib.ExitStack() as held:
        if set(stages) != {"report"}:
            name = f"{shard.index}-of-{shard.count}" if shard else ""
            held.enter_context(lock.exclusive(context.directory, name))
        context = context.without_corrupt_images()
        # Refuses what cannot be drawn before any long work.
        _ = context.subset
        yield context


def _read_history(own: epath.Path | None, shared: str) -> history_lib.History:
    """Read the recorded fine-tunings, and log the lines that cannot be used."""

    def read() -> history_lib.History:
        if not processes.is_main_process():
            return history_lib.History()
        return history_lib.read(own, uris.split_list(shared))

    known = processes.sync_errors(read)
    for note in known.notes:
        _log.warning("History: %s", note)
    return known


def _load_task(config: Any) -> tasks.Task:
    source = config.task.path or config.task.tfds or "digits"
    try:
        with progress.step(redact(source), "reading the images"):
            return tasks.load(config.task)
    except InputError:
        validation.check_not_swapped(config.task.path, config.checkpoints)
        raise


def _demo(config: Any, cache: ImageCache) -> Callable[[], None]:
    return functools.partial(
        demo.pretrain,
        files.to_path(config.checkpoints),
        config.pretrain,
        image_size=config.image_size,
        seed=config.seed,
        preprocess=config.preprocess,
        cache=cache,
    )
