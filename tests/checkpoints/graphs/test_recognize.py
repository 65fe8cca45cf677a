"""Every network is told from its variables' names and shapes alone."""

import pytest

from rankckpt_jax import checkpoints, models
from rankckpt_jax.checkpoints.tensorflow_files import checkpoint_files
from tests import slim_golden


@pytest.fixture
def recognize(monkeypatch):
    def recognize(shapes):
        monkeypatch.setattr(checkpoint_files, "shapes", lambda prefix: shapes)
        found = checkpoints.recognize("a/model.ckpt")
        return found.architecture, found.num_classes

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
def test_every_network(recognize, name):
    shapes = slim_golden.shapes(name)
    assert recognize(shapes) == (name, 0)
    for classes in (1000, 1001, 365):
        assert recognize({**shapes, **_head(name, classes)}) == (name, classes)


@pytest.mark.parametrize("name", slim_golden.NAMES)
def test_training_leaves_no_doubt(recognize, name):
    shapes = slim_golden.shapes(name) | _head(name, 5089)
    root = models.get(name).scope
    leftovers = {
        f"{variable}/{slot}": shape
        for variable, shape in shapes.items()
        for slot in ("ExponentialMovingAverage", "RMSProp", "RMSProp_1", "Momentum")
    }
    leftovers[f"{root}/AuxLogits/Conv2d_1b_1x1/weights"] = (1, 1, 768, 128)
    leftovers["global_step"] = ()
    assert recognize({**shapes, **leftovers}) == (name, 5089)


@pytest.mark.parametrize(
    "name", ["mobilenet_v1_040", "mobilenet_v2_050", "mobilenet_v2_130"]
)
def test_any_width(recognize, name):
    from rankckpt_jax.checkpoints.sources import slim

    wanted = slim.variables_of(models.get(name))
    shapes = {variable: entry.slim_shape for variable, entry in wanted.items()}
    assert recognize(shapes) == (name, 0)
