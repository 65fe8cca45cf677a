"""Public networks in the formats of Keras and SavedModel, against TensorFlow."""

import jax
import numpy as np
import pytest

from rankckpt_jax import checkpoints
from rankckpt_jax.data.lazy_tensorflow import tensorflow
from tests.checkpoints.modules import assert_close

pytestmark = [
    pytest.mark.shared,
    # Raised by Keras when it copies its variables to NumPy.
    pytest.mark.filterwarnings("ignore:__array__ implementation"),
]

KERAS_2 = (
    "mlperf_tiny_resnet8_cifar10/pretrainedResnet.h5",
    "mlperf_tiny_vww_mobilenet_v1_0.25_96/vww_96.h5",
    "teachable_machine_mobilenet_v2_0.35/keras_model.h5",
)
KERAS_3 = (
    "blazeface_back/blazeface_back.keras",
    "blazeface_short_range/blazeface_short_range.h5",
    "deeplab_mobilenet_edgetpu_cityscapes/deeplab_mobilenet_edgetpu_cityscapes.keras",
    "deeplab_mobilenet_v2_1.0_pascal/deeplab_mobilenet_v2_1.0_pascal.keras",
    "mobilenet_v2_1.0_inat_bird/mobilenet_v2_1.0_inat_bird.keras",
    "nsfwjs_mobilenet_v2/nsfwjs_mobilenet_v2.keras",
    "posenet_mobilenet_v1_0.75/posenet_mobilenet_v1_0.75.h5",
)
SAVED_MODELS = (
    "deeplab_mobilenet_v2_0.5_pascal/deeplab_mobilenet_v2_0.5_pascal",
    "teachable_machine_mobilenet_v2_0.35/model.savedmodel",
)


def _run_keras(keras, path, images):
    model = keras.models.load_model(path, compile=False)
    return model(images, training=False)


def _run_saved_model(path, images):
    """Run the signature of a SavedModel of any version of TensorFlow."""
    tf = tensorflow()
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        loaded = v1.saved_model.load(session, ["serve"], str(path))
        definition = loaded.signature_def["serving_default"]
        [given] = definition.inputs.values()
        [output] = definition.outputs.values()
        return session.run(output.name, {given.name: images})


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5")
@pytest.mark.parametrize("name", [*KERAS_2, *KERAS_3, *SAVED_MODELS])
def test_load_matches_tensorflow(shared, name):
    path = shared / "real/pool" / name
    backbone = checkpoints.load(str(path))
    size, (low, high) = backbone.image_size, backbone.input_range
    pixels = np.random.default_rng(0).uniform(low, high, (2, size, size, 3))
    pixels = pixels.astype(np.float32)
    if name in KERAS_2:
        keras = pytest.importorskip("tf_keras")
        expected = _run_keras(keras, path, pixels)
    elif name in KERAS_3:
        import keras

        expected = _run_keras(keras, path, pixels)
    else:
        expected = _run_saved_model(path, pixels)
    output = jax.jit(backbone.apply)(backbone.variables, pixels)
    expected = np.asarray(expected)
    if output.logits is None:
        if expected.ndim == 4:
            expected = expected.mean((1, 2))
        assert_close(output.features, expected)
    else:
        assert_close(jax.nn.softmax(output.logits), expected)
