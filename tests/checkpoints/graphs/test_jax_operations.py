import jax
import numpy as np
import pytest

from rankckpt_jax.checkpoints.graphs import jax_operations
from rankckpt_jax.data.lazy_tensorflow import tensorflow

PADS = [[0, 0], [1, 2], [3, 0], [0, 0]]


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).normal(3, 2, (4, 6, 8, 12)).astype(np.float32)


def _node(function, x):
    """Return the only computing node of a function's graph."""
    tf = tensorflow()
    concrete = tf.function(function, autograph=False).get_concrete_function(
        tf.TensorSpec(None, x.dtype)
    )
    plain = ("Placeholder", "Identity", "Const", "NoOp")
    (node,) = [n for n in concrete.graph.as_graph_def().node if n.op not in plain]
    return node


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("MirrorPad", lambda tf, x: tf.pad(x, PADS, "REFLECT")),
        ("MirrorPad", lambda tf, x: tf.pad(x, PADS, "SYMMETRIC")),
        ("AvgPool", lambda tf, x: tf.nn.avg_pool2d(x, 3, 2, "SAME")),
        ("AvgPool", lambda tf, x: tf.nn.avg_pool2d(x, (2, 3), 1, "SAME")),
        ("AvgPool", lambda tf, x: tf.nn.avg_pool2d(x, 3, 2, "VALID")),
        ("DepthToSpace", lambda tf, x: tf.nn.depth_to_space(x, 2)),
        ("SpaceToDepth", lambda tf, x: tf.nn.space_to_depth(x, 2)),
        ("Selu", lambda tf, x: tf.nn.selu(x)),
        ("Softsign", lambda tf, x: tf.nn.softsign(x)),
    ],
)
def test_extra_operations_match_tensorflow(x, name, call):
    tf = tensorflow()
    node = _node(lambda x: call(tf, x), x)
    assert node.op == name
    arguments = (x, np.asarray(PADS)) if name == "MirrorPad" else (x,)
    result = jax_operations._EXTRA[name](node)(*arguments)
    np.testing.assert_allclose(result, call(tf, x), rtol=1e-6, atol=1e-6)


def _conv_node(op, **attributes):
    """Return a node with TensorFlow's default attributes, except for these."""
    node = tensorflow().compat.v1.NodeDef(op=op, name="conv")
    given = {"strides": [1] * 4, "dilations": [1] * 4, **attributes}
    for name in ("strides", "dilations", "explicit_paddings"):
        node.attr[name].list.i.extend(given.get(name, []))
    node.attr["padding"].s = given.get("padding", "SAME").encode()
    node.attr["data_format"].s = given.get("data_format", "NHWC").encode()
    return node


