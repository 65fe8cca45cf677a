import dataclasses
import pickle

import jax
import numpy as np
import pytest

from rankckpt_jax import models
from rankckpt_jax.checkpoints import backbone as backbone_lib
from rankckpt_jax.data.transform import Transform
from rankckpt_jax.errors import InputError


def _backbone(name, classes=0, size=32, seed=0):
    module = models.create(name, num_classes=classes)
    shapes = jax.eval_shape(
        module.init, jax.random.key(0), np.zeros((1, size, size, 3), np.float32)
    )
    random = np.random.default_rng(seed)

    def draw(kind, low, high):
        return jax.tree.map(
            lambda leaf: random.uniform(low, high, leaf.shape).astype("f4"),
            shapes[kind],
        )

    params, stats = draw("params", -0.1, 0.1), draw("batch_stats", 0.5, 1.5)
    variables = {"params": params, "batch_stats": stats}
    return backbone_lib.create(
        name,
        variables,
        name=f"{name}-{seed}",
        fingerprint=str(seed),
        source="drawn",
        image_size=size,
    )


def test_apply_compiles_once_per_architecture():
    # As in the benchmark's second group: pre-training on ImageNet, iNaturalist, Places.
    pool = [
        _backbone("mobilenet_v1_025", classes, seed=4 * i + j)
        for i, classes in enumerate((1000, 5089, 365))
        for j in range(4)
    ]
    traces = []

    def forward(apply, variables, images):
        traces.append(apply)
        return apply(variables, images).features

    compiled = jax.jit(forward, static_argnums=0)
    images = np.ones((2, 32, 32, 3), np.float32)
    features = set()
    for backbone in pool:
        variables, head = backbone_lib.split_head(backbone.variables)
        assert head["bias"].shape == (backbone.num_source_classes,)
        features.add(float(compiled(backbone.apply, variables, images).sum()))
    assert len(features) == len(pool) == 12
    assert traces == [pool[0].apply]


def test_apply_is_hashable_and_compares_by_value():
    one, other = backbone_lib.Apply("resnet_v1_50"), backbone_lib.Apply("resnet_v1_50")
    assert hash(one) == hash(other)
    assert one == other == pickle.loads(pickle.dumps(one))
    assert one != backbone_lib.Apply("resnet_v1_50", axis_name="batch")


def test_create_fills_in_the_facts_of_the_architecture():
    backbone = _backbone("resnet_v1_50", classes=7, size=64)
    assert backbone.feature_dim == 2048
    assert backbone.num_source_classes == 7
    assert backbone.num_parameters == 23_508_032
    assert backbone.input_range == (0.0, 255.0)
    assert backbone.input_mean[0] == pytest.approx(123.68)


def test_create_refuses_images_that_are_too_small():
    with pytest.raises(InputError, match="inception_v3 cannot take"):
        backbone_lib.create(
            "inception_v3",
            {"params": {}, "batch_stats": {}},
            name="a",
            fingerprint="",
            source="",
            image_size=64,
        )


def test_own_preprocess_is_the_rule_at_the_image_size():
    backbone, own = _backbone("mobilenet_v1_025"), Transform(0.9)
    assert backbone.own_preprocess == "vtab"
    made = dataclasses.replace(backbone, own_transform=own, image_size=128)
    assert made.own_preprocess == own.rule(128) == "own(142,bicubic,center)"
