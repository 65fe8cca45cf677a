"""Networks are recognized from the names and shapes of their variables alone."""

import pytest

from rankckpt_jax import checkpoints, models
from rankckpt_jax.checkpoints.sources import slim
from rankckpt_jax.checkpoints.tensorflow_files import checkpoint_files
from tests import slim_golden


@pytest.fixture
def recognize(monkeypatch):
    def recognize(shapes):
        monkeypatch.setattr(checkpoint_files, "shapes", lambda prefix: shapes)
        info = checkpoints.recognize("a/model.ckpt")
        return info.architecture, info.num_classes

    return recognize


def _head(name, classes):
    network = models.get(name)
    scope = f"{network.scope}/{network.classifier}"
    shape = (network.feature_dim, classes)
    return {
        f"{scope}/weights": shape if network.classifier_is_dense else (1, 1, *shape),
        f"{scope}/biases": (classes,),
    }


@pytest.mark.parametrize("name", slim_golden.NAMES)
def test_recognize_returns_the_network_and_its_classes(recognize, name):
    shapes = slim_golden.shapes(name)
    assert recognize(shapes) == (name, 0)
    assert recognize(shapes | _head(name, 1)) == (name, 1)
    shapes |= _head(name, 365)
    assert recognize(shapes) == (name, 365)
    # Variables of training are ignored.
    slots = ("ExponentialMovingAverage", "RMSProp", "RMSProp_1", "Momentum")
    training = {f"{v}/{slot}": shapes[v] for v in shapes for slot in slots}
    scope = models.get(name).scope
    training[f"{scope}/AuxLogits/Conv2d_1b_1x1/weights"] = (1, 1, 768, 128)
    training["global_step"] = ()
    assert recognize(shapes | training) == (name, 365)


@pytest.mark.parametrize(
    "name", ["mobilenet_v1_040", "mobilenet_v2_050", "mobilenet_v2_130"]
)
def test_recognize_returns_any_width(recognize, name):
    variables = slim.variables_of(models.get(name))
    shapes = {variable: entry.slim_shape for variable, entry in variables.items()}
    assert recognize(shapes) == (name, 0)
