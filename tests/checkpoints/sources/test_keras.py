import json
import types
import zipfile

import flax.traverse_util
import jax
import numpy as np
import pytest

from rankckpt_jax import checkpoints
from rankckpt_jax.checkpoints.graphs import convert
from rankckpt_jax.checkpoints.graphs.graph_apply import GraphApply
from rankckpt_jax.checkpoints.sources import keras as keras_source
from rankckpt_jax.checkpoints.sources import keras_allowlist
from rankckpt_jax.data.lazy_tensorflow import tensorflow
from rankckpt_jax.errors import InputError
from tests.checkpoints import modules
from tests.checkpoints.modules import assert_close

# Raised by Keras when it copies its variables to NumPy.
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


@pytest.fixture(scope="module")
def model(keras):
    """A classifier of two convolutions."""
    layers = keras.layers
    keras.utils.set_random_seed(0)
    inputs = x = keras.Input((SIZE, SIZE, 3))
    for i in range(2):
        x = layers.Conv2D(8, 3, strides=2, use_bias=False, name=f"conv{i}")(x)
        x = layers.BatchNormalization(momentum=0.9, name=f"norm{i}")(x)
        x = layers.Activation("swish")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dense(5, activation="softmax", name="predictions")(x)
    return keras.Model(inputs, x)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5")
def test_load_hub_splits_a_classifier_into_features_and_head(
    keras, model, tmp_path, images
):
    pooled = keras.Model(model.input, model.get_layer("pool").output)
    for ending in ("h5", "keras"):
        model.save(tmp_path / f"net.{ending}")
        backbone = checkpoints.load_hub(
            tmp_path / f"net.{ending}", input_range=(0.0, 1.0)
        )
        output = jax.jit(backbone.apply)(backbone.variables, images)
        assert_close(output.features, pooled(images))
        assert_close(jax.nn.softmax(output.logits), model(images))
        assert backbone.num_source_classes == 5
        assert backbone.image_size == SIZE
    # Updates the model's statistics.
    features = pooled(images, training=True)
    updated = {v.path: v.numpy() for v in model.non_trainable_variables}
    modules.assert_training_step(backbone, images, features, updated)


def test_load_hub_of_a_named_layer(keras, model, tmp_path, images):
    model.save(tmp_path / "net.keras")
    backbone = checkpoints.load_hub(tmp_path / "net.keras", output="norm1")
    inner = keras.Model(model.input, model.get_layer("norm1").output)
    output = jax.jit(backbone.apply)(backbone.variables, images)
    assert_close(output.features, np.mean(inner(images), (1, 2)))
    assert output.logits is None
    with pytest.raises(InputError, match="norm0, (.|\n)*norm1"):
        checkpoints.load_hub(tmp_path / "net.keras", output="absent")


def test_load_of_an_application_without_classifier(keras, tmp_path, images):
    keras.utils.set_random_seed(0)
    model = keras.applications.MobileNetV3Small(
        (SIZE, SIZE, 3),
        alpha=0.75,
        minimalistic=True,
        weights=None,
        include_top=False,
        pooling="avg",
    )
    model.save(tmp_path / "net.keras")
    backbone = checkpoints.load(str(tmp_path / "net.keras"))
    # Its own layer scales pixels.
    assert backbone.input_range == (0.0, 255.0)
    output = jax.jit(backbone.apply)(backbone.variables, images * 255)
    assert_close(output.features, model(images * 255))
    assert output.logits is None