@pytest.mark.parametrize("groups", [1, 4, 12])
@pytest.mark.parametrize("multiplier", [1, 2])
@pytest.mark.parametrize(
    "attributes",
    [
        {"strides": [1, 2, 2, 1]},
        {"padding": "VALID", "dilations": [1, 2, 1, 1]},
        {"padding": "EXPLICIT", "explicit_paddings": [0, 0, 2, 0, 1, 3, 0, 0]},
    ],
)
def test_conv_matches_tensorflow(x, groups, multiplier, attributes):
    tf = tensorflow()
    kernel = np.random.default_rng(1).normal(size=(3, 2, 12 // groups, groups * 4))
    kernel = kernel[..., : groups * multiplier].astype(np.float32)
    options = {"strides": [1] * 4, "padding": "SAME", **attributes}
    # TensorFlow on a CPU has no grouped convolution outside of a compiled function.
    expected = tf.function(
        lambda x, kernel: tf.raw_ops.Conv2D(input=x, filter=kernel, **options),
        jit_compile=True,
    )(x, kernel)
    conv = jax_operations._EXTRA["Conv2D"](_conv_node("Conv2D", **attributes))
    # Sums of up to 72 float32 products in another order.
    np.testing.assert_allclose(conv(x, kernel), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "attributes",
    [
        {"strides": [1, 2, 2, 1]},
        {"padding": "VALID", "dilations": [1, 2, 2, 1]},
        {"padding": "EXPLICIT", "explicit_paddings": [0, 0, 2, 0, 1, 3, 0, 0]},
    ],
)
def test_depthwise_conv_matches_tensorflow(x, attributes):
    tf = tensorflow()
    kernel = np.random.default_rng(1).normal(size=(3, 3, 12, 2)).astype(np.float32)
    op = "DepthwiseConv2dNative"
    conv = jax_operations._EXTRA[op](_conv_node(op, **attributes))
    padding = attributes.get("padding", "SAME")
    pads = attributes.get("explicit_paddings", [])
    # Not the operation itself: TensorFlow's kernels for CPUs do not all dilate.
    expected = tf.nn.depthwise_conv2d(
        x,
        kernel,
        attributes.get("strides", [1] * 4),
        [pads[i : i + 2] for i in range(0, 8, 2)] if pads else padding,
        dilations=attributes.get("dilations", [1] * 4)[1:3],
    )
    np.testing.assert_allclose(conv(x, kernel), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("op", ["Conv2D", "DepthwiseConv2dNative"])
def test_conv_is_equal_for_both_channel_orders(x, op):
    kernel = np.random.default_rng(1).normal(size=(3, 3, 12, 1)).astype(np.float32)
    pads = [0, 0, 2, 0, 1, 3, 0, 0]
    last = {"strides": [1, 2, 2, 1], "padding": "EXPLICIT", "explicit_paddings": pads}
    first = {
        "data_format": "NCHW",
        "strides": [1, 1, 2, 2],
        "padding": "EXPLICIT",
        "explicit_paddings": [0, 0, 0, 0, *pads[2:6]],
    }
    expected = jax_operations._EXTRA[op](_conv_node(op, **last))(x, kernel)
    conv = jax_operations._EXTRA[op](_conv_node(op, **first))
    actual = conv(np.moveaxis(x, -1, 1), kernel)
    np.testing.assert_array_equal(np.moveaxis(actual, 1, -1), expected)


def test_average_pool_has_a_gradient_and_constant_counts(x):
    tf = tensorflow()
    node = _node(lambda x: tf.nn.avg_pool2d(x, 3, 2, "SAME"), x)
    pool = jax_operations._EXTRA["AvgPool"](node)
    with tf.GradientTape() as tape:
        variable = tf.Variable(x)
        loss = tf.reduce_sum(tf.nn.avg_pool2d(variable, 3, 2, "SAME") ** 2)
    gradient = jax.jit(jax.grad(lambda x: (pool(x) ** 2).sum()))(x)
    np.testing.assert_allclose(gradient, tape.gradient(loss, variable), rtol=1e-5)
    # XLA would compute the counts while compiling, for seconds per layer.
    assert str(jax.make_jaxpr(pool)(x)).count("reduce_window") == 1


@pytest.mark.parametrize("factor", [1.0, 0.25])
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_matches_tensorflow(x, training, factor):
    tf = tensorflow()
    random = np.random.default_rng(1)
    scale, offset, mean, var = random.uniform(0.5, 2, (4, 12)).astype(np.float32)

    def norm(x):
        return tf.raw_ops.FusedBatchNormV3(
            x=x,
            scale=scale,
            offset=offset,
            mean=mean,
            variance=var,
            epsilon=1e-3,
            exponential_avg_factor=factor,
            is_training=training,
        )

    node = _node(lambda x: norm(x)[:3], x)
    outputs = jax_operations._batch_norm(None, node)(x, scale, offset, mean, var)
    for actual, expected in zip(outputs[:3], norm(x)[:3], strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def _batch_norm(order, x, *vectors):
    """Apply batch norm in training mode, exported without an averaging factor."""
    node = tensorflow().compat.v1.NodeDef(op="FusedBatchNorm", name="norm")
    node.attr["is_training"].b = True
    node.attr["epsilon"].f = 1e-3
    node.attr["data_format"].s = order
    return jax_operations._batch_norm(None, node)(x, *vectors)


def test_batch_norm_without_averaging_factor_returns_the_batch_moments(x):
    empty, ones = np.zeros(0, np.float32), np.ones(12, np.float32)
    _, mean, var, *_ = _batch_norm(b"NHWC", x, ones, ones, empty, empty)
    np.testing.assert_allclose(mean, x.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(var, x.var((0, 1, 2), ddof=1), rtol=1e-5)


def test_batch_norm_is_equal_for_both_channel_orders(x):
    vectors = [np.full(12, value, np.float32) for value in (2, 1, 0, 1)]
    last = _batch_norm(b"NHWC", x, *vectors)
    first = _batch_norm(b"NCHW", np.moveaxis(x, -1, 1), *vectors)
    np.testing.assert_allclose(np.moveaxis(first[0], 1, -1), last[0], atol=1e-5)
    np.testing.assert_allclose(first[2], last[2], rtol=1e-5)


def test_overridden_restores_the_operations_of_tf2jax():
    tensorflow()
    from tf2jax._src import ops

    originals = dict(ops._jax_ops)
    with pytest.raises(KeyError), jax_operations.overridden("batch"):
        assert ops._jax_ops["Mean"] is not originals["Mean"]
        assert "Selu" in ops._jax_ops
        raise KeyError
    assert ops._jax_ops == originals
