import functools

import jax
import jax.numpy as jnp
import pytest

from rankckpt_jax import models
from rankckpt_jax.errors import InputError


def test_create_resolves_names_and_raises_for_unknown_names():
    assert "mobilenet_v1_025" in models.names()
    assert models.create("mobilenet_v1_033").percent == 33
    with pytest.raises(InputError, match="mobilenet_v1'"):
        models.create("mobilenet_v1x")


def test_modules_with_equal_fields_are_equal():
    one, other = models.create("mobilenet_v1"), models.create("mobilenet_v1")
    assert one == other
    assert hash(one) == hash(other)
    assert one != models.create("mobilenet_v1", axis_name="batch")


@pytest.mark.parametrize("name", models.names())
def test_shapes_at_the_minimum_image_size(name):
    module, network = models.create(name, num_classes=7), models.get(name)
    size = network.minimum_image_size
    images = jax.ShapeDtypeStruct((3, size, size, 3), jnp.float32)
    output, variables = jax.eval_shape(
        module.init_with_output, jax.random.key(0), images
    )
    assert output.features.shape == (3, network.feature_dim)
    assert output.logits.shape == (3, 7)
    assert set(variables) == {"params", "batch_stats"}
    assert variables["params"]["logits"]["kernel"].shape == (network.feature_dim, 7)


@pytest.mark.parametrize(
    "name", [name for name in models.names() if models.get(name).minimum_image_size > 1]
)
def test_init_raises_below_the_minimum_image_size(name):
    size = models.get(name).minimum_image_size - 1
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    with pytest.raises(InputError, match="too small"):
        jax.eval_shape(models.create(name).init, jax.random.key(0), images)


def test_multiply_adds_match_the_papers():
    # The papers count 569, 300 and 217 million with the classifier.
    assert models.multiply_adds("mobilenet_v1") == pytest.approx(568e6, rel=0.01)
    assert models.multiply_adds("mobilenet_v2") == pytest.approx(300e6, rel=0.01)
    assert models.multiply_adds("mobilenet_v3_large") == pytest.approx(216e6, rel=0.02)


def test_features_are_float32_if_the_network_is_bfloat16():
    module = models.create("mobilenet_v1_025", dtype=jnp.bfloat16)
    images = jnp.zeros((1, 32, 32, 3))
    variables = jax.eval_shape(module.init, jax.random.key(0), images)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    output, state = jax.eval_shape(
        functools.partial(module.apply, mutable=["intermediates"]), variables, images
    )
    assert output.features.dtype == jnp.float32
    assert models.endpoints(state["intermediates"])["Conv2d_0"].dtype == jnp.bfloat16
