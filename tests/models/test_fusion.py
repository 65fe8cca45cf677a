import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rankckpt_jax.models import convolution, fusion

BLOCKS = 5


def residual_chain(hold):
    """Five residual blocks; `hold` is given each block's sum."""

    def forward(x, kernel):
        for _ in range(BLOCKS):
            y = convolution.conv(x, kernel, 1, "SAME", jnp.float32)
            x = hold(jax.nn.relu(x + 0.1 * y))
        return x

    return forward


def gradient(forward):
    return jax.grad(lambda x, kernel: jnp.sum(jnp.sin(forward(x, kernel))), (0, 1))


@pytest.fixture(name="arguments")
def fixture_arguments():
    random = np.random.default_rng(0)
    x = random.normal(size=(2, 14, 14, 8)).astype(np.float32)
    return x, random.normal(size=(1, 1, 8, 8)).astype(np.float32)


def test_values_and_gradients_are_those_without(arguments):
    held, free = residual_chain(fusion.once), residual_chain(lambda x: x)
    np.testing.assert_allclose(held(*arguments), free(*arguments), rtol=1e-6)
    pairs = zip(gradient(held)(*arguments), gradient(free)(*arguments), strict=True)
    for found, expected in pairs:
        # Sums of some hundred products in float32, in another order.
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("derive", [lambda forward: forward, gradient])
def test_residual_sums_are_computed_once(derive, arguments):
    """Also where a gradient is taken: JAX leaves a plain identity out there."""
    if jax.default_backend() != "cpu":
        pytest.skip("only XLA's CPU backend computes them anew")
    held = derive(residual_chain(fusion.once))
    compiled = jax.jit(held).lower(*arguments).compile()
    assert compiled.as_text().count(" maximum(") == BLOCKS
