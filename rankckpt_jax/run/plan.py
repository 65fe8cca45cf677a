"""`--plan=TOPOLOGY`: what a config would take on some devices, before anything runs.

Every network of the pool is compiled for the devices, which need not be there. The
result names memory, FLOP, memory traffic and the roofline time of each phase. No image
is decoded, and nothing is written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
from collections.abc import Iterator
from typing import Any

from rankckpt_jax import finetune
from rankckpt_jax.data.splits import Task
from rankckpt_jax.devices import (
    compilation,
    mapping,
    peaks,
    progress,
    target,
    topologies,
)
from rankckpt_jax.features import blocks, extract
from rankckpt_jax.run import context as context_lib
from rankckpt_jax.run import plan_inputs, plan_phases, scoring
from rankckpt_jax.run.plan_inputs import Pool
from rankckpt_jax.run.plan_phases import Inputs, Phase

HERE = "here"
"""The topology that stands for the devices of this machine."""

# CPU seconds to compile a network for extraction and for training, by platform.
_COMPILE_SECONDS = {"tpu": (15, 65), "gpu": (5, 20), "cpu": (5, 20)}

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a config would take.

    Attributes:
      task: The task, with the sizes of its splits.
      topology: Name of the devices.
      devices: Their number.
      peak: Peak rates and memory of one device.
      pool: The checkpoints.
      phases: The phases that the config's stages have.
      decoded: Images that the host decodes: all images that are used, once per size.
      race: Whether checkpoints are dropped while extraction goes on.
      features_from: See `config.features_from`.
    """

    task: Task
    topology: str
    devices: int
    peak: peaks.Peak
    pool: Pool
    phases: tuple[Phase, ...]
    decoded: int
    race: bool
    features_from: str

    @property
    def fits(self) -> bool:
        """Whether no program runs out of memory."""
        return all(row.verdict != "OOM" for phase in self.phases for row in phase.rows)


def make(config: Any, topology: str) -> Plan:
    """Plan a config for some devices.

    Args:
      config: Fields as in configs/default.py.
      topology: A name for `topologies.load`, or HERE.

    Raises:
      InputError: The config cannot be used, the topology does not exist, or its
        compiler is not installed.
    """
    choices = context_lib.parse(config)
    # Before the pool is read, because a wrong name is found at once.
    with _devices(topology):
        task = plan_inputs.load_task(config)
        settings = scoring.for_target(choices.settings, task.target)
        choices = dataclasses.replace(choices, settings=settings)
        with progress.step("plan", "finding the checkpoints", announce=False):
            pool = plan_inputs.load_pool(config, choices.stages)
        inputs = Inputs(
            topology,
            mapping.local_device_count(),
            peaks.of_target(),
            task,
            pool,
            choices,
            extract.compute_dtype(config.dtype),
            config.batch_size,
            config.score_on,
            blocks.parse(config.features_from),
        )
        _log_estimate(inputs)
        phases = tuple(plan_phases.make(inputs))
    return Plan(
        task,
        topology,
        inputs.devices,
        inputs.peak,
        pool,
        tuple(phase for phase in phases if phase.rows),
        _count_decoded(inputs),
        config.race,
        config.features_from,
    )


@contextlib.contextmanager
def _devices(topology: str) -> Iterator[None]:
    """Make programs for the devices of a topology."""
    if topology == HERE:
        yield
        return
    devices = topologies.load(topology)
    with compilation.disabled(), target.compile_for(devices):
        yield


def _log_estimate(inputs: Inputs) -> None:
    """Log how long compiling takes."""
    forward, training = _COMPILE_SECONDS[target.platform()]
    count = len(inputs.networks)
    trained = count if inputs.trains_networks else 0
    minutes = math.ceil((count * forward + trained * training) / 60)
    _log.info(
        "plan: compiling %d programs of networks for %s, about %d min of CPU time",
        *(count + trained, inputs.topology, minutes),
    )


def _count_decoded(inputs: Inputs) -> int:
    """Return the number of images that are decoded: each once per size."""
    splits, stages = inputs.task.splits, inputs.choices.stages
    counts = {}
    if "extract" in stages and "train" in splits:
        counts["train"] = inputs.scored_images
    if "finetune" in stages:
        for name in finetune.splits_used(inputs.task, inputs.choices.sweep):
            counts[name] = splits[name].num_examples
    # It is made of two others.
    counts.pop("trainval", None)
    sizes = {network.image_size for network in inputs.pool.networks.values()}
    return len(sizes) * sum(counts.values())
