import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra torch")
torchax = pytest.importorskip("torchax", reason="needs the extra torch")

from rankckpt_jax.checkpoints.torch_modules.environment import (  # noqa: E402
    environment,
)

pytestmark = pytest.mark.torch


def run(function, *arrays, **settings):
    """Return the results of a function of tensors by PyTorch and by JAX, jitted."""
    env = environment(**settings)

    @jax.jit
    def traced(arrays):
        tensors = env.j2t_iso(arrays)
        with env:
            return env.t2j_iso(function(*tensors))

    with jax.default_matmul_precision("highest"):
        computed = traced(tuple(map(jnp.asarray, arrays)))
    return np.asarray(function(*map(torch.tensor, arrays))), np.asarray(computed)


def assert_same(function, *arrays, **settings):
    expected, computed = run(function, *arrays, **settings)
    # Sums of at most a hundred float32 products.
    np.testing.assert_allclose(computed, expected, atol=1e-5 * np.abs(expected).max())


def normal(*shape):
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    ("kernel", "options"),
    [
        ((8, 4, 3, 3), dict(stride=2, padding=1)),
        ((8, 4, 1, 1), dict(stride=(2, 2))),
        ((4, 1, 5, 3), dict(padding=(2, 1), groups=4)),
        ((8, 1, 3, 3), dict(stride=2, padding=1, groups=4)),
        ((4, 1, 3, 3), dict(padding=2, dilation=2, groups=4)),
        ((8, 2, 3, 3), dict(padding="same", groups=2)),
        ((4, 1, 5, 3), dict(padding="same", groups=4)),
        ((4, 1, 3, 3), dict(padding="valid", groups=4)),
    ],
)
def test_conv2d_equals_pytorch(kernel, options):
    images, bias = normal(2, 4, 9, 11), normal(kernel[0])

    def function(x, weight, bias):
        return torch.nn.functional.conv2d(x, weight, bias, **options)

    assert_same(function, images, normal(*kernel), bias)


def test_linear_takes_the_weight_by_name():
    linear = torch.nn.functional.linear
    x, weight, bias = normal(2, 3, 4), normal(5, 4), normal(5)
    assert_same(lambda x, w: linear(x, weight=w), x, weight)
    assert_same(lambda x, w, b: linear(input=x, weight=w, bias=b), x, weight, bias)


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate", "circular"])
def test_pad_equals_pytorch(mode):
    pad = torch.nn.functional.pad
    assert_same(lambda x: pad(x, (1, 2, 3, 0), mode), normal(2, 3, 6, 7))


# `TorchApply` ignores it too: PyTorch's default integers have 64 bits.
@pytest.mark.filterwarnings("ignore:Explicitly requested dtype")
def test_fold_equals_pytorch():
    # It pads by negative widths.
    def function(x):
        unfolded = torch.nn.functional.unfold(x, 3, padding=1, stride=2)
        return torch.nn.functional.fold(unfolded, (8, 8), 3, padding=1, stride=2)

    assert_same(function, normal(2, 3, 8, 8))


@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 4), (6, 3, 4, 5)])
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_equals_pytorch(shape, training):
    mean, var, weight, bias = (abs(normal(3)) + i for i in range(4))

    def function(x, *others):
        mean, var, weight, bias = others
        y = torch.nn.functional.batch_norm(
            x, mean, var, weight, bias, training=training, momentum=0.3
        )
        return torch.cat([y.flatten(), mean, var])

    assert_same(function, normal(*shape), mean, var, weight, bias)


def test_batch_norm_of_weights_stays_on_the_device():
    # Weight standardization has no running statistics, and runs without an axis.
    def function(weight):
        return torch.nn.functional.batch_norm(weight, None, None, training=True)

    assert_same(function, normal(1, 4, 9), axis_name="batch")


def test_tensors_of_pytorch_are_constants():
    table = torch.arange(6.0).reshape(2, 3)
    index = torch.tensor([1, 0, 1])
    assert_same(lambda x: (x[index] + table[index]) * torch.tensor(2), normal(2, 3))


def test_tensor_without_values_is_an_error():
    empty = torch.empty(3, device="meta")
    with pytest.raises(AssertionError, match="no value"):
        run(lambda x: x + empty, normal(3))


def test_overrides_are_confined():
    own = environment()._ops[torch.nn.functional.linear]
    assert torchax.default_env()._ops[torch.nn.functional.linear] is not own