def test_apply_draws_dropout_of_keras_by_the_key(keras, tmp_path, images):
    """Keras keeps seeds in variables, which would be equal on all devices."""
    layers = keras.layers
    keras.utils.set_random_seed(0)
    inputs = x = keras.Input((SIZE, SIZE, 3))
    for i in range(2):
        x = layers.Conv2D(16, 3, strides=2, name=f"conv{i}")(layers.Dropout(0.5)(x))
    x = layers.GlobalAveragePooling2D()(x)
    keras.Model(inputs, layers.Dense(5)(x)).save(tmp_path / "net.keras")
    backbone = checkpoints.load(f"{tmp_path}/net.keras#input_range=0:1")

    @jax.jit
    def train(seed):
        key = jax.random.key(seed)
        output, stats = backbone.apply(backbone.variables, images, train=True, key=key)
        return output.features, stats

    features, stats = train(1)
    np.testing.assert_array_equal(train(1)[0], features)
    assert (train(2)[0] != features).all()
    seeds = jax.tree.leaves(stats)
    assert {seed.shape for seed in seeds} == {(2,)}
    jax.tree.map(
        np.testing.assert_array_equal, stats, backbone.variables["batch_stats"]
    )


@pytest.mark.slow
def test_gradient_of_a_mobilenet_matches_tensorflow(keras, tmp_path, images):
    tf = tensorflow()
    keras.utils.set_random_seed(0)
    model = keras.applications.MobileNet(
        (SIZE, SIZE, 3), alpha=0.25, weights=None, include_top=False, pooling="avg"
    )
    model.save(tmp_path / "net.keras")
    backbone = checkpoints.load(str(tmp_path / "net.keras"))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(images, training=True) ** 2)
    expected = tape.gradient(loss, model.trainable_variables)
    names = [variable.path for variable in model.trainable_variables]

    def loss_fn(params):
        variables = {**backbone.variables, "params": params}
        output, _ = backbone.apply(variables, images, train=True)
        return (output.features**2).sum()

    gradients = jax.jit(jax.grad(loss_fn))(backbone.variables["params"])
    gradients = flax.traverse_util.flatten_dict(gradients, sep="/")
    assert len(gradients) == len(names)
    # Batch norm makes some gradients vanish, of which only rounding is left.
    total = np.sqrt(sum(np.sum(np.square(g)) for g in expected))
    for name, gradient in zip(names, expected, strict=True):
        error = np.linalg.norm(gradients[name] - gradient)
        assert error <= 1e-3 * max(np.linalg.norm(gradient), 1e-2 * total), name


def test_load_hub_refuses_code(keras, tmp_path):
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Lambda(lambda x: x * 2)(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    keras.Model(inputs, x).save(tmp_path / "code.keras")
    with pytest.raises(InputError, match="Lambda"):
        checkpoints.load_hub(tmp_path / "code.keras")


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
        ("os", "system"),
        ("kerasx.layers", "Dense"),
        (None, "Lambda"),
        (None, "__lambda__"),
        ("tensorflow.io", "Dense"),
        (["keras"], "Dense"),
    ],
)
def test_load_hub_refuses_unknown_classes(tmp_path, module, name):
    # Within the description of an allowed layer.
    inner = {"class_name": name, "config": {}}
    inner |= {} if module is None else {"module": module}
    layer = {"module": "keras.layers", "class_name": "Dense", "config": {"a": [inner]}}
    with zipfile.ZipFile(tmp_path / "net.keras", "w") as archive:
        archive.writestr("config.json", json.dumps(layer))
    with pytest.raises(InputError, match=name):
        checkpoints.load_hub(tmp_path / "net.keras")


def test_load_hub_refuses_other_and_compressed_parts(tmp_path):
    for name, kind in (("assets/x", 0), ("../x", 0), ("config.json", 8)):
        with zipfile.ZipFile(tmp_path / "net.keras", "w", kind) as archive:
            archive.writestr(name, "{}")
        with pytest.raises(InputError, match="unexpected part"):
            checkpoints.load_hub(tmp_path / "net.keras")


@pytest.mark.parametrize("kind", ["external link", "soft link", "external", "circle"])
def test_load_hub_refuses_weights_with_references(tmp_path, kind):
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


