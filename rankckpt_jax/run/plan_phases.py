"""The phases of a plan: extraction, measures and fine-tuning."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rankckpt_jax import finetune
from rankckpt_jax.checkpoints.backbone import block_names
from rankckpt_jax.data import pipeline
from rankckpt_jax.data.splits import Task
from rankckpt_jax.devices import memory, peaks, progress
from rankckpt_jax.devices.work import Analysis, Work, analyze
from rankckpt_jax.features import blocks, extract
from rankckpt_jax.measures import cost
from rankckpt_jax.measures.mixture import fitting
from rankckpt_jax.run.context import Choices
from rankckpt_jax.run.plan_inputs import Network, Pool

_ANALYSES: dict[Any, Analysis] = {}
"""Compiled programs of this process, by all that determines them."""


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What all phases read.

    Attributes:
      topology: Name of the devices.
      devices: Their number.
      peak: Peak rates and memory of one device.
      task: The task, with the sizes of its splits.
      pool: The checkpoints.
      choices: The checked config.
      dtype: Dtype of the networks in extraction.
      batch_size: Images per step in extraction.
      score_on: Number of training images to score on; 0 for all.
      features_from: Layers whose features are scored; see `run.layers`.
    """

    topology: str
    devices: int
    peak: peaks.Peak
    task: Task
    pool: Pool
    choices: Choices
    dtype: str
    batch_size: int
    score_on: int
    features_from: str

    @property
    def scored_images(self) -> int:
        """The number of training images that are extracted and scored."""
        images = self.task.splits["train"].num_examples
        return min(self.score_on or images, images)

    @property
    def networks(self) -> Mapping[Network, int]:
        """The number of checkpoints of each network."""
        return collections.Counter(self.pool.networks.values())

    @property
    def trains_networks(self) -> bool:
        """Whether fine-tuning trains more than a head."""
        choices = self.choices
        return "finetune" in choices.stages and not choices.sweep.recipe.frozen


@dataclasses.dataclass(frozen=True)
class Row:
    """One network in one phase, or one kind of measures on one kind of features.

    Attributes:
      name: The network or the measures.
      size: Pixels of the images, or dimensions of the features.
      checkpoints: Number of checkpoints, or of layers of them, that share the row.
      peak_bytes: Memory of one device.
      verdict: "FITS", "TIGHT" or "OOM".
      largest: The largest batch that fits; None unless the verdict is "OOM".
      work: Work of all devices for one checkpoint.
      seconds: Roofline time of one checkpoint.
    """

    name: str
    size: int
    checkpoints: int
    peak_bytes: float
    verdict: str
    largest: memory.LargestBatch | None
    work: Work
    seconds: float


@dataclasses.dataclass(frozen=True)
class Phase:
    """One phase of a run.

    Attributes:
      name: "Extraction", "Measures" or "Fine-tuning".
      about: What is computed for each checkpoint.
      unit: What `Row.size` counts.
      rows: The rows.
    """

    name: str
    about: str
    unit: str
    rows: tuple[Row, ...]

    @property
    def seconds(self) -> float:
        """Roofline time of the pool."""
        return sum(row.seconds * row.checkpoints for row in self.rows)

    @property
    def work(self) -> Work:
        """Work of the pool."""
        return sum((row.work * row.checkpoints for row in self.rows), start=Work())


def make(inputs: Inputs) -> Iterator[Phase]:
    """Yield the phases of the config's stages; each network is compiled once."""
    stages = inputs.choices.stages
    if "extract" in stages and inputs.pool.networks:
        yield extraction(inputs)
    if "score" in stages:
        yield measures(inputs)
    if "finetune" in stages:
        yield finetuning(inputs)


def extraction(inputs: Inputs) -> Phase:
    """Plan one pass over the training images for each checkpoint."""
    images = inputs.scored_images
    batch = pipeline.fit_batch(inputs.batch_size, images)
    steps = pipeline.num_steps(images, batch)
    rows = []
    for network, checkpoints in inputs.networks.items():
        analysis = _forward(inputs, network, batch)

        def peak_of(size: int, network: Network = network) -> float:
            return _forward(inputs, network, size).peak_bytes

        largest = _largest(inputs, analysis, peak_of, batch, inputs.devices)
        work = analysis.work * steps
        rows.append(_network_row(inputs, network, checkpoints, analysis, work, largest))
    per_device = batch // inputs.devices
    about = f"{images:,} images, {batch} per step ({per_device} per device)"
    return Phase("Extraction", f"{about}, {inputs.dtype}", "pixels", tuple(rows))


