"""Files of Keras 2, against the outputs of Keras 2 itself."""

import jax
import numpy as np
import pytest

from rankckpt_jax import checkpoints
from rankckpt_jax.checkpoints.sources import keras as keras_source
from rankckpt_jax.checkpoints.sources import keras_allowlist, keras_config
from rankckpt_jax.data.lazy_tensorflow import tensorflow
from rankckpt_jax.errors import InputError
from tests.checkpoints.modules import assert_close

pytestmark = [
    # Raised by Keras when it copies its variables to NumPy.
    pytest.mark.filterwarnings("ignore:__array__ implementation"),
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5"),
]

SIZE = 32


@pytest.fixture(scope="module")
def tf_keras():
    tensorflow()
    return pytest.importorskip("tf_keras")


@pytest.fixture(scope="module")
def images():
    pixels = np.random.default_rng(0).uniform(0, 255, (4, SIZE, SIZE, 3))
    return pixels.astype(np.float32)


def randomize(model):
    """Draw all weights, so that weights in a wrong place are seen."""
    random = np.random.default_rng(0)
    for variable in model.weights:
        name, shape = variable.name.split("/")[-1], variable.shape
        if name.startswith("mean"):
            variable.assign(random.uniform(60, 120, shape))
        elif name.startswith("variance"):
            variable.assign(random.uniform(1000, 3000, shape))
        elif "variance" in name or "gamma" in name:
            variable.assign(random.uniform(0.5, 1.5, shape))
        elif "kernel" in name:
            fan = np.prod(shape[:2] if "depthwise" in name else shape[:-1])
            variable.assign(random.normal(size=shape) * np.sqrt(2 / fan))
        elif not variable.dtype.is_integer:
            variable.assign(random.normal(size=shape) * 0.1)


def mobilenet(tf_keras):
    return tf_keras.applications.MobileNet(
        (SIZE, SIZE, 3), alpha=0.25, weights=None, include_top=False
    )


def transfer(tf_keras):
    """A partly frozen network within another, as in the guide to transfer learning."""
    layers = tf_keras.layers
    base = mobilenet(tf_keras)
    for layer in base.layers[:40]:
        layer.trainable = False
    augment = [layers.RandomFlip("horizontal"), layers.RandomRotation(0.1)]
    inputs = tf_keras.Input((SIZE, SIZE, 3))
    x = tf_keras.Sequential(augment)(inputs)
    x = tf_keras.applications.mobilenet.preprocess_input(x)
    x = base(x, training=False)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dropout(0.2)(x)
    return tf_keras.Model(inputs, layers.Dense(3, activation="softmax")(x))


def sequential(tf_keras):
    layers = tf_keras.layers
    base = mobilenet(tf_keras)
    base.trainable = False
    return tf_keras.Sequential(
        [
            layers.RandomZoom(0.1, input_shape=(SIZE, SIZE, 3)),
            layers.RandomContrast(0.1),
            layers.Rescaling(1 / 127.5, -1),
            base,
            layers.GlobalAveragePooling2D(),
            layers.BatchNormalization(),
            layers.Dense(5, activation="softmax", dtype="float32"),
        ]
    )


def functions(tf_keras):
    """A network with functions of TensorFlow, and a sigmoid that changed."""
    tf = tensorflow()
    layers = tf_keras.layers
    inputs = tf_keras.Input((SIZE, SIZE, 3))
    x = layers.Conv2D(8, 3, activation="hard_sigmoid")(inputs / 255.0)
    y = layers.SeparableConv2D(8, 3, padding="same", name="block/separable")(x)
    x = tf.nn.relu6(tf.concat([x + y, x * y - 2.0], -1))
    x = layers.DepthwiseConv2D(3, depth_multiplier=2)(x)
    x = layers.LayerNormalization()(layers.LeakyReLU(0.1)(layers.PReLU()(x)))
    x = tf.reduce_mean(tf.image.resize(x, (7, 7)), [1, 2])
    return tf_keras.Model(inputs, layers.Dense(3, activation="softmax")(1.0 - x))


@pytest.mark.parametrize("ending", ["h5", "keras"])
@pytest.mark.parametrize("make", [transfer, sequential, functions])
def test_load_model_of_keras_2_matches_keras_2(
    tf_keras, tmp_path, images, make, ending
):
    model = make(tf_keras)
    randomize(model)
    path = tmp_path / f"net.{ending}"
    model.save(path)
    loaded = keras_source.load_model(path)
    expected = np.asarray(model(images, training=False))
    assert_close(loaded(images, training=False), expected)
    assert expected.std(0).max() > 1e-4


