"""Keras models; the slow test goes through all of Keras's applications."""

import json
import zipfile

import jax
import numpy as np
import pytest

from rankckpt_jax import checkpoints
from rankckpt_jax.checkpoints.graphs import network
from rankckpt_jax.checkpoints.graphs.graph_apply import GraphApply
from rankckpt_jax.checkpoints.sources import keras as keras_files
from rankckpt_jax.checkpoints.sources import keras_allowlist as keras_contents
from rankckpt_jax.data.lazy_tensorflow import tensorflow
from rankckpt_jax.errors import InputError
from tests.checkpoints.sources.test_hub import _check_training, _close

# Keras's own, when it copies its variables to NumPy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")

SIZE = 32


@pytest.fixture(scope="module")
def keras():
    tensorflow()
    import keras

    return keras


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(size=(6, SIZE, SIZE, 3)).astype(np.float32)


def _model(keras, **head):
    layers = keras.layers
    keras.utils.set_random_seed(0)
    inputs = keras.Input((SIZE, SIZE, 3))
    x = inputs
    for i in range(2):
        x = layers.Conv2D(8, 3, strides=2, use_bias=False, name=f"conv{i}")(x)
        x = layers.BatchNormalization(momentum=0.9, name=f"norm{i}")(x)
        x = layers.Activation("swish")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    if head:
        x = layers.Dense(5, **head)(x)
    return keras.Model(inputs, x)


@pytest.mark.parametrize("ending", ["keras", "h5"])
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5")
def test_a_classifier_is_split_into_features_and_head(keras, tmp_path, images, ending):
    model = _model(keras, activation="softmax", name="predictions")
    file = tmp_path / f"net.{ending}"
    model.save(file)
    backbone = checkpoints.load_hub(file, input_range=(0.0, 1.0))
    output = jax.jit(backbone.apply)(backbone.variables, images)
    pooled = keras.Model(model.input, model.get_layer("pool").output)
    _close(output.features, pooled(images))
    _close(jax.nn.softmax(output.logits), model(images))
    assert backbone.num_source_classes == 5
    assert backbone.image_size == SIZE
    features = pooled(images, training=True)
    moved = {v.path: v.numpy() for v in model.non_trainable_variables}
    _check_training(backbone, images, features, moved)


def test_a_model_without_classifier_and_a_named_layer(keras, tmp_path, images):
    model = _model(keras)
    model.save(tmp_path / "net.keras")
    backbone = checkpoints.load_hub(tmp_path / "net.keras", input_range=(0.0, 1.0))
    output = backbone.apply(backbone.variables, images)
    _close(output.features, model(images))
    assert output.logits is None
    named = checkpoints.load_hub(tmp_path / "net.keras", output="norm1")
    inner = keras.Model(model.input, model.get_layer("norm1").output)
    features = named.apply(named.variables, images).features
    _close(features, np.mean(inner(images), (1, 2)))
    with pytest.raises(InputError, match="norm0, (.|\n)*norm1"):
        checkpoints.load_hub(tmp_path / "net.keras", output="absent")


def test_an_application(keras, tmp_path, images):
    keras.utils.set_random_seed(0)
    model = keras.applications.MobileNetV3Small(
        (SIZE, SIZE, 3), alpha=0.75, minimalistic=True, weights=None, classes=7
    )
    model.save(tmp_path / "net.keras")
    backbone = checkpoints.load(str(tmp_path / "net.keras"))
    # Its own layer scales pixels.
    assert backbone.input_range == (0.0, 255.0)
    _agrees(keras, model, backbone, images * 255)


def _agrees(keras, model, backbone, images):
    """Features and logits as Keras has them, and a step of training that is finite."""
    output = jax.jit(backbone.apply)(backbone.variables, images)
    pixels = np.asarray(backbone.apply.graphs.pixels(images))
    classifier = [layer for layer in model.layers if hasattr(layer, "kernel")][-1]
    outputs = keras.Model(model.input, [classifier.input, model.output])
    features, probabilities = outputs(pixels, training=False)
    _close(output.features, np.reshape(features, (len(images), -1)))
    _close(jax.nn.softmax(output.logits), probabilities)

    def loss(params):
        variables = {**backbone.variables, "params": params}
        result, stats = backbone.apply(variables, images, train=True)
        return (result.features**2).mean(), stats

    gradients, stats = jax.jit(jax.grad(loss, has_aux=True))(
        backbone.variables["params"]
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(stats))