def measures(inputs: Inputs) -> Phase:
    """Plan all measures, by formulas; see `measures.cost`.

    EM is divided among the devices. Other measures use one of them.
    """
    kinds = collections.Counter(_sizes(inputs))
    names = inputs.choices.settings.measures
    others = tuple(name for name in names if name != "nleep")
    rows = []
    by_size = sorted(
        kinds.items(), key=lambda k: (k[0].dimensions, k[0].source_classes)
    )
    for sizes, checkpoints in by_size:
        logits = f", {sizes.source_classes} logits" if sizes.source_classes else ""
        if "nleep" in names:
            row = _measures_row(inputs, ("nleep",), sizes, inputs.devices)
            rows.append(row("nleep" + logits, checkpoints))
        if others:
            title = others[0] if len(others) == 1 else f"{len(others)} others"
            row = _measures_row(inputs, others, sizes, 1)
            rows.append(row(title + logits, checkpoints))
    return Phase("Measures", ", ".join(names), "features", tuple(rows))


def finetuning(inputs: Inputs) -> Phase:
    """Plan all trials and evaluations of each checkpoint."""
    task, choices = inputs.task, inputs.choices
    finetune.check(task, choices.sweep)
    splits = finetune.choose_splits(task, choices.sweep)
    sweep = finetune.fit_batch(choices.sweep, splits.train)
    recipe, trials = sweep.recipe, len(sweep.trials)
    together = min(sweep.trials_at_once, len(sweep.learning_rates))
    if sweep.chooses_early:
        together = 1
    steps = math.ceil(sweep.steps_before_choice / together) + sweep.steps_after_choice
    if sweep.budget:
        # Spread evenly; which checkpoints are dropped is not known before.
        count = sum(inputs.networks.values())
        steps = math.ceil(sweep.budget / min(choices.finetune_top or count, count))
    # Evaluations are evenly spaced, and one more is that of early stopping.
    evaluated = trials * (recipe.evaluations + 1) * splits.validation.num_examples
    if splits.final is not None:
        steps += max(sweep.num_steps)
        evaluated += (recipe.evaluations + 1) * splits.test.num_examples
    if recipe.frozen:
        evaluated = splits.train.num_examples + splits.test.num_examples
    batch = pipeline.fit_batch(inputs.batch_size, splits.train.num_examples)
    rows = []
    for network, checkpoints in inputs.networks.items():
        forward = _forward(inputs, network, batch)
        work = forward.work * (evaluated / batch)
        if recipe.frozen:
            # The head alone takes little time.
            rows.append(_network_row(inputs, network, checkpoints, forward, work, None))
            continue
        analysis = _training(inputs, network, recipe, together)

        def peak_of(size: int, network: Network = network) -> float:
            smaller = dataclasses.replace(recipe, batch_size=size)
            return _training(inputs, network, smaller, together).peak_bytes

        parts = inputs.devices * recipe.accumulate
        largest = _largest(inputs, analysis, peak_of, recipe.batch_size, parts)
        work += analysis.work * steps
        rows.append(_network_row(inputs, network, checkpoints, analysis, work, largest))
    per_device = recipe.batch_size // inputs.devices
    about = (
        f"{trials} trials, {steps:,} steps of {recipe.batch_size} images ({per_device} "
        f"per device), {recipe.dtype}"
    )
    if sweep.budget:
        about = (
            f"{sweep.budget:,} steps of {recipe.batch_size} images in all, by "
            f"successive halving, {recipe.dtype}"
        )
    if recipe.frozen:
        about = f"{trials} trials of a head on fixed features"
    if choices.finetune_budget:
        about = f"within {choices.finetune_budget:,.0f} s, by expected gain; {about}"
    top = choices.finetune_top
    if top:
        about = f"the {top} best-ranked, here the costliest; {about}"
        rows = list(_costliest(rows, top))
    return Phase("Fine-tuning", about, "pixels", tuple(rows))


def _costliest(rows: Sequence[Row], top: int) -> Iterator[Row]:
    """Yield the costliest rows, with `top` checkpoints in all."""
    for row in sorted(rows, key=lambda row: -row.seconds):
        if count := min(row.checkpoints, top):
            yield dataclasses.replace(row, checkpoints=count)
            top -= count


def _network_row(
    inputs: Inputs,
    network: Network,
    checkpoints: int,
    analysis: Analysis,
    work: Work,
    largest: memory.LargestBatch | None,
) -> Row:
    """Return a row from a program and the work of one device for one checkpoint."""
    return Row(
        network.architecture,
        network.image_size,
        checkpoints,
        analysis.peak_bytes,
        _verdict(inputs, analysis),
        largest,
        work * inputs.devices,
        inputs.peak.seconds(work),
    )


