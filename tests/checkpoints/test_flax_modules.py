import dataclasses
from typing import Any

import flax.linen as nn
import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rankckpt_jax import checkpoints
from rankckpt_jax.checkpoints import backbone as backbone_lib
from rankckpt_jax.errors import InputError

SIZE = 16
# Both sides are compiled differently; sums of a few hundred float32 products.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(6, (3, 3), strides=2, use_bias=False)(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.8)(x)
        return nn.relu(x)


class Net(nn.Module):
    """A classifier of two blocks, which names its features in all usual ways."""

    num_classes: int = 5
    rate: float = 0.0
    act: Any = nn.relu

    def setup(self):
        self.blocks = [Block(), Block()]
        self.dropout = nn.Dropout(self.rate)
        self.head = nn.Dense(self.num_classes)

    def encode(self, x, train=False):
        for block in self.blocks:
            x = block(x, train)
        return x

    def __call__(self, x, train: bool = False):
        x = self.dropout(self.encode(x, train).mean((1, 2)), deterministic=not train)
        self.sow("intermediates", "pre_logits", x)
        return self.head(x)


class TwoOutputs(nn.Module):
    """Returns logits and a dictionary, as big_vision's networks do."""

    @nn.compact
    def __call__(self, x, *, deterministic):
        x = nn.Dropout(0.5)(x, deterministic=deterministic)
        x = nn.relu(nn.Conv(4, (4, 4), strides=4, dtype=x.dtype)(x))
        pooled = x.mean((1, 2))
        return nn.Dense(3)(pooled), {"map": x, "pre_logits": pooled}


def draw(module, seed=0, **kwargs):
    images = jnp.zeros((1, SIZE, SIZE, 3))
    variables = module.init(jax.random.key(seed), images, **kwargs)
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: np.float32(leaf + random.uniform(0.1, 0.3, leaf.shape)), variables
    )


@pytest.fixture(scope="module")
def variables():
    return draw(Net())


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).uniform(size=(4, SIZE, SIZE, 3)).astype("f4")


def convert(variables, module=None, **options):
    options = {"name": "net", "image_size": SIZE, **options}
    return checkpoints.from_flax(module or Net(), variables, **options)


def test_from_flax_splits_the_classifier(variables, images):
    net = convert(variables)
    expected, state = Net().apply(variables, images, mutable=["intermediates"])
    without_head, head = backbone_lib.split_head(net.variables)
    output = jax.jit(net.apply)(net.variables, images)
    np.testing.assert_allclose(output.logits, expected, **TOLERANCE)
    features = jax.jit(net.apply)(without_head, images).features
    [pre_logits] = state["intermediates"]["pre_logits"]
    np.testing.assert_allclose(features, pre_logits, **TOLERANCE)
    assert head["kernel"].shape == (6, 5)
    assert (net.feature_dim, net.num_source_classes) == (6, 5)
    assert net.num_parameters == 3 * 3 * 6 * (3 + 6) + 2 * 12
    assert net.feature_tensor == "input of the removed classifier head"
    assert net.architecture == "Net" and net.image_size == SIZE


@pytest.mark.parametrize(
    ("features", "classes"),
    [("pre_logits", 5), ("encode", 0), ("blocks_1", 0), ("__call__", 0)],
)
def test_from_flax_takes_the_named_features(variables, images, features, classes):
    net = convert(variables, features=features)
    output = net.apply(net.variables, images)
    expected = Net().apply(variables, images)
    assert net.num_source_classes == classes
    if features != "__call__":
        expected = Net().apply(variables, images, method="encode").mean((1, 2))
    np.testing.assert_allclose(output.features, expected, **TOLERANCE)


def test_from_flax_finds_a_value_of_the_output(images):
    module = TwoOutputs()
    variables = draw(module, deterministic=True)
    logits, values = module.apply(variables, images, deterministic=True)
    for features, expected in (
        ("pre_logits", values["pre_logits"]),
        ("1/map", values["map"].mean((1, 2))),
        ("0", logits),
    ):
        net = convert(variables, module, features=features)
        output = net.apply(net.variables, images)
        np.testing.assert_allclose(output.features, expected, **TOLERANCE)
    with pytest.raises(InputError, match=r"several outputs[\s\S]*1/pre_logits"):
        convert(variables, module)


def test_from_flax_scales_pixels_as_given(variables, images):
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    net = convert(variables, mean=mean, std=std)
    expected = Net().apply(variables, (images - np.array(mean)) / np.array(std))
    output = net.apply(net.variables, images)
    np.testing.assert_allclose(output.logits, expected, rtol=1e-4, atol=1e-5)
    assert net.input_range == (0, 1)
    assert convert(variables, input_range=(-1, 1)).input_range == (-1, 1)