def test_code_in_a_file_is_refused(keras, tmp_path):
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Lambda(lambda x: x * 2)(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    keras.Model(inputs, x).save(tmp_path / "code.keras")
    with pytest.raises(InputError, match="Lambda"):
        checkpoints.load_hub(tmp_path / "code.keras")
    with zipfile.ZipFile(tmp_path / "other.keras", "w") as archive:
        archive.writestr("config.json", '{"module": "os", "class_name": "system"}')
    with pytest.raises(InputError, match=r"os\.system"):
        checkpoints.load_hub(tmp_path / "other.keras")


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("keras.layers", "TFSMLayer"),
        ("keras.layers", "TorchModuleWrapper"),
        ("keras.layers", "StringLookup"),
        ("keras.layers", "JaxLayer"),
        ("keras.utils", "get_file"),
        ("keras.config", "enable_unsafe_deserialization"),
        ("keras.activations", "function"),
        ("builtins", "eval"),
        ("kerasx.layers", "Dense"),
        (None, "Lambda"),
        (None, "__lambda__"),
        ("tensorflow.io", "Dense"),
        (["keras"], "Dense"),
    ],
)
def test_only_known_classes_are_let_through(tmp_path, module, name):
    """Deep in a description of a layer that is itself allowed."""
    inner = {"class_name": name, "config": {}}
    inner |= {} if module is None else {"module": module}
    layer = {"module": "keras.layers", "class_name": "Dense", "config": {"a": [inner]}}
    with zipfile.ZipFile(tmp_path / "net.keras", "w") as archive:
        archive.writestr("config.json", json.dumps(layer))
    with pytest.raises(InputError, match=name):
        checkpoints.load_hub(tmp_path / "net.keras")


def test_other_parts_and_compressed_ones_are_refused(tmp_path):
    for name, kind in (("assets/x", 0), ("../x", 0), ("config.json", 8)):
        with zipfile.ZipFile(tmp_path / "net.keras", "w", kind) as archive:
            archive.writestr(name, "{}")
        with pytest.raises(InputError, match="part that is not taken"):
            checkpoints.load_hub(tmp_path / "net.keras")


@pytest.mark.parametrize("kind", ["external link", "soft link", "external", "circle"])
def test_weights_that_refer_elsewhere_are_refused(tmp_path, kind):
    import h5py

    with h5py.File(tmp_path / "net.h5", "w") as file:
        file.attrs["model_config"] = "{}"
        group = file.create_group("layers").create_group("dense")
        if kind == "external link":
            group["kernel"] = h5py.ExternalLink("/etc/passwd", "/")
        elif kind == "soft link":
            group["kernel"] = h5py.SoftLink("/elsewhere")
        elif kind == "external":
            outside = [("/etc/passwd", 0, 8)]
            group.create_dataset("kernel", (2,), "f4", external=outside)
        else:
            group["kernel"] = file["layers"]
    with pytest.raises(InputError, match="refer to other files"):
        checkpoints.load_hub(tmp_path / "net.h5")


def test_weights_alone_and_damaged_files(keras, tmp_path):
    _model(keras).save_weights(tmp_path / "net.weights.h5")
    with pytest.raises(InputError, match="cannot be read"):
        checkpoints.load_hub(tmp_path / "net.weights.h5")
    (tmp_path / "broken.keras").write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot be read"):
        checkpoints.load_hub(tmp_path / "broken.keras")


# One or two of each family of keras.applications: the others are the same layers, more
# of them. With the smallest image each takes.
APPLICATIONS = {
    "ConvNeXtTiny": 32,
    "DenseNet121": 32,
    "EfficientNetB0": 32,
    "EfficientNetV2B0": 32,
    "EfficientNetV2S": 32,
    "InceptionResNetV2": 75,
    "InceptionV3": 75,
    "MobileNet": 32,
    "MobileNetV2": 32,
    "MobileNetV3Large": 32,
    "MobileNetV3Small": 32,
    "NASNetMobile": 224,
    "ResNet50": 32,
    "ResNet50V2": 32,
    "VGG16": 32,
    "VGG19": 32,
    "Xception": 71,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", APPLICATIONS)
def test_applications(keras, name):
    keras.utils.set_random_seed(0)
    size = APPLICATIONS[name]
    model = getattr(keras.applications, name)(
        weights=None, input_shape=(size, size, 3), classes=7
    )
    assert list(keras_contents._foreign(json.loads(model.to_json()))) == []
    converted = network.convert(keras_files.of_model(model, name))
    variables, apply = converted.variables, GraphApply(converted.graphs)
    images = np.random.default_rng(0).uniform(size=(2, size, size, 3))

    class Converted:
        pass

    backbone = Converted()
    backbone.variables, backbone.apply = variables, apply
    _agrees(keras, model, backbone, images.astype(np.float32))