def _verdict(inputs: Inputs, analysis: Analysis) -> str:
    if analysis.is_refused:
        return "OOM"
    return memory.verdict(analysis.peak_bytes, inputs.peak.memory)


def _largest(
    inputs: Inputs,
    analysis: Analysis,
    peak_of: Callable[[int], float],
    batch_size: int,
    step: int,
) -> memory.LargestBatch | None:
    """Return the largest batch of a program that does not fit; None if it does."""
    if _verdict(inputs, analysis) != "OOM":
        return None
    return memory.largest_batch(peak_of, batch_size, step, inputs.peak.memory)


def _sizes(inputs: Inputs) -> Iterator[cost.Sizes]:
    """Yield the sizes of each checkpoint's features, and of each of their layers."""
    for given in inputs.pool.features.values():
        yield cost.Sizes(
            given.images,
            given.feature_dim,
            given.num_outputs,
            given.num_source_classes,
        )
    for network in inputs.pool.networks.values():
        for dimensions in _layers(inputs.features_from, network):
            yield cost.Sizes(
                inputs.scored_images,
                dimensions,
                inputs.task.num_outputs,
                network.num_source_classes,
            )


def _layers(features_from: str, network: Network) -> tuple[int, ...]:
    """Return the dimensions of each layer that is scored."""
    last = (network.feature_dim,)
    if features_from == blocks.LAST or not block_names(network.apply):
        return last
    widths = blocks.find_widths(network.apply, network.variables, network.image_size)
    return (sum(widths),) if features_from == "blocks" else last + widths


def _measures_row(
    inputs: Inputs, names: Sequence[str], sizes: cost.Sizes, devices: int
) -> Callable[[str, int], Row]:
    """Return a function of title and checkpoints that returns the row of measures."""
    settings = inputs.choices.settings
    options = [dict(settings.options.get(name, {})) for name in names]
    halves = dataclasses.replace(sizes, images=sizes.images // 2)
    flop = sum(
        cost.flop(name, sizes, given)
        + settings.num_bootstrap * cost.flop(name, halves, given)
        for name, given in zip(names, options, strict=True)
    )
    # Each measure reads the features.
    runs = 1 + settings.num_bootstrap / 2
    traffic = 4.0 * sizes.images * sizes.dimensions * len(names) * runs
    work = Work({"float32 highest": flop}, traffic)
    peak = max(cost.memory(name, sizes) for name in names)
    if "nleep" in names:
        peak = max(peak, _mixture(inputs, sizes, options[0]).peak_bytes)
    verdict = memory.verdict(peak, inputs.peak.memory)
    seconds = inputs.peak.seconds(work * (1 / devices))
    return lambda title, checkpoints: Row(
        title, sizes.dimensions, checkpoints, peak, verdict, None, work, seconds
    )


def _forward(inputs: Inputs, network: Network, batch: int) -> Analysis:
    """Compile the forward pass of extraction."""
    return _analyze(
        (inputs.topology, "forward", network, batch, inputs.dtype),
        f"{network.architecture} for {batch} images of {network.image_size} pixels",
        lambda: extract.forward_program(network, dtype=inputs.dtype, batch_size=batch),
    )


def _training(
    inputs: Inputs, network: Network, recipe: finetune.Recipe, trials: int
) -> Analysis:
    """Compile a training step."""
    # The program does not depend on them.
    recipe = dataclasses.replace(recipe, learning_rate=0.0, num_steps=1)
    outputs, target = inputs.task.num_outputs, inputs.task.target
    return _analyze(
        (inputs.topology, "training", network, recipe, trials, outputs, target),
        f"a training step of {network.architecture} for {recipe.batch_size} images of "
        f"{network.image_size} pixels",
        lambda: finetune.train_program(network, [recipe] * trials, outputs, target),
    )


def _mixture(inputs: Inputs, sizes: cost.Sizes, options: dict[str, Any]) -> Analysis:
    """Compile EM of NLEEP, in the form that takes the most memory."""
    components, dimensions = cost.mixture(sizes, options)
    kind = options.get("covariance_type") or "full"
    return _analyze(
        (inputs.topology, "EM", sizes.images, components, dimensions, kind),
        f"EM of {components} components for {sizes.images} images in {dimensions} "
        "dimensions",
        lambda: fitting.dense_program(sizes.images, dimensions, components, kind),
    )


def _analyze(key: Any, title: str, make_program: Callable[[], Any]) -> Analysis:
    if key not in _ANALYSES:
        with progress.step("plan", f"compiling {title}"):
            function, args = make_program()
            _ANALYSES[key] = analyze(function, *args)
    return _ANALYSES[key]
