"""A training step equals PyTorch's: loss, gradients, updated weights, statistics."""

import dataclasses
import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

torch = pytest.importorskip("torch", reason="needs the extra torch")
pytest.importorskip("torchax", reason="needs the extra torch")
import timm  # noqa: E402

from rankckpt_jax.checkpoints import from_torch  # noqa: E402
from rankckpt_jax.checkpoints.torch_modules import skeletons  # noqa: E402
from rankckpt_jax.checkpoints.torch_modules.spec import ModuleSpec  # noqa: E402
from rankckpt_jax.devices import mapping  # noqa: E402
from rankckpt_jax.models import layers  # noqa: E402
from tests import processes  # noqa: E402
from tests.checkpoints.torch_modules import networks  # noqa: E402

pytestmark = pytest.mark.torch

# Sums in another order, through the depth of a network and its gradient in float32.
RELATIVE = 1e-3
RATE = 0.1


def batch(size, count=8, classes=5):
    random = np.random.default_rng(2)
    images = random.uniform(size=(count, size, size, 3)).astype(np.float32)
    return images, random.integers(0, classes, count)


def step_of_pytorch(module, images, labels):
    """Return (loss, gradients, the state dict after a step of SGD) as NumPy arrays."""
    module.train()
    optimizer = torch.optim.SGD(module.parameters(), lr=RATE)
    logits = module(networks.normalize(images))
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(labels))
    loss.backward()
    gradients = {name: p.grad.numpy() for name, p in module.named_parameters()}
    optimizer.step()
    state = {
        name: tensor.detach().numpy() for name, tensor in module.state_dict().items()
    }
    return loss.item(), gradients, state


def step_of_jax(backbone, images, labels):
    """Return the same of the converted network, and its new statistics."""
    variables = jax.tree.map(jnp.asarray, backbone.variables)

    @jax.jit
    def step(variables, images, labels):
        def loss_fn(params):
            given = {**variables, "params": params}
            output, stats = backbone.apply(given, images, train=True)
            losses = optax.softmax_cross_entropy_with_integer_labels(
                output.logits, labels
            )
            return losses.mean(), stats

        compute = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, stats), gradients = compute(variables["params"])
        params = optax.apply_updates(
            variables["params"], jax.tree.map(lambda g: -RATE * g, gradients)
        )
        return loss, gradients, params, stats

    return jax.tree.map(np.asarray, step(variables, images, labels))


def named_as_in_pytorch(params, classifier):
    """Return parameters with the classifier's names and layout in the state dict."""
    params = dict(params)
    head = params.pop(layers.HEAD)
    kernel, bias = f"{classifier}.weight", f"{classifier}.bias"
    return {**params, kernel: head["kernel"].T, bias: head["bias"]}


def copied(backbone):
    """Return a backbone that does not share memory with its module.

    A step of the module changes its memory, also while JAX still reads it.
    """
    variables = jax.tree.map(np.array, backbone.variables)
    return dataclasses.replace(backbone, variables=variables)


def assert_same_step(module, spec, size, classes=5):
    images, labels = batch(size, classes=classes)
    classifier = next(
        name for name, part in module.named_modules() if part is module.get_classifier()
    )
    backbone = copied(networks.to_backbone(module, spec, size))
    loss, gradients, params, stats = step_of_jax(backbone, images, labels)
    expected_loss, expected_gradients, state = step_of_pytorch(module, images, labels)
    assert loss == pytest.approx(expected_loss, rel=RELATIVE)
    gradients = named_as_in_pytorch(gradients, classifier)
    assert gradients.keys() == expected_gradients.keys()
    # A gradient may be zero but for rounding, as before a batch norm.
    norms = [np.linalg.norm(g) for g in expected_gradients.values()]
    whole = np.linalg.norm(norms)
    for name, expected in expected_gradients.items():
        distance = np.linalg.norm(gradients[name] - expected)
        assert distance <= RELATIVE * max(np.linalg.norm(expected), 0.01 * whole), name
    updated = {**named_as_in_pytorch(params, classifier), **stats}
    assert updated.keys() == {k for k in state if "num_batches" not in k}
    for name, value in updated.items():
        np.testing.assert_allclose(
            value, state[name], atol=RELATIVE * np.abs(state[name]).max(), err_msg=name
        )


@pytest.mark.parametrize(
    "name",
    ["resnet", "vit", pytest.param("convnext", marks=pytest.mark.slow)],
)
def test_training_step_equals_pytorch(name):
    assert_same_step(*networks.make(name))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet18", 96),
        ("mobilenetv3_small_100", 96),
        ("convnext_atto", 96),
        ("vit_tiny_patch16_224", 224),
    ],
)
def test_training_step_of_a_whole_network_equals_pytorch(name, size):
    torch.manual_seed(0)
    arguments = dict(drop_rate=0.0, drop_path_rate=0.0)
    module = networks.perturb(timm.create_model(name, **arguments)).eval()
    spec = ModuleSpec("timm", name, tuple(arguments.items()))
    assert_same_step(module, spec, size, classes=1000)


