import dataclasses

import jax
import numpy as np
import pytest

from rankckpt_jax import checkpoints, models
from rankckpt_jax.checkpoints.backbone import Apply
from tests import slim_golden


def test_apply_returns_pooled_endpoints_of_tf_slim(tmp_path):
    name = "mobilenet_v2_035"
    size = slim_golden.reduced_size(name)
    prefix = slim_golden.write(name, tmp_path)
    backbone = checkpoints.load_slim(name, prefix, image_size=size)
    apply = dataclasses.replace(backbone.apply, with_blocks=True)
    output = jax.jit(apply)(backbone.variables, slim_golden.images(size))
    reference = slim_golden.figures(name, size)
    names = [str(n).removeprefix(f"{name}/") for n in reference["endpoint_names"]]
    assert len(output.blocks) == len(apply.block_names) == 3
    for block, pooled in zip(apply.block_names, output.blocks, strict=True):
        pooled = np.asarray(pooled)
        assert pooled.dtype == np.float32 and pooled.shape[0] == 2
        # The mean of all pixels is that of the pooled values. Relative to the
        # deviation, because a mean may be close to zero.
        i = names.index(block)
        mean, deviation = (reference[f"endpoint_{f}"][i] for f in ("mean", "std"))
        assert abs(pooled.mean(dtype=np.float64) - mean) <= 1e-5 * deviation
    error = slim_golden.relative_error(output.features, reference["features"])
    assert error <= 1e-4


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        # The last layers at strides 8, 16 and 32, as timm's feature_info has them.
        (
            "mobilenet_v1_050",
            ("Conv2d_5_pointwise", "Conv2d_11_pointwise", "Conv2d_13_pointwise"),
        ),
        ("mobilenet_v2_140", ("layer_7", "layer_14", "layer_18")),
        ("mobilenet_v3_large", ("layer_7", "layer_13", "layer_16")),
        ("mobilenet_v3_small", ("layer_4", "layer_9", "layer_12")),
    ],
)
def test_blocks_end_stages(name, blocks):
    assert models.get(name).blocks == blocks == Apply(name).block_names


def test_apply_of_blocks_differs_from_that_of_features():
    """One compiled program serves all checkpoints with the same choice."""
    apply = Apply("mobilenet_v1_025")
    with_blocks = dataclasses.replace(apply, with_blocks=True)
    assert apply != with_blocks
    assert hash(with_blocks) == hash(Apply("mobilenet_v1_025", with_blocks=True))
