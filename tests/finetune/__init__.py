"""Fine-tuning; what its tests have in common."""

import csv
import dataclasses

from rankckpt_jax import finetune
from rankckpt_jax.data import pipeline

RECIPE = finetune.Recipe(
    learning_rate=0.02,
    num_steps=12,
    batch_size=8,
    batch_norm_decay=0.8,
    evaluations=2,
    save_every=4,
)


def settings():
    """The images: VTAB's resizing, and a cache of their own."""
    return {"preprocess": "vtab", "cache": pipeline.ImageCache(1.0)}


def without_times(run):
    """All of a run but how long it took, also in its CSV."""
    rows = [
        {name: value for name, value in row.items() if name != "images_per_second"}
        for row in csv.DictReader(run.metrics.splitlines())
    ]
    return dataclasses.replace(run, seconds=0.0, metrics=""), rows
