"""What there is to choose from, as text: checkpoints, measures, networks and tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rankckpt_jax.benchmark import neucrab
from rankckpt_jax.report import terminal


def checkpoints() -> str:
    """NeuCRaB's entries by group; each name is that of its row and directory."""
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
        blocks.append(f"{neucrab.title(group)} (--config.neucrab={group})\n{text}")
    return "\n\n".join(blocks)


def measures() -> str:
    """Every measure with the first line of its documentation."""
    from rankckpt_jax import measures as registry

    lines = [["measure", "needs logits", "what it is"]]
    lines += [
        [measure.name, "yes" if measure.needs_logits else "no", measure.about]
        for measure in map(registry.get, registry.names())
    ]
    return terminal.align(lines, left=[0, 1, 2])


def networks() -> str:
    """Every network that is built here, with its own image size."""
    from rankckpt_jax.models import architecture

    lines = [["network", "pixels", "features"]]
    for name in architecture.names():
        found = architecture.get(name)
        lines.append([name, str(found.image_size), str(found.feature_dim)])
    return terminal.align(lines, left=[0])


def tasks() -> str:
    """NeuCRaB's tasks with their splits."""
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
"""What `--list` takes."""
