"""Comparison of the forms for XLA's CPU backend with plain lax.

Tolerances are for sums of some hundred float32 products in another order.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rankckpt_jax.models import cpu, expanded_conv, layers, ops

pytestmark = pytest.mark.skipif(
    jax.default_backend() != "cpu", reason="the forms are for XLA's CPU backend"
)


def outputs_and_gradients(function, *arguments):
    """Compile `function` again; the sines give every output its own gradient."""

    def loss(*arguments):
        y = function(*arguments)
        return jnp.sum(jnp.sin(y)), y

    gradient = jax.grad(loss, range(len(arguments)), has_aux=True)
    gradients, y = jax.jit(gradient)(*arguments)
    return y, *gradients


def assert_same_without_forms(monkeypatch, function, *arguments, tolerance=1e-5):
    results = outputs_and_gradients(function, *arguments)
    monkeypatch.setattr(cpu, "FORMS", frozenset())
    expected = outputs_and_gradients(function, *arguments)
    for a, b in zip(jax.tree.leaves(results), jax.tree.leaves(expected), strict=True):
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


@pytest.mark.parametrize(("size", "side"), [(7, 3), (8, 3), (8, 5)])
@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_conv_matches_grouped_convolution(size, side, stride, monkeypatch):
    random = np.random.default_rng(0)
    x = random.normal(size=(2, size, size, 5)).astype(np.float32)
    kernel = random.normal(size=(side, side, 5, 1)).astype(np.float32)
    assert_same_without_forms(
        monkeypatch,
        lambda x, kernel: ops.depthwise_conv(x, kernel, stride, jnp.float32),
        x,
        kernel,
    )


def test_training_mode_of_a_block_matches_plain_lax(monkeypatch):
    block = expanded_conv.ExpandedConv(layers.NormConfig(0.9), features=8)
    x = np.random.default_rng(0).normal(size=(4, 9, 9, 8)).astype(np.float32)
    variables = block.init(jax.random.key(0), x, True)

    def forward(params, x):
        state = {**variables, "params": params}
        (y, _), _ = block.apply(state, x, True, mutable=["batch_stats"])
        return y

    assert_same_without_forms(
        monkeypatch, forward, variables["params"], x, tolerance=1e-3
    )


@pytest.mark.parametrize("batch", [1, 5, 6])
def test_map_parts_returns_the_whole_batch(batch, monkeypatch):
    monkeypatch.setattr(cpu.os, "cpu_count", lambda: 4)
    images = np.random.default_rng(0).normal(size=(batch, 3, 3, 2)).astype(np.float32)
    sizes = []

    def function(images):
        sizes.append(len(images))
        return layers.Output(images.sum((1, 2)), None)

    result = jax.jit(lambda images: cpu.map_parts(function, images))(images)
    assert set(sizes) == {{1: 1, 5: 1, 6: 3}[batch]}
    np.testing.assert_allclose(result.features, images.sum((1, 2)), rtol=1e-6)
    assert result.logits is None
