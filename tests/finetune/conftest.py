"""A task and a network so small that a sweep takes a second."""

import numpy as np
import pytest

from rankckpt_jax.checkpoints.backbone import Backbone
from rankckpt_jax.data import tasks
from tests.finetune import SmallNetwork


@pytest.fixture(scope="session")
def task():
    """Two classes, of which one has a bright upper half and the other a lower one."""
    random = np.random.default_rng(0)

    def split(name, count):
        labels = np.arange(count) % 2
        images = random.integers(0, 90, (count, 32, 32, 3))
        images[labels == 0, :16] += 160
        images[labels == 1, 16:] += 160
        return tasks.array_split(name, images.astype(np.uint8), labels)

    splits = {"train": split("train", 32), "test": split("test", 21)}
    return tasks.Task("halves", ("top", "bottom"), splits, "made up")


@pytest.fixture(scope="session")
def backbone():
    """`SmallNetwork` with random weights."""
    kernel = 0.2 * np.random.default_rng(0).normal(size=(48, 16))
    ones, zeros = np.ones(16, np.float32), np.zeros(16, np.float32)
    params = {"kernel": kernel.astype(np.float32), "scale": ones, "bias": zeros}
    return Backbone(
        name="small",
        architecture="small",
        variables={"params": params, "batch_stats": {"mean": zeros, "var": ones}},
        apply=SmallNetwork(),
        image_size=32,
        input_range=(-1.0, 1.0),
        input_mean=(0.0, 0.0, 0.0),
        feature_dim=16,
        num_source_classes=0,
        num_parameters=48 * 16 + 32,
        fingerprint="small",
        source="random",
    )
