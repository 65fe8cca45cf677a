import jax
import jax.numpy as jnp

from rankckpt_jax import models
from rankckpt_jax.checkpoints.backbone import Apply


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
    apply = Apply("vtab_resnet_v2_50", with_blocks=True)
    output = jax.eval_shape(apply, variables, image)
    assert output.features.shape == (2, 2048)
    assert output.logits.shape == (2, 10)
    assert [block.shape for block in output.blocks] == [(2, 512), (2, 1024), (2, 2048)]
