"""Lists of the available checkpoints, measures, networks and tasks, for `--list`."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping

from rankckpt_jax import checkpoints as checkpoints_lib
from rankckpt_jax import measures as registry
from rankckpt_jax.benchmark import neucrab, standard
from rankckpt_jax.models import architecture
from rankckpt_jax.report import terminal


def list_names(name: str, pattern: str = "") -> str:
    """Return a list by its name, one of LISTS.

    Args:
      name: The list.
      pattern: Which checkpoints to list, such as "timm:convnext*"; "" for NeuCRaB's.

    Raises:
      InputError: No checkpoint matches the pattern.
    """
    if not pattern:
        return LISTS[name]()
    return "\n".join(spec for _, spec in checkpoints_lib.find(pattern))


def checkpoints() -> str:
    """Return NeuCRaB's checkpoints by group, and how to list those of libraries."""
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
    blocks.append(
        "Networks of libraries: rankckpt list checkpoints 'timm:resnet*', and in the "
        "same way\ntorchvision:PATTERN and keras:PATTERN"
    )
    return "\n\n".join(blocks)


_WIDTH = 100
"""Columns of the list of measures; longer definitions take several lines."""

_HEADINGS = ("measure", "logits", "N > D", "targets", "cost", "tau")

_LETTERS = {"classes": "C", "multi_label": "L", "regression": "N"}

_LEGEND = """\
logits   needs the checkpoint's own classifier
N > D    needs more images (N) than feature dimensions (D)
targets  C one class, L several labels, N one number per image
cost     order of FLOP; C classes, V of the checkpoint's classifier; SVD of its weights
tau      mean Kendall's tau of published scores with fine-tuning; - if there are none
docs/choosing-a-measure.md has the sources, and a recommendation for each situation."""


def measures() -> str:
    """Return every measure with its needs, its cost and its evidence."""
    known = [registry.get(name) for name in registry.names()]
    cells = [
        [
            measure.name,
            "yes" if measure.needs_logits else "no",
            "yes" if measure.needs_more_images_than_dimensions else "no",
            " ".join(_LETTERS[target] for target in measure.targets),
            measure.cost,
            f"{measure.evidence.kendall:.2f}" if measure.evidence else "-",
        ]
        for measure in known
    ]
    widths = [max(map(len, column)) for column in zip(_HEADINGS, *cells, strict=True)]
    width = _WIDTH - sum(widths) - 2 * len(widths)
    lines = [[*_HEADINGS, "definition"]]
    for measure, line in zip(known, cells, strict=True):
        first, *rest = textwrap.wrap(measure.definition.removesuffix("."), width) or [
            ""
        ]
        lines.append([*line, first])
        lines += [[""] * len(line) + [text] for text in rest]
    table = terminal.align(lines, left=[0, 1, 2, 3, 4, 6])
    return f"{table}\n\n{_LEGEND}"


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


def pools() -> str:
    """Return the pools with published accuracies, their networks and data sets."""
    blocks = []
    for name, pool in standard.POOLS.items():
        entries = standard.checkpoints(name)
        config = "hf.py:" if name == "hf" else f"standard.py:{name},"
        lines = [[f"{config}DATASET", "images", "accuracies"]]
        for task, data in standard.TASKS[pool.family].items():
            known = [e for e in entries if f"{pool.family}_{task}" in e.accuracies]
            images = data.tfds or "a folder: --config.task.path=DIR"
            lines.append([task, images, str(len(known))])
        text = terminal.align(lines, left=[0, 1])
        blocks.append(f"{name}: {len(entries)} networks; {pool.title}\n{text}")
    return "\n\n".join(blocks)


LISTS: Mapping[str, Callable[[], str]] = {
    "checkpoints": checkpoints,
    "measures": measures,
    "networks": networks,
    "tasks": tasks,
    "pools": pools,
}
"""Functions by the value of `--list`."""
