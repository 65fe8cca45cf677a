"""Pools of checkpoints with known accuracies, on which predictions are evaluated.

Published tables are read from a directory, the public pool from docs/data.
"""

import collections
import dataclasses
import pathlib
import re
from collections.abc import Mapping

import numpy as np

from rankckpt_jax import evaluation
from rankckpt_jax.evaluation import Checkpoint, Table, TaskTable
from tests.benchmarks import public_pool, published_agreement

HF = "published_accuracies_hf_vtab1k.csv"


def family(name: str) -> str:
    """Return the letters before a version or size, such as "resnet" of "resnet50v2"."""
    word = re.split(r"[_\d]", name.lower())[0]
    return re.sub(r"(?<=efficientnet)b$|(?<=mobilenet)v$|(?<=nasnet)mobile$", "", word)


def read_pools(directory: pathlib.Path) -> list[Table]:
    """Return the pools of published scores, that of VTAB, and the public pool."""
    pools = [read_scores(directory, t) for t in published_agreement.TABLES]
    pools.append(read_hugging_face(directory))
    if public_pool.TABLE.exists() and (table := read_public_pool()):
        pools.append(table)
    return pools


def read_scores(directory: pathlib.Path, source: published_agreement.Table) -> Table:
    """Return a published table with this package's names of measures."""
    table = evaluation.read_table(directory / source.file)
    lines = public_pool.read_lines(published_agreement.DATA / "imagenet_accuracies.csv")
    known = {
        line["checkpoint"]: float(line["accuracy"])
        for line in lines
        if line["pool"] == source.pool
    }
    checkpoints = {
        name: Checkpoint(
            name,
            family(name),
            statics={"source_accuracy": known[name]} if known else c.statics,
        )
        for name, c in table.checkpoints.items()
    }

    def rename(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {source.names[m]: x for m, x in values.items() if m in source.names}

    tasks = [
        dataclasses.replace(
            task,
            scores=rename(task.scores),
            spreads=rename(task.spreads),
            seconds=rename(task.seconds),
        )
        for task in table.tasks
    ]
    measures = [source.names[m] for m in table.measures if m in source.names]
    return Table(source.pool, tuple(tasks), tuple(measures), checkpoints)


def read_hugging_face(directory: pathlib.Path) -> Table:
    """Return the accuracies of Hugging Face models with the same settings on VTAB."""
    rows = [
        row
        for row in public_pool.read_lines(directory / HF)
        # Test fixtures are no networks.
        if row["same_settings"] == "1" and "tiny-random" not in row["model"]
    ]
    kinds = ("vit", "swin", "beit", "deit", "convnext", "data2vec", "van", "mit-")
    checkpoints = {}
    for row in rows:
        text = f"{row['architecture']} {row['model_type']} {row['model']}".lower()
        found = [kind for kind in kinds if kind in text]
        size = row["num_parameters"]
        checkpoints[row["model"]] = Checkpoint(
            row["model"],
            found[0] if found else "unknown",
            statics={"parameters": float(size)} if size else {},
        )
    tasks = []
    for name in dict.fromkeys(row["dataset"] for row in rows):
        known = [row for row in rows if row["dataset"] == name]
        runs = np.array([[float(row["accuracy"])] for row in known])
        names = tuple(row["model"] for row in known)
        tasks.append(TaskTable(name, names, runs, {}, {}, {}))
    return Table("hugging_face", tuple(tasks), (), checkpoints)


def read_public_pool(path: pathlib.Path = public_pool.TABLE) -> Table | None:
    """Return the tasks of the public pool in which all networks have an accuracy."""
    networks = {n["checkpoint"] for n in public_pool.read_lines(public_pool.NETWORKS)}
    known = collections.defaultdict(set)
    for line in public_pool.read_lines(path):
        known[line["task"]].add(line["checkpoint"])
    complete = {task for task, names in known.items() if networks <= names}
    if not complete:
        return None
    table = evaluation.read_table(path)
    tasks = tuple(task for task in table.tasks if task.name in complete)
    return dataclasses.replace(table, tasks=tasks)