def test_statistics_follow_a_decay():
    module, spec, size = networks.make("resnet")
    backbone = copied(networks.to_backbone(module, spec, size))
    images, _ = batch(size)
    apply = dataclasses.replace(backbone.apply, decay=0.75)
    _, stats = jax.jit(lambda *args: apply(*args, train=True))(
        backbone.variables, images
    )
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.momentum = 0.25
    _, _, state = step_of_pytorch(module, images, np.zeros(len(images), int))
    for name, value in stats.items():
        np.testing.assert_allclose(value, state[name], rtol=RELATIVE, atol=1e-5)


class Noise(torch.nn.Module):
    """Only dropout and stochastic depth, of ones."""

    def __init__(self):
        super().__init__()
        self.dropout = torch.nn.Dropout(0.25)
        self.path = timm.layers.DropPath(0.5)
        self.scale = torch.nn.Parameter(torch.ones(64))

    def forward(self, x):
        ones = torch.ones_like(x).mean((1, 2, 3), keepdim=False)[:, None] * self.scale
        return self.path(self.dropout(ones))


def test_randomness_depends_on_the_key():
    backbone = from_torch(
        Noise(), image_size=8, mean=(0, 0, 0), std=(1, 1, 1), name="noise"
    )
    images = np.ones((256, 8, 8, 3), np.float32)

    @jax.jit
    def train(key):
        return backbone.apply(backbone.variables, images, train=True, key=key)[0]

    one, again, other = (
        np.asarray(train(jax.random.key(seed)).features) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)
    kept = one[one.any(axis=1)]
    # Four standard deviations of a share of 256 samples, and of 256 * 32 of them.
    assert len(kept) / 256 == pytest.approx(0.5, abs=0.125)
    assert (kept != 0).mean() == pytest.approx(0.75, abs=0.02)
    np.testing.assert_allclose(kept[kept != 0], 1 / 0.75 / 0.5, rtol=1e-6)
    # In evaluation there is none, also after a trace in training mode.
    still = backbone.apply(backbone.variables, images[:2]).features
    np.testing.assert_array_equal(still, np.ones((2, 64)))


def test_trace_leaves_nothing_in_the_skeleton():
    module, spec, size = networks.make("resnet")
    apply = networks.to_backbone(module, spec, size).apply
    skeleton = skeletons.get(apply.spec, apply.constants).module
    assert not skeleton.training
    tensors = [*skeleton.parameters(), *skeleton.buffers()]
    assert tensors and all(tensor.is_meta for tensor in tensors)


def with_batch_norm():
    """Return the backbone of a small network in which batch norm matters."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 3),
        torch.nn.BatchNorm2d(6),
        torch.nn.Sigmoid(),
        torch.nn.Conv2d(6, 4, 3),
        torch.nn.BatchNorm2d(4),
        torch.nn.Hardswish(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
    )
    return from_torch(
        networks.perturb(module),
        image_size=9,
        mean=networks.MEAN,
        std=networks.STD,
        name="net",
    )


def compare_devices(count):
    """Raise if a step on several devices differs from a step on one."""
    backbone = with_batch_norm()
    images, labels = batch(9, classes=4)

    def step(variables, images, labels, apply=backbone.apply):
        def loss_fn(params):
            given = {**variables, "params": params}
            output, stats = apply(given, images, train=True)
            losses = optax.softmax_cross_entropy_with_integer_labels(
                output.features, labels
            )
            return losses.mean(), stats

        compute = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, stats), gradients = compute(variables["params"])
        return (loss, gradients), stats

    def step_of_device(variables, images, labels):
        apply = dataclasses.replace(backbone.apply, axis_name=mapping.AXIS)
        return step(variables, images, labels, apply)

    one = jax.jit(step)(backbone.variables, images, labels)
    mapped = mapping.map_devices(step_of_device, in_axes=(None, 0, 0))
    assert mapping.local_device_count() == count
    means, stats = mapped(backbone.variables, *mapping.shard((images, labels)))
    averaged = jax.tree.map(lambda x: np.mean(x, axis=0), means)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, averaged, one[0])
    for device in range(count):
        jax.tree.map(close, jax.tree.map(lambda x, d=device: x[d], stats), one[1])


@pytest.mark.slow
def test_batch_norm_over_two_devices_equals_one():
    code = f"from {__name__} import compare_devices; compare_devices(2)"
    subprocess.run(
        [sys.executable, "-c", code], env=processes.with_devices(2), check=True
    )
