"""A task so small that a grid of runs takes seconds, and what to start from."""

import numpy as np
import pytest

from rankckpt_jax import checkpoints
from rankckpt_jax.data import tasks


@pytest.fixture(scope="module")
def task():
    """Two classes told apart by the brighter half of the image."""
    random = np.random.default_rng(0)

    def split(name, count):
        labels = np.arange(count) % 2
        images = random.integers(0, 90, (count, 32, 32, 3))
        images[labels == 0, :16] += 160
        images[labels == 1, 16:] += 160
        return tasks.array_split(name, images.astype(np.uint8), labels)

    splits = {"train": split("train", 32), "test": split("test", 21)}
    return tasks.Task("halves", ("top", "bottom"), splits, "made up")


@pytest.fixture(scope="module")
def backbone(pool):
    return checkpoints.load(str(pool / "first"), image_size=32)
