import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rankckpt_jax.errors import InputError
from rankckpt_jax.models import layers, ops


def test_pools_exclude_padding():
    x = -jnp.ones((1, 3, 3, 1))
    assert (ops.avg_pool(x, 3, 1, "SAME") == -1).all()
    assert (ops.max_pool(x, 3, 2, "SAME") == -1).all()
    assert ops.max_pool(x, 3, 2, "SAME").shape == (1, 2, 2, 1)


@pytest.mark.parametrize("stride", [1, 2])
def test_conv_of_size_one_matches_lax(stride):
    random = np.random.default_rng(0)
    x = random.normal(size=(2, 7, 7, 5)).astype(np.float32)
    kernel = random.normal(size=(1, 1, 5, 4)).astype(np.float32)
    dimensions = ("NHWC", "HWIO", "NHWC")
    expected = jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=dimensions
    )
    result = ops.conv(x, kernel, stride, "SAME", jnp.float32)
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_global_pool_sums_bfloat16_in_float32():
    x = jnp.full((1, 64, 64, 1), 1.5, jnp.bfloat16)
    assert ops.global_pool(x).dtype == jnp.float32
    assert ops.global_pool(x) == 1.5


def test_max_pool_raises_if_window_exceeds_image():
    with pytest.raises(InputError, match="too small"):
        ops.max_pool(jnp.zeros((1, 2, 2, 1)), 3, 2, "VALID")


@pytest.mark.parametrize("mapped", [False, True])
def test_batch_norm_uses_moments_of_the_global_batch(mapped):
    """The moving variance receives the unbiased variance."""
    x = np.random.default_rng(0).normal(3, 2, (4, 2, 3, 1, 5)).astype(np.float32)
    rows = x.reshape(-1, 5).astype(np.float64)
    config = layers.NormConfig(momentum=0.9, axis_name="batch" if mapped else None)
    module = layers.BatchNorm(config)
    variables = {
        "params": {"scale": np.ones(5, "f4"), "bias": np.zeros(5, "f4")},
        "batch_stats": {"mean": np.zeros(5, "f4"), "var": np.ones(5, "f4")},
    }

    def apply(x):
        y, state = module.apply(variables, x, True, mutable=["batch_stats"])
        return y, state["batch_stats"]

    if mapped:
        y, stats = jax.vmap(apply, axis_name="batch")(x)
        stats = jax.tree.map(lambda leaf: leaf[2], stats)
    else:
        y, stats = apply(x.reshape(8, 3, 1, 5))
    expected = (rows - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-3)
    np.testing.assert_allclose(np.reshape(y, (-1, 5)), expected, atol=1e-5)
    np.testing.assert_allclose(stats["mean"], 0.1 * rows.mean(0), rtol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * rows.var(0, ddof=1), rtol=1e-5)
