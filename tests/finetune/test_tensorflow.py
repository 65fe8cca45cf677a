"""Training steps compared with TensorFlow's operations, gradients and optimizer.

The weights are the golden ones of `slim_golden`. The gradient of a ReLU jumps at zero,
so for such random networks rounding in float32 alone moves TensorFlow's gradient by
percents from its own float64 result. Gradients are therefore compared in float64, where
they agree to many digits. In float32, our error must be as small as TensorFlow's.
"""

import jax
import numpy as np
import optax
import pytest

from rankckpt_jax import checkpoints, finetune
from rankckpt_jax.devices import mapping
from rankckpt_jax.finetune import step
from rankckpt_jax.models import layers
from tests import slim_golden
from tests.benchmarks import tensorflow_twin

CLASSES = 5


def make(name, size, batch, tmp_path):
    """Return a backbone of golden weights, a random head, images and labels."""
    backbone = checkpoints.load_slim(
        name, slim_golden.write(name, tmp_path), image_size=size
    )
    random = np.random.RandomState(3)
    kernel = 0.02 * random.randn(backbone.feature_dim, CLASSES)
    head = {"kernel": kernel.astype(np.float32), "bias": np.zeros(CLASSES, "f4")}
    images = slim_golden.images(size, count=batch)
    return backbone, head, images, (np.arange(batch) % CLASSES).astype(np.int32)


def start(backbone, head, recipe):
    """Return (state, `advance(state, images, labels, rate)`) for images in [-1, 1]."""
    state = step.initial_state(backbone, CLASSES)
    state = mapping.replicate(state._replace(params={**state.params, "head": head}))
    run = step.train_step(step.step_spec(backbone, recipe))
    # The images are in the network's range already.
    scaling = (np.float32(0), np.float32(255), np.zeros(3, np.float32))

    def advance(state, images, labels, rate, number=0):
        rows = np.arange(len(labels), dtype=np.int32)
        data = mapping.shard((images, labels, rows))
        return run(state, scaling, step.hyperparameters(recipe, rate, number), data)

    return state, advance


def to_numpy(tree):
    """Convert a tree of JAX or TensorFlow arrays to NumPy, in float64."""
    if isinstance(tree, dict):
        return {key: to_numpy(value) for key, value in tree.items()}
    return np.array(tree.numpy() if hasattr(tree, "numpy") else tree, np.float64)


def distance(a, b):
    """Return the Euclidean distance of two trees."""
    squares = jax.tree.map(lambda x, y: ((x - y) ** 2).sum(), to_numpy(a), to_numpy(b))
    return sum(jax.tree.leaves(squares)) ** 0.5


def norm(tree):
    return distance(tree, jax.tree.map(np.zeros_like, to_numpy(tree)))


@pytest.mark.parametrize(
    ("name", "size", "batch"),
    [
        pytest.param("mobilenet_v2", 97, 8, marks=pytest.mark.slow),
        pytest.param("resnet_v1_50", 97, 4, marks=pytest.mark.slow),
        pytest.param("inception_v3", 107, 4, marks=pytest.mark.slow),
    ],
)
def test_train_step_matches_tensorflow(name, size, batch, tmp_path):
    backbone, head, images, labels = make(name, size, batch, tmp_path)
    state, advance = start(backbone, head, finetune.Recipe())
    before = jax.tree.map(np.array, state)
    after, loss = advance(state, images, labels, 1e-3)
    ours = next(s.trace for s in after.optimizer if hasattr(s, "trace"))

    twin = tensorflow_twin.Trainer(
        name, jax.tree.map(np.asarray, backbone.variables), head
    )
    twin_loss, theirs = twin.step(images, labels, 1e-3)
    assert float(loss) == pytest.approx(float(twin_loss), rel=1e-4)
    assert distance(after.params, twin.params) <= 1e-3 * norm(twin.params)
    moved = distance(before.batch_stats, twin.batch_stats)
    assert distance(after.batch_stats, twin.batch_stats) <= 1e-3 * moved

    # The momentum after the first step is the gradient.
    exact_variables = to_numpy(backbone.variables)
    exact = tensorflow_twin.Trainer(name, exact_variables, to_numpy(head))
    exact_loss, reference = exact.step(images.astype(np.float64), labels, 1e-3)
    error = distance(ours, reference) / norm(reference)
    their_error = distance(theirs, reference) / norm(reference)
    assert error <= max(1e-3, 2 * their_error)

    with jax.enable_x64(True):
        apply = type(backbone.apply)(name, dtype="float64")

        @jax.jit
        @jax.value_and_grad
        def gradient(params):
            variables = {**exact_variables, "params": params["backbone"]}
            output, _ = apply(variables, images.astype(np.float64), train=True)
            logits = layers.classify(params["head"], output.features)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean()

        loss, gradients = gradient(
            {"backbone": exact_variables["params"], "head": to_numpy(head)}
        )
    assert float(loss) == pytest.approx(float(exact_loss), rel=1e-10)
    assert distance(gradients, reference) <= 1e-9 * norm(reference)


@pytest.mark.slow
def test_train_step_matches_tensorflow_over_several_steps(tmp_path):
    """In float64, where rounding is not amplified from one step to the next."""
    name = "mobilenet_v1_025"
    backbone, head, images, labels = make(name, 32, 8, tmp_path)
    images = images.astype(np.float64)
    # The step's momentum is a float32.
    momentum, rates = float(np.float32(0.9)), [2**-6] * 3 + [2**-8] * 3
    recipe = finetune.Recipe(batch_norm_decay=0.9, dtype="float64")
    twin = tensorflow_twin.Trainer(
        name,
        to_numpy(backbone.variables),
        to_numpy(head),
        momentum,
        norm_momentum=0.9,
    )
    losses = []
    with jax.enable_x64(True):
        state, advance = start(backbone, head, recipe)
        state = mapping.replicate(
            jax.tree.map(lambda x: np.asarray(x, np.float64), state)
        )
        for number, rate in enumerate(rates):
            state, loss = advance(state, images, labels, rate, number)
            expected, _ = twin.step(images, labels, rate)
            assert float(loss) == pytest.approx(float(expected), rel=1e-7)
            losses.append(float(loss))
        for ours, theirs in (
            (state.params, twin.params),
            (state.batch_stats, twin.batch_stats),
        ):
            assert distance(ours, theirs) <= 1e-7 * norm(theirs)
    assert np.ptp(losses) > 0.1  # Training has an effect.
