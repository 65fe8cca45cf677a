import numpy as np
import pytest

from rankckpt_jax import checkpoints
from rankckpt_jax.checkpoints import in_memory
from rankckpt_jax.data.lazy_tensorflow import tensorflow
from rankckpt_jax.errors import InputError
from tests.checkpoints.modules import assert_close

# Raised by Keras when it copies its variables to NumPy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")

SIZE = 24


@pytest.fixture(scope="module")
def keras():
    tensorflow()
    import keras

    return keras


def build(keras, size=SIZE):
    layers = keras.layers
    keras.utils.set_random_seed(0)
    inputs = x = keras.Input((size, size, 3))
    x = layers.Rescaling(1 / 127.5, offset=-1)(x)
    x = layers.Conv2D(8, 3, strides=2, name="conv")(x)
    x = layers.BatchNormalization(momentum=0.9)(x)
    x = layers.GlobalAveragePooling2D(name="pool")(layers.ReLU()(x))
    x = layers.Dropout(0.5)(x)
    x = layers.Dense(5, activation="softmax")(x)
    return keras.Model(inputs, x, name="net")


@pytest.fixture(scope="module")
def model(keras):
    return build(keras)


def test_from_keras_gives_what_the_model_computes(keras, model):
    images = np.random.default_rng(0).uniform(0, 255, (4, SIZE, SIZE, 3)).astype("f4")
    net = checkpoints.from_keras(model)
    pooled = keras.Model(model.input, model.get_layer("pool").output)
    output = net.apply(net.variables, images)
    assert_close(output.features, pooled(images).numpy())
    assert (net.name, net.image_size, net.input_range) == ("net", SIZE, (0, 255))
    assert (net.feature_dim, net.num_source_classes) == (8, 5)
    conv = checkpoints.from_keras(model, output="conv", name="conv")
    assert (conv.name, conv.num_source_classes) == ("conv", 0)
    assert conv.fingerprint != net.fingerprint


def test_identity_changes_with_weights_and_layers_only(keras):
    model = build(keras)
    first = in_memory.read(model, "")
    model(np.zeros((2, SIZE, SIZE, 3), "f4"), training=False)
    assert first.identity and in_memory.read(model, "").identity == first.identity
    layer = model.get_layer("conv")
    layer.set_weights([2 * weight for weight in layer.get_weights()])
    assert in_memory.read(model, "").identity != first.identity


def test_layers_of_other_code_count_by_their_graph(keras):
    def wrap(factor):
        class Scale(keras.layers.Layer):
            def call(self, x):
                return factor * x

        inputs = keras.Input((SIZE, SIZE, 3))
        x = Scale()(keras.layers.GlobalAveragePooling2D()(inputs))
        return keras.Model(inputs, x, name="net")

    assert in_memory.read(wrap(2.0), "").identity == ""
    one, other = (checkpoints.from_keras(wrap(f)).fingerprint for f in (2.0, 3.0))
    assert one != other


def test_from_keras_takes_a_size_for_a_model_of_any_size(keras, model):
    free = in_memory.read(build(keras, None), "")
    assert free.load(32).image_size == 32
    # The network is rebuilt with the same weights, and the model stays as it is.
    rebuilt = in_memory.read(model, "").load(32)
    assert rebuilt.image_size == 32 and "image_size" not in rebuilt.warnings
    assert model.input_shape == (None, SIZE, SIZE, 3)
    layers = keras.layers
    flat = keras.Sequential(
        [keras.Input((SIZE, SIZE, 3)), layers.Flatten(), layers.Dense(2)]
    )
    fixed = in_memory.read(flat, "").load(32)
    assert fixed.image_size == SIZE and "image_size" in fixed.warnings


def test_from_keras_refuses_other_objects():
    with pytest.raises(InputError, match="Not a Keras model"):
        checkpoints.from_keras(3)
    import tf_keras

    old = tf_keras.Sequential([tf_keras.layers.Dense(2, input_shape=(3,))])
    with pytest.raises(InputError, match="net.h5"):
        in_memory.read(old, "")
