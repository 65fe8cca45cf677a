import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rankckpt_jax.errors import InputError
from rankckpt_jax.models import convolution, layers, pooling


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


def gradients(function, *arguments):
    """Of the sum of sines, so that every output has a gradient of its own."""
    total = lambda *given: jnp.sum(jnp.sin(function(*given)))  # noqa: E731
    return jax.jit(jax.grad(total, range(len(arguments))))(*arguments)


def assert_same_gradients(ours, reference, *arguments):
    pairs = zip(
        gradients(ours, *arguments), gradients(reference, *arguments), strict=True
    )
    for found, expected in pairs:
        # Sums of some hundred products in float32, in another order.
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("size", "window", "stride", "padding"),
    [
        (7, 3, 1, "SAME"),
        (7, 3, 2, "SAME"),
        (8, 3, 2, "SAME"),
        (8, 3, 2, "VALID"),
        (8, 2, 2, "VALID"),
    ],
)
def test_gradients_of_pools_are_those_that_jax_derives(size, window, stride, padding):
    x = np.random.default_rng(0).normal(size=(3, size, size, 4)).astype(np.float32)
    shape, strides = (1, window, window, 1), (1, stride, stride, 1)

    def reduce_window(x, start, join):
        return jax.lax.reduce_window(x, start, join, shape, strides, padding)

    def average(x):
        total = reduce_window(x, 0.0, jax.lax.add)
        return total / reduce_window(jnp.ones_like(x), 0.0, jax.lax.add)

    assert_same_gradients(
        lambda x: pooling.max_pool(x, window, stride, padding),
        lambda x: reduce_window(x, -jnp.inf, jax.lax.max),
        x,
    )
    assert_same_gradients(
        lambda x: pooling.avg_pool(x, window, stride, padding), average, x
    )


def test_equal_pixels_share_a_window_s_gradient():
    x = jnp.zeros((1, 4, 4, 1))
    (gradient,) = jax.vjp(lambda x: pooling.max_pool(x, 2, 2, "VALID"), x)[1](
        jnp.ones((1, 2, 2, 1))
    )
    assert (gradient == 0.25).all()


@pytest.mark.parametrize(
    ("window", "stride", "padding", "channels", "at_once"),
    [
        ((3, 3), 1, "SAME", 3, 1),
        ((3, 3), 1, "VALID", 70, 10_000),
        ((3, 3), 2, "SAME", 70, 1),
        ((3, 3), 2, ((1, 1), (1, 1)), 3, 10_000),
        ((1, 5), 1, "SAME", 70, 1),
        ((1, 1), 1, "SAME", 3, 1),
        ((1, 1), 1, "SAME", 70, 1),
        ((1, 1), 1, "SAME", 70, 10_000),
    ],
)
def test_gradients_of_convolutions_are_those_that_jax_derives(
    window, stride, padding, channels, at_once, monkeypatch
):
    """With the images of a batch one by one, and all together."""
    monkeypatch.setattr(convolution, "_PIXELS_AT_ONCE", at_once)
    random = np.random.default_rng(0)
    x = random.normal(size=(3, 9, 9, channels)).astype(np.float32)
    kernel = random.normal(size=(*window, channels, 4)).astype(np.float32)
    single = random.normal(size=(*window, channels, 1)).astype(np.float32)

    def reference(x, kernel, groups=1):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    assert_same_gradients(
        lambda x, k: convolution.conv(x, k, stride, padding, jnp.float32),
        reference,
        x,
        kernel,
    )
    assert_same_gradients(
        lambda x, k: convolution.depthwise_conv(x, k, stride, padding, jnp.float32),
        lambda x, k: reference(x, jnp.swapaxes(k, 2, 3), channels),
        x,
        single,
    )


def test_pools_do_not_count_padding():
    x = -jnp.ones((1, 3, 3, 1))
    assert (pooling.avg_pool(x, 3, 1, "SAME") == -1).all()
    assert (pooling.max_pool(x, 3, 2, "SAME") == -1).all()
    assert pooling.max_pool(x, 3, 2, "SAME").shape == (1, 2, 2, 1)


def test_a_window_larger_than_the_image_is_refused():
    with pytest.raises(InputError, match="too small"):
        pooling.max_pool(jnp.zeros((1, 2, 2, 1)), 3, 2, "VALID")


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
