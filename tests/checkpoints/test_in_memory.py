import dataclasses

import flax.linen as nn
import flax.nnx
import jax
import numpy as np
import pytest

from rankckpt_jax import checkpoints
from rankckpt_jax.checkpoints import in_memory
from rankckpt_jax.errors import InputError


@pytest.fixture
def backbone(pool):
    return checkpoints.load(pool / "first", image_size=32)


def test_read_identifies_a_backbone_by_its_weights(backbone):
    model = in_memory.read(backbone, "checkpoints[0]")
    assert model.name == backbone.name and model.load() is model.backbone
    assert in_memory.read(backbone, "").identity == model.identity
    doubled = jax.tree.map(lambda leaf: 2 * np.asarray(leaf), backbone.variables)
    changed = dataclasses.replace(backbone, variables=doubled)
    other = in_memory.read(changed, "")
    assert other.identity != model.identity
    assert other.load().fingerprint != model.load().fingerprint


def test_load_keeps_the_image_size_with_a_warning(backbone):
    model = in_memory.read(backbone, "")
    loaded = model.load(64)
    assert loaded.image_size == 32 and "32 x 32" in loaded.warnings["image_size"]
    assert "image_size" not in model.load(32).warnings


@pytest.mark.parametrize(
    ("item", "call"),
    [
        (nn.Dense(3), r"from_flax\(module, variables, image_size=224"),
        (flax.nnx.Linear(3, 4, rngs=flax.nnx.Rngs(0)), "rank_features"),
        (3, "where: here"),
        ((nn.Dense(3), {}), "Not a checkpoint"),
    ],
)
def test_read_refuses_other_objects(item, call):
    with pytest.raises(InputError, match=call):
        in_memory.read(item, "here")
