import dataclasses

import flax.traverse_util
import jax
import numpy as np
import pytest

from rankckpt_jax.benchmark import demo
from rankckpt_jax.finetune import restore_batch_norm as unfold
from tests import slim_golden
from tests.finetune import settings


@pytest.fixture(scope="module")
def folded(backbone):
    """The network with its scales in the kernels, its means in the offsets."""
    random = np.random.default_rng(0)
    flat = flax.traverse_util.flatten_dict(backbone.variables)
    for path, value in flat.items():
        if path[-1] in ("mean", "bias", "var") and path[1] != "logits":
            flat[path] = {
                "mean": np.zeros_like(value),
                "var": np.full_like(value, 0.999),
                "bias": random.normal(size=value.shape).astype(np.float32),
            }[path[-1]]
    variables = flax.traverse_util.unflatten_dict(flat)
    return dataclasses.replace(backbone, variables=variables)


def test_only_trained_networks_without_moments_are_folded(backbone, folded):
    assert unfold.is_folded(folded)
    assert not unfold.is_folded(demo.from_scratch("mobilenet_v1_025", 32, 0))
    flat = flax.traverse_util.flatten_dict(folded.variables)
    path = next(path for path in flat if path[-1] == "mean")
    flat[path] = flat[path] + 1
    variables = flax.traverse_util.unflatten_dict(flat)
    assert not unfold.is_folded(dataclasses.replace(folded, variables=variables))


def test_unfolding_keeps_the_function_and_mends_training_mode(folded, task):
    split = task.splits["train"]
    mended = unfold.unfold(folded, split, **settings())
    assert not unfold.is_folded(mended)
    images, _ = settings()["cache"].get(split, 32, "vtab")
    images = images / 127.5 - 1
    apply = jax.jit(folded.apply, static_argnames="train")
    expected = apply(folded.variables, images).features
    found = apply(mended.variables, images).features
    assert slim_golden.relative_error(found, expected) < 1e-4
    # With all its images for a batch, training mode is evaluation mode.
    trained, _ = apply(mended.variables, images, train=True)
    assert slim_golden.relative_error(trained.features, expected) < 1e-3
    ruined, _ = apply(folded.variables, images, train=True)
    assert slim_golden.relative_error(ruined.features, expected) > 0.1
