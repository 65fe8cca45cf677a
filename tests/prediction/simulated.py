"""Simulated tasks whose joint distribution is known."""

import numpy as np

from rankckpt_jax.evaluation import Checkpoint, Table, TaskTable

SHARED = 0.6
"""Variance of the accuracy, as a standardized logit, that tasks share."""

CORRELATIONS = {"nleep": 0.7, "logme": 0.4, "random": 0.0}
"""Of each measure with the accuracy on the task; the rest is independent noise."""

LEVEL, SCALE = 1.5, 0.4


def make_table(num_tasks: int, num_checkpoints: int, seed: int = 0) -> Table:
    """Return a table of checkpoints without relatives.

    Accuracies are exact. Source accuracy is correlated 0.5 with the part of the
    accuracy that all tasks share.
    """
    random = np.random.default_rng(seed)
    n = num_checkpoints
    names = tuple(f"net{i}" for i in range(n))
    lasting = np.sqrt(SHARED) * random.normal(size=n)
    source = 0.5 * lasting / np.sqrt(SHARED) + np.sqrt(0.75) * random.normal(size=n)
    tasks = []
    for t in range(num_tasks):
        y = lasting + np.sqrt(1 - SHARED) * random.normal(size=n)
        scores = {
            name: r * y + np.sqrt(1 - r * r) * random.normal(size=n)
            for name, r in CORRELATIONS.items()
        }
        a = 1 / (1 + np.exp(-(LEVEL + SCALE * y)))
        tasks.append(TaskTable(f"task{t}", names, a[:, None], scores, {}, {}))
    checkpoints = {
        name: Checkpoint(name, statics={"source_accuracy": 70 + value})
        for name, value in zip(names, source, strict=True)
    }
    return Table(f"pool{seed}", tuple(tasks), tuple(CORRELATIONS), checkpoints)
