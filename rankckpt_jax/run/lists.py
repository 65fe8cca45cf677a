"""Lists of the available checkpoints, measures, networks and tasks, for `--list`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rankckpt_jax import measures as registry
from rankckpt_jax.benchmark import neucrab
from rankckpt_jax.models import architecture
from rankckpt_jax.report import terminal


def checkpoints() -> str:
    """Return NeuCRaB's checkpoints by group."""
    blocks = []
    for group in neucrab.GROUPS:
        lines = [["checkpoint", "network", "pixels", "trained on", "supervision"]]
        lines += [
            [
                entry.name,
                entry.architecture,
                str(entry.image_size),
                entry.pretraining,
                entry.supervision,
            ]
            for entry in neucrab.entries([group])
        ]
        text = terminal.align(lines, left=[0, 1, 3, 4])
        blocks.append(
            f"{neucrab.GROUP_TITLES[group]} (--config.neucrab={group})\n{text}"
        )
    return "\n\n".join(blocks)


def measures() -> str:
    """Return every measure with a one-line description."""
    lines = [["measure", "needs logits", "description"]]
    lines += [
        [measure.name, "yes" if measure.needs_logits else "no", measure.about]
        for measure in map(registry.get, registry.names())
    ]
    return terminal.align(lines, left=[0, 1, 2])


def networks() -> str:
    """Return every architecture with its default image size and feature dimension."""
    lines = [["network", "pixels", "features"]]
    for name in architecture.names():
        network = architecture.get(name)
        lines.append([name, str(network.image_size), str(network.feature_dim)])
    return terminal.align(lines, left=[0])


def tasks() -> str:
    """Return NeuCRaB's tasks with their splits."""
    lines = [["task", "images", "classes", "train", "val", "test", "1k"]]
    for task in neucrab.TASKS.values():
        counts = [f"{task.counts[role]:,}" for role in ("train", "val", "test")]
        few = ", ".join(task.few[role] for role in ("train", "val"))
        lines.append([task.name, task.tfds, str(task.num_classes), *counts, few])
    return terminal.align(lines, left=[0, 1, 6])


LISTS: Mapping[str, Callable[[], str]] = {
    "checkpoints": checkpoints,
    "measures": measures,
    "networks": networks,
    "tasks": tasks,
}
"""Functions by the value of `--list`."""