def test_load_hub_names_files_that_cannot_be_read(model, tmp_path):
    model.save_weights(tmp_path / "net.weights.h5")
    with pytest.raises(InputError, match="cannot be read"):
        checkpoints.load_hub(tmp_path / "net.weights.h5")
    (tmp_path / "broken.keras").write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot be read"):
        checkpoints.load_hub(tmp_path / "broken.keras")


# One or two of each family of keras.applications, with the smallest image each accepts.
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
def test_convert_of_an_application_matches_keras(keras, name):
    keras.utils.set_random_seed(0)
    size = APPLICATIONS[name]
    model = getattr(keras.applications, name)(
        weights=None, input_shape=(size, size, 3), classes=7
    )
    assert not list(keras_allowlist.refused_classes(json.loads(model.to_json())))
    converted = convert.convert(keras_source.read_model(model, name))
    backbone = types.SimpleNamespace(
        variables=converted.variables, apply=GraphApply(converted.graphs)
    )
    images = np.random.default_rng(0).uniform(size=(2, size, size, 3))
    images = images.astype(np.float32)
    output = jax.jit(backbone.apply)(backbone.variables, images)
    pixels = np.asarray(backbone.apply.graphs.pixels(images))
    classifier = [layer for layer in model.layers if hasattr(layer, "kernel")][-1]
    outputs = keras.Model(model.input, [classifier.input, model.output])
    features, probabilities = outputs(pixels, training=False)
    assert_close(output.features, np.reshape(features, (len(images), -1)))
    assert_close(jax.nn.softmax(output.logits), probabilities)

    def loss(params):
        variables = {**backbone.variables, "params": params}
        result, stats = backbone.apply(variables, images, train=True)
        return (result.features**2).mean(), stats

    gradients, stats = jax.jit(jax.grad(loss, has_aux=True))(
        backbone.variables["params"]
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(stats))


@pytest.mark.parametrize("input_range", [None, (0.0, 255.0)])
def test_load_hub_logs_an_assumed_range_only(
    keras, model, tmp_path, caplog, input_range
):
    model.save(tmp_path / "net.keras")
    checkpoints.load_hub(tmp_path / "net.keras", input_range=input_range)
    assert ("assuming [0, 1]" in caplog.text) == (input_range is None)


@pytest.fixture(scope="module")
def flat_model(keras):
    """A classifier whose dense layer needs one size of image."""
    layers = keras.layers
    inputs = x = keras.Input((SIZE, SIZE, 3))
    x = layers.Conv2D(4, 3, strides=4, name="conv")(x)
    x = layers.Flatten(name="flatten")(x)
    return keras.Model(inputs, layers.Dense(5, name="predictions")(x))


def test_load_hub_of_a_fixed_size_names_the_option_to_remove(flat_model, tmp_path):
    flat_model.save(tmp_path / "net.keras")
    with pytest.raises(InputError, match="remove #image_size=48"):
        checkpoints.load(f"{tmp_path}/net.keras#image_size=48")


