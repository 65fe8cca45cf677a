import numpy as np
import pytest

from rankckpt_jax import checkpoints
from rankckpt_jax.checkpoints.sources import keras as keras_source
from rankckpt_jax.checkpoints.sources import keras_applications
from rankckpt_jax.errors import InputError
from tests.checkpoints.modules import assert_close

# Raised by Keras when it copies its variables to NumPy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")


@pytest.fixture(scope="module")
def keras():
    return keras_source.import_keras()


@pytest.fixture(scope="module")
def model(keras):
    """A small network that stands for MobileNet."""
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((16, 16, 3)),
            layers.Conv2D(4, 3, strides=2),
            layers.GlobalAveragePooling2D(),
            layers.Dense(5, activation="softmax"),
        ],
        name="mobilenet_small",
    )


def replace(monkeypatch, keras, function):
    """Let keras:MobileNet call a function instead of downloading weights."""
    monkeypatch.setattr(keras.applications, "MobileNet", function)


def test_load_equals_keras_and_keeps_the_conversion(
    keras, model, monkeypatch, tmp_path
):
    replace(monkeypatch, keras, lambda weights: model)
    assert checkpoints.find("keras:MobileNet") == [("MobileNet", "keras:MobileNet")]
    backbone = checkpoints.load("keras:MobileNet", cache=tmp_path)
    assert (backbone.name, backbone.source) == ("MobileNet", "keras:MobileNet")
    images = np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
    assert backbone.input_range == (-1, 1)
    expected = model(images).numpy()
    logits = backbone.apply(backbone.variables, images).logits
    scores = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    assert_close(scores, expected)

    def fail(weights):
        raise AssertionError("it was converted again")

    replace(monkeypatch, keras, fail)
    again = checkpoints.load("keras:MobileNet", cache=tmp_path)
    assert again.fingerprint == backbone.fingerprint


def test_fingerprint_counts_the_weights(keras, model, monkeypatch):
    replace(monkeypatch, keras, lambda weights: model)
    first = checkpoints.load("keras:MobileNet").fingerprint
    model.set_weights([weight + 1 for weight in model.get_weights()])
    assert checkpoints.load("keras:MobileNet").fingerprint != first


def test_load_without_network_says_where_to_put_the_file(keras, monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    url = "https://storage.googleapis.com/nasnet/NASNet-mobile.h5"

    def fail(weights):
        raise Exception(f"URL fetch failure on {url}: None -- [Errno -2] unknown")

    replace(monkeypatch, keras, fail)
    with pytest.raises(InputError) as raised:
        checkpoints.load("keras:MobileNet")
    place = tmp_path / "models" / "nasnet_mobile.h5"
    assert f"download {url} and save it here as {place}" in str(raised.value)


def test_names_suggests_the_nearest():
    assert "EfficientNetB0" in keras_applications.names("EfficientNet*")
    with pytest.raises(InputError, match="did you mean 'ResNet50'?"):
        checkpoints.find("keras:Resnet50")
