"""Export modules in TensorFlow 1's format, as they were published.

Networks are built from TensorFlow's operations with the variable names of the
originals. TensorFlow's results for the exported files are the reference.
"""

import dataclasses
import pathlib

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from rankckpt_jax.checkpoints.tensorflow_files import protobuf
from rankckpt_jax.data.lazy_tensorflow import tensorflow

DECAY = 0.9


def export_tf1(
    directory, network, size, *, signatures, info_size=0, resource=True, seed=0
):
    """Write a module with the graphs {} and {train}, as TF-Hub's exporter did.

    Args:
      directory: Where to.
      network: `network(images, training)` returns tensors by name.
      size: Side of the images; None for any.
      signatures: For each signature, names of tensors by the keys of its outputs.
      info_size: Image size of the attachment "image_module_info"; 0 for none.
      resource: Whether to create resource variables.
      seed: Seed of the weights.
    """
    tf = tensorflow()
    v1 = tf.compat.v1
    builder = v1.saved_model.Builder(str(directory))
    for training in (True, False):
        with tf.Graph().as_default(), v1.Session() as session:
            v1.set_random_seed(1)
            with v1.variable_scope("", use_resource=resource):
                images = v1.placeholder(tf.float32, [None, size, size, 3], "images")
                outputs = network(images, training)
            definitions = {
                key: v1.saved_model.predict_signature_def(
                    {"images": images}, {k: outputs[n] for k, n in names.items()}
                )
                for key, names in signatures.items()
            }
            if info_size:
                v1.add_to_collection("hub_module_attachments", _image_info(info_size))
            if training:
                session.run(v1.global_variables_initializer())
                _randomize(session, seed)
                builder.add_meta_graph_and_variables(session, ["train"], definitions)
            else:
                builder.add_meta_graph([], definitions)
    builder.save()
    (pathlib.Path(directory) / "tfhub_module.pb").write_bytes(b"\x08\x03")


def _randomize(session, seed):
    """Set weights and batch norm's statistics to random values."""
    tf = tensorflow()
    random = np.random.default_rng(seed)
    for variable in tf.compat.v1.global_variables():
        shape = variable.shape.as_list()
        if variable.op.name.endswith(("variance", "gamma")):
            value = random.uniform(0.7, 1.3, shape)
        elif len(shape) == 1:
            value = random.normal(0, 0.1, shape)
        else:
            fan = np.prod(shape[:2] if "depthwise" in variable.name else shape[:-1])
            value = random.normal(0, np.sqrt(2 / fan), shape)
        variable.load(value.astype(np.float32), session)


def _image_info(size):
    """Return TF-Hub's serialized attachment "image_module_info"."""
    field = protobuf.field
    info = field(1, field(1, size) + field(2, size))
    return field(1, b"image_module_info") + field(2, info)


def run_tf1(directory, signature, images, *, training):
    """Run an exported file; return (outputs, updated variables by name)."""
    tf = tensorflow()
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        tags = ["train"] if training else []
        loaded = v1.saved_model.load(session, tags, str(directory))
        definition = loaded.signature_def[signature]
        fetched = {key: info.name for key, info in definition.outputs.items()}
        updates = v1.get_collection("update_ops") if training else []
        fed = {definition.inputs["images"].name: images}
        outputs, _ = session.run([fetched, updates], fed)
        names = {v.op.name: v for v in v1.global_variables()}
        return outputs, session.run(names)


def assert_close(actual, expected, tolerance=1e-4):
    """Compare relative to the largest value: float32 sums differ by their order."""
    expected = np.asarray(expected)
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(
        actual, expected, atol=tolerance * np.abs(expected).max()
    )


def assert_training_step(backbone, images, expected_features, expected_statistics):
    """Check features, statistics and gradients of a training step."""

    def loss(params):
        variables = {**backbone.variables, "params": params}
        output, stats = backbone.apply(variables, images, train=True)
        weights = jnp.arange(output.features.size).reshape(output.features.shape)
        value = jnp.mean(jnp.sin(weights) * jnp.square(output.features))
        if output.logits is not None:
            value += jnp.mean(jnp.square(output.logits))
        return value, (output, stats)

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, (output, stats)), gradients = step(backbone.variables["params"])
    assert_close(output.features, expected_features)
    stats = flax.traverse_util.flatten_dict(stats, sep="/")
    old = flax.traverse_util.flatten_dict(backbone.variables["batch_stats"], sep="/")
    assert stats.keys() == old.keys() == expected_statistics.keys()
    for name, value in stats.items():
        assert_close(value, expected_statistics[name])
        assert (np.abs(value - old[name]) > 0).any(), name
    for path, gradient in flax.traverse_util.flatten_dict(gradients).items():
        assert np.abs(gradient).max() > 0, path