def _rescaled(keras, scaling, activation, policy="float32"):
    layers = keras.layers
    keras.utils.set_random_seed(0)
    inputs = keras.Input((SIZE, SIZE, 3))
    x = scaling(layers)(inputs)
    x = layers.Conv2D(8, 3, strides=2, activation="relu", dtype=policy)(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dense(10, activation=activation, dtype=policy, name="last")(x)
    return keras.Model(inputs, x)


@pytest.mark.parametrize(
    ("scaling", "expected", "is_known"),
    [
        (lambda layers: layers.Rescaling(1 / 127.5, -1), (0, 255), True),
        pytest.param(
            *(lambda layers: layers.Rescaling(2.0, -1), (0, 1), True),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            lambda layers: layers.Normalization(mean=120.0, variance=60**2),
            (0, 255),
            True,
            marks=pytest.mark.slow,
        ),
        (lambda layers: layers.Identity(), (0, 1), False),
    ],
)
def test_load_of_a_keras_file_and_its_saved_model_agree(
    keras, tmp_path, images, scaling, expected, is_known
):
    model = _rescaled(keras, scaling, None)
    model.save(tmp_path / "net.keras")
    model.export(tmp_path / "exported", verbose=False)
    outputs = keras.Model(model.input, [model.get_layer("pool").output, model.output])
    features, logits = outputs(images)
    for path in ("net.keras", "exported"):
        backbone = checkpoints.load(str(tmp_path / path))
        assert backbone.input_range == expected
        assert ("input_range" in backbone.warnings) == (not is_known)
        # A last layer without activation is the classifier.
        output = jax.jit(backbone.apply)(backbone.variables, images)
        assert_close(output.features, features)
        assert_close(output.logits, logits)
        assert backbone.feature_dim == 8
        assert "last" in backbone.feature_tensor


@pytest.mark.slow
def test_load_splits_a_softmax_under_mixed_precision(keras, tmp_path, images):
    scaling = lambda layers: layers.Rescaling(1 / 255)  # noqa: E731
    model = _rescaled(keras, scaling, "softmax", "mixed_float16")
    model.save(tmp_path / "net.keras")
    model.export(tmp_path / "exported", verbose=False)
    expected = model(images * 255)
    for path in ("net.keras", "exported"):
        backbone = checkpoints.load(str(tmp_path / path))
        assert (backbone.feature_dim, backbone.num_source_classes) == (8, 10)
        output = jax.jit(backbone.apply)(backbone.variables, images * 255)
        assert_close(jax.nn.softmax(output.logits), expected, 2e-3)


@pytest.mark.parametrize(
    "is_nested", [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_load_resizes_a_model_whose_layers_take_any_size(
    keras, model, tmp_path, is_nested
):
    if is_nested:
        inputs = keras.Input((SIZE, SIZE, 3))
        model = keras.Model(inputs, model(inputs))
    path = str(tmp_path / "net.keras")
    model.save(path)
    images = np.random.default_rng(1).uniform(size=(2, 48, 48, 3)).astype(np.float32)
    # The same layers on images of the other size, by Keras.
    free = keras.Sequential(
        [keras.Input((None, None, 3)), *(_flat_layers(model))], name="free"
    )
    expected = np.asarray(free(images))
    for suffix, size in (("", 48), ("#image_size=48", 0)):
        backbone = checkpoints.load(path + suffix, preferred_image_size=size)
        assert (backbone.image_size, backbone.feature_dim) == (48, 8)
        assert "image_size" not in backbone.warnings
        output = jax.jit(backbone.apply)(backbone.variables, images)
        assert_close(jax.nn.softmax(output.logits), expected, 1e-5)


def _flat_layers(model):
    for layer in model.layers:
        if hasattr(layer, "layers"):
            yield from _flat_layers(layer)
        elif type(layer).__name__ != "InputLayer":
            yield layer


def test_load_keeps_a_fixed_size_where_another_is_preferred(flat_model, tmp_path):
    path = str(tmp_path / "net.keras")
    flat_model.save(path)
    backbone = checkpoints.load(path, preferred_image_size=96)
    assert backbone.image_size == SIZE
    assert "not 96" in backbone.warnings["image_size"]
    with pytest.raises(InputError, match="32 x 32 pixels only"):
        checkpoints.load(f"{path}#image_size=96")


@pytest.mark.slow
def test_load_of_a_nested_application_mentions_the_assumed_range(keras, tmp_path):
    base = keras.applications.MobileNet(
        (SIZE, SIZE, 3), alpha=0.25, weights=None, include_top=False, pooling="avg"
    )
    model = keras.Sequential([base, keras.layers.Dense(1)])
    model.save(tmp_path / "net.keras")
    backbone = checkpoints.load(str(tmp_path / "net.keras"))
    assert backbone.input_range == (-1, 1)
    assert "mobilenet_0.25_32" in backbone.warnings["input_range"]
    assert backbone.feature_dim == 256
