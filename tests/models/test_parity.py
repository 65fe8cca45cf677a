"""Every network compared with TF-Slim, on weights from a TF-Slim checkpoint."""

import jax
import numpy as np
import pytest

from rankckpt_jax import checkpoints, models
from tests import slim_golden


def _check(name, size, folder):
    prefix = slim_golden.write(name, folder)
    backbone = checkpoints.load_slim(name, prefix, image_size=size)
    module = models.create(name)

    @jax.jit
    def forward(variables, images):
        return module.apply(variables, images, mutable=["intermediates"])

    output, state = forward(backbone.variables, slim_golden.images(size))
    reference = slim_golden.figures(name, size)
    assert output.logits is None
    assert output.features.dtype == np.float32
    assert output.features.shape == (2, backbone.feature_dim)
    error = slim_golden.relative_error(output.features, reference["features"])
    assert error <= 1e-4
    activations = models.endpoints(state["intermediates"])
    for endpoint, mean, std in zip(
        reference["endpoint_names"],
        reference["endpoint_mean"],
        reference["endpoint_std"],
        strict=True,
    ):
        values = np.asarray(activations[endpoint.removeprefix(f"{name}/")], np.float64)
        # Relative to the standard deviation, because a mean may be close to zero.
        assert abs(values.mean() - mean) <= 1e-3 * max(abs(mean), std), endpoint
        assert abs(values.std() - std) <= 1e-3 * std, endpoint
    *_, last = [np.asarray(activations[b], np.float64) for b in models.get(name).blocks]
    if name.startswith(WITHOUT_HEAD_LAYERS):
        # Sums of float32 in another order.
        error = slim_golden.relative_error(output.features, last.mean((1, 2)))
        assert error <= 1e-5


WITHOUT_HEAD_LAYERS = ("mobilenet_v1", "inception", "resnet_v1")
"""Networks whose features are the pooled output of the last block."""


# Names whose code and tables another name covers.
COVERED = (
    "mobilenet_v1",
    "mobilenet_v1_050",
    "mobilenet_v2",
    "mobilenet_v2_140",
    "resnet_v1_101",
    "resnet_v1_152",
    "resnet_v2_101",
    "resnet_v2_152",
)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in COVERED else ())
        for name in slim_golden.NAMES
    ],
)
def test_outputs_match_tf_slim_at_reduced_size(name, tmp_path):
    _check(name, slim_golden.reduced_size(name), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", slim_golden.NAMES)
def test_outputs_match_tf_slim_at_default_size(name, tmp_path):
    size = models.get(name).image_size
    if not (slim_golden.FOLDER / f"{name}_{size}.npz").exists():
        pytest.skip("no reference at the default size")
    _check(name, size, tmp_path)
