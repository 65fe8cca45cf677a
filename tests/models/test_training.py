"""One training step compared with TF-Slim: features, moving averages, gradients."""

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rankckpt_jax import checkpoints, models
from rankckpt_jax.checkpoints.sources import slim
from tests import slim_golden

SIZES = {
    "inception_v3": 139,
    "mobilenet_v2": 97,
    "resnet_v1_50": 97,
    "inception_v2": 97,
    "mobilenet_v1_025": 97,
    "mobilenet_v3_small": 97,
    "resnet_v2_50": 97,
}
SLOW = SIZES.keys() - {"mobilenet_v2", "resnet_v1_50"}


def _by_slim_names(name, kind, collection):
    """Return the values of a collection in the order of TF-Slim's variables."""
    flat = flax.traverse_util.flatten_dict({kind: collection})
    paths = {n: v.path for n, v in slim.variables_of(models.get(name)).items()}
    return [
        (variable, np.asarray(flat[paths[variable]], np.float64))
        for variable in slim_golden.shapes(name)
        if paths[variable] in flat
    ]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in SLOW else ())
        for name in SIZES
    ],
)
def test_training_step_matches_tf_slim(name, tmp_path):
    size = SIZES[name]
    backbone = checkpoints.load_slim(
        name, slim_golden.write(name, tmp_path), image_size=size
    )
    images = slim_golden.images(size, count=8)
    weights = np.random.RandomState(11).randn(8, backbone.feature_dim)

    @jax.jit
    def step(params):
        def loss(params):
            variables = {**backbone.variables, "params": params}
            output, batch_stats = backbone.apply(variables, images, train=True)
            features = output.features
            scale = jax.lax.stop_gradient(jnp.abs(features).sum())
            return jnp.sum(features * weights) / scale, (features, batch_stats)

        (_, outputs), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return *outputs, gradient

    features, batch_stats, gradient = step(backbone.variables["params"])
    reference = slim_golden.figures(name, size, "_training")
    assert slim_golden.relative_error(features, reference["features"]) <= 1e-3

    # Compare the change of the moving averages; it is small beside them.
    momentum = models.create(name).momentum
    before = slim_golden.values(name)
    moved = _by_slim_names(name, "batch_stats", batch_stats)
    for (variable, after), expected in zip(moved, reference["moving"], strict=True):
        old = momentum * slim_golden.summary(before[variable])
        change = slim_golden.summary(after) - old
        expected = expected - old
        # The averages are of order one, in float32.
        noise = 3e-7 * max(np.abs(old).max(), 1)
        # Except the standard deviation, which is not additive.
        error = np.abs(change - expected)[[0, 2, 3, 4, 5]].max()
        assert error <= 1e-3 * np.abs(expected).max() + noise, variable

    # Gradients of rectified units are discontinuous: rounding moves TensorFlow's own
    # by up to 1e-2 from the float64 gradients. Those of biases before a batch norm are
    # pure rounding.
    pairs = [
        (slim_golden.summary(value)[1], expected[1])
        for (_, value), expected in zip(
            _by_slim_names(name, "params", gradient), reference["gradient"], strict=True
        )
    ]
    largest = max(expected for _, expected in pairs)
    errors = [
        abs(value - expected) / expected
        for value, expected in pairs
        if expected > 1e-3 * largest
    ]
    assert len(errors) > 20
    assert np.median(errors) <= 3e-3
    assert max(errors) <= 3e-2
