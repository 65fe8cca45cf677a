import numpy as np
import pytest

from rankckpt_jax.checkpoints.graphs import features, saved_models
from rankckpt_jax.data.lazy_tensorflow import tensorflow


def classifier(head, name):
    """Return the classifier found in a network that ends in `head(tf, x, kernel)`."""
    tf = tensorflow()
    random = np.random.default_rng(0)

    def variable(*shape):
        return tf.Variable(random.normal(size=shape).astype(np.float32))

    stem, kernel = variable(3, 3, 3, 8), variable(8, 5)
    point, bias = variable(1, 1, 8, 5), variable(5)

    def run(images):
        x = tf.nn.relu(tf.nn.conv2d(images, stem, 2, "SAME"))
        return {name: head(tf, x, kernel, point, bias)}

    spec = tf.TensorSpec([None, 16, 16, 3], tf.float32)
    function = tf.function(run, autograph=False).get_concrete_function(spec)
    network = saved_models.from_functions(
        "net", "SavedModel", function, None, keep=(stem, kernel, point, bias)
    )
    return features.classifier_of(network.evaluation, name)


def pooled(tf, x, keepdims=False):
    return tf.reduce_mean(x, [1, 2], keepdims=keepdims)


def dense(tf, x, kernel, point, bias):
    return tf.nn.bias_add(tf.matmul(pooled(tf, x), kernel), bias)


def mixed_softmax(tf, x, kernel, point, bias):
    x, kernel, bias = (tf.cast(v, tf.float16) for v in (pooled(tf, x), kernel, bias))
    return tf.nn.softmax(tf.cast(tf.matmul(x, kernel) + bias, tf.float32))


def convolution(tf, x, kernel, point, bias):
    return tf.nn.conv2d(pooled(tf, x, keepdims=True), point, 1, "SAME")


def bottleneck(tf, x, kernel, point, bias):
    return tf.nn.bias_add(tf.nn.conv2d(x, point, 1, "SAME"), bias)


@pytest.mark.parametrize(
    ("head", "name", "expected"),
    [
        (dense, "dense_1", True),
        (dense, "output_0", True),
        (mixed_softmax, "activation", True),
        (convolution, "output_0", True),
        # The last layer of a backbone, and an embedding, are features.
        (bottleneck, "output_0", False),
        (dense, "embedding", False),
        (dense, "pre_logits", False),
        (dense, "representation", False),
    ],
)
def test_classifier_of_recognizes_the_last_linear_layer(head, name, expected):
    assert (classifier(head, name) is not None) == expected
