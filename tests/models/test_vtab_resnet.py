import jax
import jax.numpy as jnp

from rankckpt_jax import models


def test_layers_are_numbered_in_tensorflow_order():
    module = models.create("vtab_resnet_v2_50", num_classes=10)
    image = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), image)
    convs = {k for k in variables["params"] if k.startswith("conv2d")}
    norms = set(variables["batch_stats"])
    assert convs == {"conv2d"} | {f"conv2d_{i}" for i in range(1, 53)}
    expected = {f"batch_normalization_{i}" for i in range(1, 49)}
    assert norms == {"batch_normalization"} | expected
    # The first unit of a block creates its shortcut before its own convolutions.
    assert variables["params"]["conv2d_1"]["kernel"].shape == (1, 1, 64, 256)
    assert variables["params"]["conv2d_3"]["kernel"].shape == (3, 3, 64, 64)
    output = jax.eval_shape(module.apply, variables, image)
    assert output.features.shape == (2, 2048)
    assert output.logits.shape == (2, 10)
