"""Modules and SavedModels, exported and loaded once for all tests of checkpoints."""

import types

import numpy as np
import pytest

from rankckpt_jax import checkpoints
from tests.checkpoints import modules

SIGNATURES = {
    "default": {"default": "pooled"},
    "representation": {"pre_logits": "pooled", "logits": "logits", "block": "map"},
    "ambiguous": {"one": "pooled", "two": "map", "three": "pooled"},
}


def _loaded(directory, key):
    """Return a module's backbone and TensorFlow's results for it."""
    images = np.random.default_rng(0).uniform(size=(6, 24, 24, 3)).astype(np.float32)
    evaluated, _ = modules.run_tf1(directory, key, images, training=False)
    trained, updated = modules.run_tf1(directory, key, images, training=True)
    return types.SimpleNamespace(
        directory=directory,
        backbone=checkpoints.load_hub(directory, image_size=24),
        images=images,
        evaluated=evaluated,
        trained=trained,
        updated=updated,
    )


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """A module of two convolutions for images of 24 x 24 pixels."""
    directory = tmp_path_factory.mktemp("small") / "module"
    modules.export_tf1(directory, modules.small, 24, signatures=SIGNATURES)
    return _loaded(directory, "representation")


@pytest.fixture(scope="session")
def any_size(tmp_path_factory):
    """The same for any image size, with an attached size and reference variables."""
    directory = tmp_path_factory.mktemp("any_size") / "module"
    modules.export_tf1(
        directory,
        modules.small,
        None,
        signatures=SIGNATURES,
        info_size=160,
        resource=False,
        seed=1,
    )
    return _loaded(directory, "representation")


@pytest.fixture(scope="session")
def mobilenet(tmp_path_factory):
    """The directory of a module of MobileNet v1 0.25 without classifier."""
    directory = tmp_path_factory.mktemp("mobilenet") / "module"
    signatures = {"default": {"default": "pooled"}}
    modules.export_tf1(directory, modules.mobilenet, 32, signatures=signatures)
    return directory
