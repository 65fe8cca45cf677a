import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rankckpt_jax.errors import InputError
from rankckpt_jax.models import convolution, layers


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("multiplier", [1, 3])
def test_depthwise_is_a_grouped_convolution(size, stride, multiplier):
    random = np.random.default_rng(0)
    x = random.normal(size=(2, size, size, 5)).astype(np.float32)
    kernel = random.normal(size=(3, 3, 5, multiplier)).astype(np.float32)
    found = convolution.depthwise_conv(x, kernel, stride, "SAME", jnp.float32)
    expected = jax.lax.conv_general_dilated(
        x,
        kernel.reshape(3, 3, 1, -1),
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=5,
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_pointwise_is_a_convolution(stride):
    random = np.random.default_rng(0)
    x = random.normal(size=(2, 7, 7, 5)).astype(np.float32)
    kernel = random.normal(size=(1, 1, 5, 4)).astype(np.float32)
    found = convolution.conv(x, kernel, stride, "SAME", jnp.float32)
    expected = jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("padding", ["SAME", "VALID", ((1, 1), (1, 1))])
@pytest.mark.parametrize("size", [(24, 25), (31, 28)])
def test_winograd_is_a_convolution(size, padding, monkeypatch):
    random = np.random.default_rng(0)
    x = random.normal(size=(2, *size, 32)).astype(np.float32)
    kernel = random.normal(size=(3, 3, 32, 5)).astype(np.float32)

    def value_and_gradients(x, kernel):
        y, pull = jax.vjp(
            lambda x, kernel: convolution.conv(x, kernel, 1, padding, jnp.float32),
            x,
            kernel,
        )
        return y, *pull(y)

    found = value_and_gradients(x, kernel)
    monkeypatch.setattr(convolution, "_winograd", None)  # It was called above.
    with pytest.raises(TypeError):
        value_and_gradients(x, kernel)
    monkeypatch.setattr(convolution, "_WINOGRAD_CHANNELS", 33)
    for one, other in zip(found, value_and_gradients(x, kernel), strict=True):
        # Sums of 288 products in float32, in another order.
        assert np.abs(one - other).max() <= 2e-6 * np.abs(other).max()


def test_pools_do_not_count_padding():
    x = -jnp.ones((1, 3, 3, 1))
    assert (convolution.avg_pool(x, 3, 1, "SAME") == -1).all()
    assert (convolution.max_pool(x, 3, 2, "SAME") == -1).all()
    assert convolution.max_pool(x, 3, 2, "SAME").shape == (1, 2, 2, 1)


def test_a_window_larger_than_the_image_is_refused():
    with pytest.raises(InputError, match="too small"):
        convolution.max_pool(jnp.zeros((1, 2, 2, 1)), 3, 2, "VALID")


def test_batch_norm_keeps_the_unbiased_variance():
    style = layers.Style(decay=0.9, epsilon=1e-3)
    module = layers.BatchNorm(style)
    x = np.random.default_rng(0).normal(3, 2, (2, 3, 1, 4)).astype(np.float32)
    variables = module.init(jax.random.key(0), x, True)
    y, state = module.apply(variables, x, True, mutable=["batch_stats"])
    rows = x.reshape(-1, 4)
    np.testing.assert_allclose(
        y.reshape(-1, 4),
        (rows - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-3),
        atol=1e-5,
    )
    stats = state["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.1 * rows.mean(0), rtol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * rows.var(0, ddof=1), rtol=1e-5)


def test_moments_over_a_mapped_axis_are_those_of_the_whole_batch():
    style = layers.Style(decay=0.9, axis_name="batch")
    x = np.random.default_rng(0).normal(3, 2, (4, 2, 3, 3, 5)).astype(np.float32)
    whole = layers.BatchNorm(layers.Style(decay=0.9))
    variables = whole.init(jax.random.key(0), x[0], True)
    expected, expected_state = whole.apply(
        variables, x.reshape(8, 3, 3, 5), True, mutable=["batch_stats"]
    )
    found, state = jax.vmap(
        lambda part: layers.BatchNorm(style).apply(
            variables, part, True, mutable=["batch_stats"]
        ),
        axis_name="batch",
    )(x)
    np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=1e-5)
    for leaf, reference in zip(
        jax.tree.leaves(state), jax.tree.leaves(expected_state), strict=True
    ):
        np.testing.assert_allclose(leaf[2], reference, rtol=1e-5)