def assert_moments_of_all_devices(backbone, images):
    """Compare two mapped devices with half of the images each to one with all."""
    apply = dataclasses.replace(backbone.apply, axis_name="batch")
    halves = images.reshape(2, len(images) // 2, *images.shape[1:])
    mapped = jax.vmap(
        lambda x: apply(backbone.variables, x, train=True), axis_name="batch"
    )
    output, stats = jax.jit(mapped)(halves)
    expected, expected_stats = jax.jit(
        lambda x: backbone.apply(backbone.variables, x, train=True)
    )(images)
    features = output.features.reshape(expected.features.shape)
    assert_close(features, expected.features, 1e-5)
    jax.tree.map(lambda a, b: assert_close(a[1], b, 1e-5), stats, expected_stats)


def statistics(variables):
    """Return batch norm's moving averages among variables."""
    return {
        name.removeprefix("module/"): value
        for name, value in variables.items()
        if name.endswith(("moving_mean", "moving_variance"))
    }


def variable(name, shape, trainable=True):
    v1 = tensorflow().compat.v1
    return v1.get_variable(name, shape, trainable=trainable)


def conv(x, width, size, stride, name, *, bias=False, depthwise=False, padding="SAME"):
    """Return a convolution with TF-Slim's names and padding."""
    tf = tensorflow()
    kind = "depthwise_weights" if depthwise else "weights"
    shape = (size, size, int(x.shape[-1]), 1 if depthwise else width)
    kernel = variable(f"{name}/{kind}", shape)
    if padding == "FIXED":
        pad = [(size - 1) // 2, size // 2]
        x, padding = tf.pad(x, [[0, 0], pad, pad, [0, 0]]), "VALID"
    strides = [1, stride, stride, 1]
    if depthwise:
        return tf.nn.depthwise_conv2d(x, kernel, strides, padding)
    y = tf.nn.conv2d(x, kernel, strides, padding)
    return tf.nn.bias_add(y, variable(f"{name}/biases", (width,))) if bias else y


def batch_norm(x, training, name, *, epsilon=1e-3, decay=DECAY):
    """Return fused batch norm; "update_ops" lists its updates in training."""
    tf = tensorflow()
    v1 = tf.compat.v1
    width = (int(x.shape[-1]),)
    gamma, beta = variable(f"{name}/gamma", width), variable(f"{name}/beta", width)
    mean = variable(f"{name}/moving_mean", width, trainable=False)
    var = variable(f"{name}/moving_variance", width, trainable=False)
    if not training:
        return v1.nn.fused_batch_norm(
            x, gamma, beta, mean, var, epsilon=epsilon, is_training=False
        )[0]
    y, batch_mean, batch_var = v1.nn.fused_batch_norm(
        x, gamma, beta, epsilon=epsilon, is_training=True
    )
    for moving, moment in ((mean, batch_mean), (var, batch_var)):
        update = v1.assign_sub(moving, (moving - moment) * (1 - decay))
        v1.add_to_collection("update_ops", update)
    return y


def small(images, training):
    """Two convolutions, pooled features and a classifier."""
    tf = tensorflow()
    x = images * 2 - 1
    for i, (width, stride) in enumerate(((8, 2), (12, 1)), start=1):
        x = conv(x, width, 3, stride, f"net/conv{i}")
        x = tf.nn.relu(batch_norm(x, training, f"net/conv{i}/BatchNorm"))
    pooled = tf.reduce_mean(x, [1, 2], keepdims=True)
    logits = tf.squeeze(conv(pooled, 5, 1, 1, "net/logits", bias=True), [1, 2])
    return {"pooled": pooled, "logits": logits, "map": x}


def mobilenet(images, training):
    """TF-Slim's MobileNet v1 0.25 without its classifier, for pixels in [0, 1]."""
    tf = tensorflow()
    x = images * 2 - 1
    widths = (8, 16, 32, 32, 64, 64, *(128,) * 6, 256, 256)
    strided = (0, 2, 4, 6, 12)

    def layer(x, width, size, stride, name, **options):
        scope = f"MobilenetV1/{name}"
        x = conv(x, width, size, stride, scope, **options)
        return tf.nn.relu6(batch_norm(x, training, f"{scope}/BatchNorm", decay=0.9997))

    for i, width in enumerate(widths):
        stride = 2 if i in strided else 1
        if i == 0:
            x = layer(x, width, 3, stride, "Conv2d_0")
            continue
        x = layer(x, 0, 3, stride, f"Conv2d_{i}_depthwise", depthwise=True)
        x = layer(x, width, 1, 1, f"Conv2d_{i}_pointwise")
    return {"pooled": tf.reduce_mean(x, [1, 2])}


def resnet_v2_50(images, training):
    """TF-Slim's ResNet-50 v2 with a classifier, for pixels in [0, 1]."""
    tf = tensorflow()

    def norm(x, scope):
        return tf.nn.relu(batch_norm(x, training, scope, epsilon=1e-5, decay=0.997))

    x = conv(images * 2 - 1, 64, 7, 2, "resnet_v2_50/conv1", bias=True, padding="FIXED")
    x = tf.nn.max_pool2d(x, 3, 2, "SAME")
    for block, (units, width) in enumerate(
        zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True), start=1
    ):
        for unit in range(1, units + 1):
            stride = 2 if unit == units and block < 4 else 1
            scope = f"resnet_v2_50/block{block}/unit_{unit}/bottleneck_v2"
            active = norm(x, f"{scope}/preact")
            if x.shape[-1] == 4 * width:
                shortcut = tf.nn.max_pool2d(x, 1, stride, "SAME")
            else:
                name = f"{scope}/shortcut"
                shortcut = conv(active, 4 * width, 1, stride, name, bias=True)
            y = conv(active, width, 1, 1, f"{scope}/conv1")
            y = norm(y, f"{scope}/conv1/BatchNorm")
            padding = "FIXED" if stride > 1 else "SAME"
            y = conv(y, width, 3, stride, f"{scope}/conv2", padding=padding)
            y = norm(y, f"{scope}/conv2/BatchNorm")
            x = shortcut + conv(y, 4 * width, 1, 1, f"{scope}/conv3", bias=True)
    x = norm(x, "resnet_v2_50/postnorm")
    pooled = tf.reduce_mean(x, [1, 2], keepdims=True)
    logits = conv(pooled, 10, 1, 1, "resnet_v2_50/logits", bias=True)
    return {"pre_logits": pooled, "logits": tf.squeeze(logits, [1, 2])}


def vtab_resnet_50(images, training):
    """VTAB's ResNet-50 v2, with layers numbered by TensorFlow."""
    tf = tensorflow()
    counts = {"conv2d": 0, "batch_normalization": 0}

    def numbered(kind):
        number = counts[kind]
        counts[kind] += 1
        return f"module/{kind}_{number}" if number else f"module/{kind}"

    def convolve(x, width, size, stride):
        pad = [(size - 1) // 2, size // 2]
        if size > 1:
            x = tf.pad(x, [[0, 0], pad, pad, [0, 0]])
        shape = (size, size, int(x.shape[-1]), width)
        kernel = variable(f"{numbered('conv2d')}/kernel", shape)
        return tf.nn.conv2d(x, kernel, [1, stride, stride, 1], "VALID")

    def norm(x):
        scope = numbered("batch_normalization")
        return tf.nn.relu(batch_norm(x, training, scope, decay=0.99))

    x = convolve(images, 64, 7, 2)
    x = tf.nn.max_pool2d(tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]), 3, 2, "VALID")
    for block, (units, width) in enumerate(
        zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True)
    ):
        for unit in range(units):
            stride = 2 if block and not unit else 1
            active = norm(x)
            shortcut = convolve(active, 4 * width, 1, stride) if not unit else x
            y = convolve(active, width, 1, 1)
            y = convolve(norm(y), width, 3, stride)
            x = shortcut + convolve(norm(y), 4 * width, 1, 1)
    return {"pooled": tf.reduce_mean(norm(x), [1, 2])}