def test_apply_trains_as_the_module_does(variables, images):
    net = convert(variables)

    def reference(params):
        output, updated = Net().apply(
            {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
        )
        return (output**2).sum(), updated["batch_stats"]

    def ours(params):
        given = {**net.variables, "params": params}
        output, stats = net.apply(given, images, train=True)
        return (output.logits**2).sum(), stats

    expected, stats = jax.grad(reference, has_aux=True)(variables["params"])
    found, updated = jax.grad(ours, has_aux=True)(net.variables["params"])
    found = {**found["module"], "head": found["logits"]}
    # Through batch norm, sums cancel to a hundredth of their terms.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        found,
        dict(expected),
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **TOLERANCE),
        updated["batch_stats"],
        stats,
    )


def test_apply_averages_moments_over_devices_and_takes_a_decay(variables, images):
    net = convert(variables)
    whole, stats = net.apply(net.variables, images, train=True)
    split = dataclasses.replace(net.apply, axis_name="devices")
    parts, each = jax.vmap(
        lambda part: split(net.variables, part, train=True), axis_name="devices"
    )(images.reshape(2, 2, SIZE, SIZE, 3))
    features = parts.features.reshape(4, -1)
    np.testing.assert_allclose(features, whole.features, rtol=1e-4, atol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[0], b, **TOLERANCE), each, stats
    )
    # With a decay of 0 the moving averages are the moments of this batch.
    now = dataclasses.replace(net.apply, decay=0.0)
    _, new = now(net.variables, images, train=True)
    old = net.variables["batch_stats"]
    jax.tree.map(
        lambda old, new, mixed: np.testing.assert_allclose(
            0.8 * old + 0.2 * new, mixed, **TOLERANCE
        ),
        *(old, new, stats),
    )


def test_apply_draws_dropout_by_the_key(variables, images):
    net = convert(variables, Net(rate=0.5))
    run = jax.jit(
        lambda key: net.apply(net.variables, images, train=True, key=key)[0].features
    )
    first, second = jax.random.key(1), jax.random.key(2)
    np.testing.assert_array_equal(run(first), run(first))
    dropped = np.asarray(run(first)) == 0
    assert dropped.any() and (dropped != (np.asarray(run(second)) == 0)).any()
    evaluated = net.apply(net.variables, images).features
    plain = convert(variables).apply(net.variables, images).features
    np.testing.assert_array_equal(evaluated, plain)


def test_apply_computes_in_bfloat16(variables, images):
    for module in (Net(), WithDtype()):
        net = convert(draw(module), module)
        rounded = dataclasses.replace(net.apply, dtype="bfloat16")
        text = str(jax.make_jaxpr(rounded)(net.variables, images))
        convolutions = [line for line in text.splitlines() if "conv_general" in line]
        assert convolutions and all("bf16" in line for line in convolutions)
        exact = net.apply(net.variables, images).features
        found = rounded(net.variables, images).features
        assert found.dtype == jnp.float32
        # Eight bits of precision, in a few layers.
        np.testing.assert_allclose(found, exact, rtol=0.05, atol=0.02)


class WithDtype(nn.Module):
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), dtype=self.dtype)(x)
        return nn.Dense(2, dtype=self.dtype)(x.mean((1, 2)))


def test_apply_is_equal_for_equal_modules(variables):
    one, other = convert(variables), convert(draw(Net(), seed=1))
    assert one.apply == other.apply and hash(one.apply) == hash(other.apply)
    assert one.fingerprint != other.fingerprint
    assert convert(variables).fingerprint == one.fingerprint
    named = convert(variables, features="encode")
    assert named.apply != one.apply and named.fingerprint != one.fingerprint
    assert convert(variables, Net(num_classes=5, rate=0.1)).apply != one.apply


def test_from_flax_refuses_what_cannot_be_used(variables):
    class Listed(nn.Module):
        widths: Any

        def __call__(self, x):
            return x.mean((1, 2))

    class Tokens(nn.Module):
        def __call__(self, x):
            return x.mean(1)

    cases = [
        ({"module": flax.nnx.Linear(3, 4, rngs=flax.nnx.Rngs(0))}, "flax.nnx"),
        ({"variables": variables["params"]}, "no collection `params`"),
        ({"variables": {"params": {}}}, "cannot be applied"),
        ({"variables": {"params": {}}, "module": Listed([3])}, "tuples instead"),
        ({"variables": {"params": {}}, "module": Tokens()}, r"found: \[2, 16, 3\]"),
        ({"features": "pre_logit"}, "did you mean 'pre_logits'"),
        ({"features": "Conv_0"}, "Several values are named 'Conv_0'"),
        ({"mean": (0.5,)}, "three channels"),
        ({"std": (0, 1, 1)}, "std above 0"),
        ({"image_size": 4}, "8 to 1024"),
    ]
    for options, message in cases:
        with pytest.raises(InputError, match=message):
            convert(**{"variables": variables, **options})
