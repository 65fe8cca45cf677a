"""Comparison of depthwise convolutions with XLA's own in float64.

Tolerances are relative to the largest value. They are 10 times the error of sums of up
to 81 (outputs) or 900 (gradients) float32 products.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rankckpt_jax.errors import InputError
from rankckpt_jax.models import cpu, ops


def reference(x, kernel, stride, padding, dilation):
    """XLA's convolution with one group per channel."""
    return jax.lax.conv_general_dilated(
        x,
        kernel.reshape(*kernel.shape[:2], 1, -1),
        stride,
        padding,
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def outputs_and_gradients(function, x, kernel):
    """The sines give every output its own gradient."""

    def loss(x, kernel):
        y = function(x, kernel)
        return jnp.sum(jnp.sin(y)), y

    gradients, y = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(x, kernel)
    return jax.tree.map(np.asarray, (y, *gradients))


@pytest.mark.parametrize("form", ["sum of products", "XLA"])
@pytest.mark.parametrize(
    ("sides", "multiplier", "stride", "padding", "dilation"),
    [
        ((3, 3), 1, 1, "SAME", 1),
        ((3, 3), 1, 2, "SAME", 1),
        ((3, 3), 2, 2, "VALID", 1),
        ((5, 5), 1, 1, ((2, 2), (2, 2)), 1),
        ((3, 5), 1, (2, 1), ((0, 3), (2, 0)), (1, 2)),
        ((7, 7), 1, 1, "SAME", 1),
        ((3, 3), 3, 1, "SAME", 2),
        ((3, 3), 1, 3, "VALID", 3),
        ((2, 2), 1, 2, "SAME", 1),
        ((1, 9), 1, 1, "SAME", 1),
    ],
)
def test_depthwise_conv_matches_xla_in_float64(
    form, sides, multiplier, stride, padding, dilation, monkeypatch
):
    if form == "XLA":
        monkeypatch.setattr(cpu, "FORMS", frozenset())
    random = np.random.default_rng(0)
    x = random.normal(size=(2, 14, 15, 4))
    kernel = random.normal(size=(*sides, 4, multiplier))

    def function(x, kernel):
        options = {"padding": padding, "dilation": dilation}
        return ops.depthwise_conv(x, kernel, stride, jnp.float32, **options)

    results = outputs_and_gradients(
        function, x.astype(np.float32), kernel.astype(np.float32)
    )
    pairs = [(n, n) if isinstance(n, int) else n for n in (stride, dilation)]
    with jax.enable_x64(True):
        expected = outputs_and_gradients(
            lambda x, kernel: reference(x, kernel, pairs[0], padding, pairs[1]),
            x,
            kernel,
        )
    for actual, exact in zip(results, expected, strict=True):
        assert actual.shape == exact.shape
        assert np.abs(actual - exact).max() <= 1e-5 * np.abs(exact).max()


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the form is for a CPU")
def test_depthwise_conv_on_a_cpu_is_a_sum_of_products_up_to_9x9():
    def program(side):
        x, kernel = np.ones((1, 16, 16, 2)), np.ones((side, side, 2, 1))
        conv = jax.make_jaxpr(lambda x, k: ops.depthwise_conv(x, k, 1, jnp.float32))
        return str(conv(x, kernel))

    assert "conv_general_dilated" not in program(9)
    assert "conv_general_dilated" in program(11)


def test_depthwise_conv_of_an_image_below_a_dilated_kernel_raises():
    x, kernel = np.ones((1, 4, 9, 2)), np.ones((3, 3, 2, 1))
    with pytest.raises(InputError, match="at least 5 x 5 pixels"):
        ops.depthwise_conv(x, kernel, 1, jnp.float32, padding="VALID", dilation=2)
