import dataclasses

import flax.traverse_util
import jax
import numpy as np
import pytest

from rankckpt_jax import checkpoints
from rankckpt_jax.checkpoints.description import has_folded_batch_norm
from rankckpt_jax.finetune import restore_batch_norm
from tests import slim_golden
from tests.finetune import settings


@pytest.fixture(scope="module")
def folded(pool):
    """A network with its scales in the kernels, and its means in the offsets."""
    backbone = checkpoints.load(str(pool / "first"), image_size=32)
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


def test_has_folded_batch_norm_is_false_for_untrained_and_intact_networks(folded):
    assert has_folded_batch_norm(folded)
    flat = flax.traverse_util.flatten_dict(folded.variables)
    mean = next(path for path in flat if path[-1] == "mean")
    untrained = {path: 0 * x if path[-1] == "bias" else x for path, x in flat.items()}
    intact = {**flat, mean: flat[mean] + 1}
    for changed in (untrained, intact):
        variables = flax.traverse_util.unflatten_dict(changed)
        other = dataclasses.replace(folded, variables=variables)
        assert not has_folded_batch_norm(other)


def test_restore_keeps_function_and_repairs_training_mode(folded, task):
    split = task.splits["train"]
    restored = restore_batch_norm.restore(folded, split, **settings())
    assert not has_folded_batch_norm(restored)
    images, _ = settings()["cache"].get(split, 32, "vtab")
    images = images / 127.5 - 1
    apply = jax.jit(folded.apply, static_argnames="train")
    expected = apply(folded.variables, images).features
    features = apply(restored.variables, images).features
    assert slim_golden.relative_error(features, expected) < 1e-4
    # With all images in one batch, training mode equals evaluation mode.
    trained, _ = apply(restored.variables, images, train=True)
    assert slim_golden.relative_error(trained.features, expected) < 1e-3
    broken, _ = apply(folded.variables, images, train=True)
    assert slim_golden.relative_error(broken.features, expected) > 0.1
