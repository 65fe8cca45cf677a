import numpy as np
import pytest

from rankckpt_jax.checkpoints.graphs import input_range, saved_models
from rankckpt_jax.data.lazy_tensorflow import tensorflow

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)
CAFFE = np.array([103.939, 116.779, 123.68], np.float32)


def network(preprocess):
    """Return a network of one convolution behind some arithmetic."""
    tf = tensorflow()
    kernel = tf.Variable(np.ones((3, 3, 3, 4), np.float32))

    def run(images):
        x = tf.nn.conv2d(preprocess(tf, images), kernel, 2, "SAME")
        return tf.reduce_mean(x, [1, 2])

    spec = tf.TensorSpec([None, 16, 16, 3], tf.float32)
    function = tf.function(run, autograph=False).get_concrete_function(spec)
    return saved_models.from_functions("net", "SavedModel", function, None, keep=kernel)


@pytest.mark.parametrize(
    ("preprocess", "expected"),
    [
        (lambda tf, x: x / 127.5 - 1.0, (0, 255)),
        (lambda tf, x: x * (1 / 255), (0, 255)),
        (lambda tf, x: (x / 255 - MEAN) / DEVIATION, (0, 255)),
        (lambda tf, x: (x - 255 * MEAN) / tf.sqrt((255 * DEVIATION) ** 2), (0, 255)),
        (lambda tf, x: tf.nn.bias_add(x[..., ::-1], -CAFFE), (0, 255)),
        (lambda tf, x: tf.image.resize(x, (8, 8)) / 127.5 - 1.0, (0, 255)),
        (lambda tf, x: 2 * x - 1, (0, 1)),
        (lambda tf, x: (x - 0.5) * 2, (0, 1)),
        (lambda tf, x: x - 0.5, (0, 1)),
        (lambda tf, x: (x - MEAN) / DEVIATION, (0, 1)),
        (lambda tf, x: x * 255, (0, 1)),
        (lambda tf, x: x * 255 - CAFFE, (0, 1)),
        (lambda tf, x: (x + 1) * 127.5, (-1, 1)),
        (lambda tf, x: (x + 1) / 2, (-1, 1)),
        (lambda tf, x: 0.5 * x + 0.5, (-1, 1)),
        (lambda tf, x: x, None),
        (lambda tf, x: tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]), None),
        # The pixels are read twice, so that no one scale holds.
        (lambda tf, x: x / 255 + tf.nn.relu(x), None),
    ],
)
def test_find_of_arithmetic_on_images(preprocess, expected):
    assert input_range.find(network(preprocess)) == expected


def test_find_of_batch_norm_on_images():
    tf = tensorflow()
    moments = tf.Variable(255 * MEAN), tf.Variable((255 * DEVIATION) ** 2)

    def preprocess(tf, x):
        one, zero = np.ones(3, np.float32), np.zeros(3, np.float32)
        norm = tf.compat.v1.nn.fused_batch_norm
        return norm(x, one, zero, *moments, is_training=False)[0]

    assert input_range.find(network(preprocess)) == (0, 255)