@pytest.mark.slow
def test_load_hub_of_keras_2_computes_features_and_logits(tf_keras, tmp_path, images):
    model = transfer(tf_keras)
    randomize(model)
    model.save(tmp_path / "net.h5")
    backbone = checkpoints.load_hub(tmp_path / "net.h5", input_range=(0.0, 255.0))
    output = jax.jit(backbone.apply)(backbone.variables, images)
    assert_close(jax.nn.softmax(output.logits), model(images, training=False))
    assert backbone.feature_dim == 256
    # The training graph has no augmentation, which has no counterpart in JAX.
    trained, _ = backbone.apply(backbone.variables, images, train=True)
    assert np.isfinite(trained.features).all()


@pytest.mark.slow
def test_load_of_a_saved_model_of_keras_2_leaves_augmentation_out(
    tf_keras, tmp_path, images, caplog
):
    model = transfer(tf_keras)
    randomize(model)
    model.save(tmp_path / "net")
    backbone = checkpoints.load(str(tmp_path / "net"))
    output = jax.jit(backbone.apply)(backbone.variables, images)
    assert_close(jax.nn.softmax(output.logits), model(images, training=False))
    assert backbone.input_range == (0, 255)
    # Its operations have no counterparts in JAX.
    assert backbone.apply.graphs.training is None
    assert "training graph is left out" in caplog.text


def test_load_model_of_keras_3_leaves_augmentation_out(tmp_path, images):
    tensorflow()
    import keras

    layers = keras.layers
    augment = [layers.RandomFlip(), layers.RandomRotation(0.1), layers.RandomZoom(0.1)]
    inputs = keras.Input((SIZE, SIZE, 3))
    x = layers.Rescaling(1 / 127.5, -1)(keras.Sequential(augment)(inputs))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3)(x))
    model = keras.Model(inputs, layers.Dense(3)(x))
    model.save(tmp_path / "net.keras")
    backbone = checkpoints.load(str(tmp_path / "net.keras"))
    output = jax.jit(backbone.apply)(backbone.variables, images)
    assert_close(output.logits, model(images, training=False))
    trained, _ = backbone.apply(backbone.variables, images, train=True)
    assert_close(trained.features, output.features)


def test_load_model_computes_mixed_precision_in_float32(tf_keras, tmp_path, images):
    model = sequential(tf_keras)
    randomize(model)
    tf_keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        mixed = sequential(tf_keras)
    finally:
        tf_keras.mixed_precision.set_global_policy("float32")
    mixed.set_weights(model.get_weights())
    for ending in ("h5", "keras"):
        mixed.save(tmp_path / f"net.{ending}")
        loaded = keras_source.load_model(tmp_path / f"net.{ending}")
        expected = model(images, training=False)
        assert_close(loaded(images, training=False), expected)


# One of each family with operations of its own.
APPLICATIONS = {
    "DenseNet121": 32,
    "EfficientNetB0": 32,
    "EfficientNetV2B0": 32,
    "InceptionV3": 75,
    "MobileNetV2": 32,
    "MobileNetV3Small": 32,
    "ResNet50": 32,
    "ResNet50V2": 32,
    "Xception": 71,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", APPLICATIONS)
def test_load_model_of_an_application_of_keras_2(tf_keras, tmp_path, name):
    size = APPLICATIONS[name]
    model = getattr(tf_keras.applications, name)(
        weights=None, input_shape=(size, size, 3), classes=7, classifier_activation=None
    )
    randomize(model)
    pixels = np.random.default_rng(0).uniform(0, 255, (2, size, size, 3))
    pixels = pixels.astype(np.float32)
    for ending in ("h5", "keras"):
        path = tmp_path / f"net.{ending}"
        model.save(path)
        # Normalization computes with values that only loading derives.
        expected = tf_keras.models.load_model(path)(pixels, training=False)
        assert_close(keras_source.load_model(path)(pixels, training=False), expected)


def test_load_model_names_a_function_that_it_refuses(tf_keras, tmp_path):
    tf = tensorflow()
    inputs = tf_keras.Input((SIZE, SIZE, 3))
    x = tf.signal.fft2d(tf.cast(inputs, tf.complex64))
    x = tf_keras.layers.GlobalAveragePooling2D()(tf.math.real(x))
    tf_keras.Model(inputs, x).save(tmp_path / "net.h5")
    with pytest.raises(InputError, match=r"TFOpLambda\(signal.fft2d\)"):
        checkpoints.load_hub(tmp_path / "net.h5")


def test_upgrade_lets_no_class_past_the_allowlist():
    # A nested model's compile_config would be read when the model is built.
    lambda_layer = {"class_name": "Lambda", "config": {"function": ["x"]}}
    for layer in (
        lambda_layer,
        {"class_name": "Dense", "config": {"kernel": lambda_layer}},
        {"class_name": "Sequential", "config": {"layers": [lambda_layer]}},
        {"class_name": "Dense", "config": {"x": {"compile_config": lambda_layer}}},
    ):
        model = {"class_name": "Sequential", "config": [layer]}
        upgraded = keras_config.upgrade(model, "2.4.0")
        assert "Lambda" in str(list(keras_allowlist.refused_classes(upgraded)))
