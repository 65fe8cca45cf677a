"""SavedModels of TensorFlow 2 and what is refused of either format."""

import dataclasses
import tarfile

import flax.traverse_util
import jax
import numpy as np
import pytest

from rankckpt_jax import checkpoints
from rankckpt_jax.checkpoints.graphs import flat_graph as flat_lib
from rankckpt_jax.checkpoints.graphs import graph as graph_lib
from rankckpt_jax.data.lazy_tensorflow import tensorflow
from rankckpt_jax.errors import InputError
from tests.checkpoints import modules
from tests.checkpoints.sources.test_hub import _check_training, _close


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(size=(6, 24, 24, 3)).astype(np.float32)


def _module(**options):
    """A TF2 module of two convolutions with batch norm; options of `Small` below."""
    tf = tensorflow()

    class Small(tf.Module):
        def __init__(self, dropout=0.0, fused=True):
            super().__init__(name="small")
            random = np.random.default_rng(1)
            self.dropout, self.fused = dropout, fused
            self.layers = []
            for i, (inputs, outputs) in enumerate(((3, 8), (8, 12))):
                kernel = random.normal(0, 0.3, (3, 3, inputs, outputs))
                vectors = {
                    name: tf.Variable(
                        random.uniform(0.5, 1.5, outputs).astype(np.float32),
                        name=f"conv{i}/{name}",
                        trainable=name in ("gamma", "beta"),
                    )
                    for name in ("gamma", "beta", "moving_mean", "moving_variance")
                }
                kernel = tf.Variable(kernel.astype(np.float32), name=f"conv{i}/kernel")
                self.layers.append({"kernel": kernel, **vectors})

        def norm(self, x, layer, training):
            mean, var = layer["moving_mean"], layer["moving_variance"]
            scale = layer["gamma"], layer["beta"]
            if self.fused:
                if not training:
                    return tf.compat.v1.nn.fused_batch_norm(
                        x, *scale, mean, var, is_training=False
                    )[0]
                y, new_mean, new_var = tf.compat.v1.nn.fused_batch_norm(
                    x, *scale, mean, var, exponential_avg_factor=0.1
                )
            else:
                moments = (mean, var) if not training else tf.nn.moments(x, [0, 1, 2])
                y = tf.nn.batch_normalization(x, *moments, *scale[::-1], 1e-3)
                new_mean = mean * 0.9 + moments[0] * 0.1
                new_var = var * 0.9 + moments[1] * 0.1
            if training:
                mean.assign(new_mean)
                var.assign(new_var)
            return y

        @tf.function(
            input_signature=None,
            autograph=False,
        )
        def __call__(self, images, training=False):
            x = images
            for layer in self.layers:
                x = tf.nn.conv2d(x, layer["kernel"], 2, "SAME")
                x = tf.nn.silu(self.norm(x, layer, training))
            x = tf.reduce_mean(x, [1, 2])
            if training and self.dropout:
                x = tf.nn.dropout(x, self.dropout)
            return x

    return Small(**options)


def _save(directory, module, training=True, signatures=None):
    tf = tensorflow()
    spec = tf.TensorSpec([None, 24, 24, 3], tf.float32, "images")
    for flag in (False, True) if training else ():
        module.__call__.get_concrete_function(spec, training=flag)
    tf.saved_model.save(module, str(directory), signatures=signatures)
    return directory


@pytest.mark.parametrize("fused", [True, False])
def test_a_tf2_module_with_training(tmp_path, images, fused):
    directory = _save(tmp_path / "m", _module(fused=fused))
    reference = tensorflow().saved_model.load(str(directory))
    backbone = checkpoints.load_hub(directory)
    output = jax.jit(backbone.apply)(backbone.variables, images)
    _close(output.features, reference(images, training=False))
    assert set(backbone.variables["params"]["conv0"]) == {"kernel", "gamma", "beta"}
    features = reference(images, training=True)
    moved = {
        f"conv{i}/{name}": layer[name].numpy()
        for i, layer in enumerate(reference.layers)
        for name in ("moving_mean", "moving_variance")
    }
    _check_training(backbone, images, features, moved)


@pytest.mark.parametrize("fused", [True, False])
def test_moments_are_of_all_devices(tmp_path, images, fused):
    backbone = checkpoints.load_hub(_save(tmp_path / "m", _module(fused=fused)))
    apply = dataclasses.replace(backbone.apply, axis_name="batch")
    halves = images.reshape(2, 3, *images.shape[1:])
    output, stats = jax.vmap(
        lambda x: apply(backbone.variables, x, train=True), axis_name="batch"
    )(halves)
    whole, whole_stats = backbone.apply(backbone.variables, images, train=True)
    _close(output.features.reshape(6, -1), whole.features, 1e-5)
    jax.tree.map(lambda a, b: _close(a[1], b, 1e-5), stats, whole_stats)


def test_only_a_serving_function(tmp_path, images, caplog):
    tf = tensorflow()
    module = _module()

    class Server(tf.Module):
        def __init__(self):
            super().__init__()
            self.inner = module

    server = Server()
    spec = tf.TensorSpec([None, 24, 24, 3], tf.float32, "pixels")
    serve = tf.function(
        lambda pixels: {"feature_vector": module(pixels, training=False)},
        input_signature=[spec],
    )
    directory = _save(
        tmp_path / "m", server, training=False, signatures={"serving_default": serve}
    )
    backbone = checkpoints.load_hub(directory)
    assert "leaves its batch norm as it is" in caplog.text
    expected = module(images, training=False)
    _close(backbone.apply(backbone.variables, images).features, expected)
    # All that can be trained is, and the statistics stay.
    output, stats = backbone.apply(backbone.variables, images, train=True)
    _close(output.features, expected)
    jax.tree.map(
        np.testing.assert_array_equal, stats, backbone.variables["batch_stats"]
    )
    gradients = jax.grad(
        lambda params: (
            backbone.apply(
                {**backbone.variables, "params": params}, images, train=True
            )[0]
            .features[:, ::2]
            .sum()
        )
    )(backbone.variables["params"])
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients))


def test_dropout_draws_from_the_images(tmp_path, images):
    backbone = checkpoints.load_hub(_save(tmp_path / "m", _module(dropout=0.5)))

    def features(x):
        return np.asarray(backbone.apply(backbone.variables, x, train=True)[0].features)

    first = features(images)
    assert 0.2 < (first == 0).mean() < 0.8
    np.testing.assert_array_equal(features(images), first)
    assert ((features(images * 0.9) == 0) != (first == 0)).any()


def test_a_switch_that_is_a_tensor_is_named(tmp_path):
    tf = tensorflow()

    class Switched(tf.Module):
        @tf.function(
            input_signature=[
                tf.TensorSpec([None, 8, 8, 3], tf.float32, "images"),
                tf.TensorSpec([], tf.bool, "training"),
            ]
        )
        def __call__(self, images, training):
            return tf.reduce_mean(images, [1, 2]) * tf.where(training, 2.0, 1.0)

    tf.saved_model.save(Switched(), str(tmp_path / "m"))
    with pytest.raises(InputError, match="switch, 'training'(.|\n)*Python bool"):
        checkpoints.load_hub(tmp_path / "m")


def test_a_module_in_an_archive(tmp_path):
    directory = _save(tmp_path / "m", _module())
    with tarfile.open(tmp_path / "net.tar.gz", "w:gz") as archive:
        archive.add(directory, arcname="net")
    storage = checkpoints.download.Storage(tmp_path / "cache")
    backbone = checkpoints.load_hub(tmp_path / "net.tar.gz", storage=storage)
    assert backbone.name == "net"
    assert backbone.fingerprint == checkpoints.load_hub(directory).fingerprint


def _export(directory, network):
    """A TF1 module whose graph is `network(images)`'s."""
    modules.export_tf1(
        directory,
        lambda images, training: {"features": network(images)},
        24,
        signatures={"default": {"default": "features"}},
    )
    return directory


def _switched(images):
    v1 = tensorflow().compat.v1
    training = v1.placeholder(v1.bool, [], "is_training")
    scale = v1.where(training, 2.0, 1.0)
    return v1.reduce_mean(images, [1, 2]) * modules.variable("a", (3,)) * scale


def _branched(images):
    v1 = tensorflow().compat.v1
    pooled = v1.reduce_mean(images, [1, 2]) * modules.variable("a", (3,))
    with v1.Graph.control_dependencies(v1.get_default_graph(), []):
        v1.disable_control_flow_v2()
        try:
            return v1.cond(pooled[0, 0] > 0, lambda: pooled, lambda: -pooled)
        finally:
            v1.enable_control_flow_v2()


def _unsupported(images):
    tf = tensorflow()
    pooled = tf.reduce_mean(images, [1, 2]) * modules.variable("a", (3,))
    return tf.raw_ops.Betainc(a=pooled, b=pooled, x=pooled)


def _two_inputs(images):
    v1 = tensorflow().compat.v1
    return v1.reduce_mean(images, [1, 2]) * v1.placeholder(v1.float32, [3], "other")


@pytest.mark.parametrize(
    ("network", "says"),
    [
        (_switched, "switch, 'is_training'(.|\n)*Python bool"),
        (_branched, "control flow: (Switch|Merge)(.|\n)*Python's `if`"),
        (_unsupported, "without a counterpart in JAX: Betainc"),
        (_two_inputs, "another input than the images: 'other'"),
    ],
)
def test_what_cannot_be_converted_is_named(tmp_path, network, says):
    with pytest.raises(InputError, match=says):
        checkpoints.load_hub(_export(tmp_path / "m", network))


def _python(images):
    tf = tensorflow()

    def touch(x):
        raise AssertionError("it ran")

    pooled = tf.reduce_mean(images, [1, 2])
    return tf.reshape(tf.numpy_function(touch, [pooled], tf.float32), [-1, 3])


def _reading(images):
    tf = tensorflow()
    data = tf.io.decode_raw(tf.io.read_file("/etc/hostname"), tf.uint8)
    return tf.reduce_mean(images, [1, 2]) + tf.cast(data[0], tf.float32)


@pytest.mark.parametrize(
    ("network", "operation"), [(_python, "PyFunc"), (_reading, "ReadFile")]
)
def test_tf1_modules_that_could_do_harm_are_refused(tmp_path, network, operation):
    with pytest.raises(InputError, match=f"run code(.|\n)*{operation}"):
        checkpoints.load_hub(_export(tmp_path / "m", network))


def test_a_saved_model_that_writes_files_is_refused_before_it_is_loaded(
    tmp_path, monkeypatch
):
    tf = tensorflow()

    class Writing(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 3], tf.float32)])
        def __call__(self, images):
            tf.io.write_file(str(tmp_path / "evil"), "x")
            return tf.reduce_mean(images, [1, 2])

    tf.saved_model.save(Writing(), str(tmp_path / "m"))
    monkeypatch.setattr(tf.saved_model, "load", lambda *_: pytest.fail("loaded"))
    with pytest.raises(InputError, match="WriteFile"):
        checkpoints.load_hub(tmp_path / "m")
    assert not (tmp_path / "evil").exists()


def test_damaged_modules(tmp_path, images):
    directory = _save(tmp_path / "m", _module())
    proto = (directory / "saved_model.pb").read_bytes()
    (directory / "saved_model.pb").write_bytes(proto[: len(proto) // 2])
    with pytest.raises(InputError, match="cannot be read"):
        checkpoints.load_hub(directory)
    (directory / "saved_model.pb").write_bytes(proto)
    data = directory / "variables" / "variables.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(InputError, match="cannot be read"):
        checkpoints.load_hub(directory)


def test_a_module_of_an_unknown_format(tmp_path):
    directory = tmp_path / "m"
    modules.export_tf1(
        directory, modules.small, 24, signatures={"default": {"default": "pooled"}}
    )
    (directory / "tfhub_module.pb").write_bytes(b"\x08\x07")
    with pytest.raises(InputError, match="unknown format"):
        checkpoints.load_hub(directory)


def test_missing_variables_are_named(tmp_path):
    directory = tmp_path / "m"
    modules.export_tf1(
        directory, modules.small, 24, signatures={"default": {"default": "pooled"}}
    )
    for file in (directory / "variables").iterdir():
        file.unlink()
    with pytest.raises(InputError, match="net/conv1/weights"):
        checkpoints.load_hub(directory)


def test_the_graph_of_a_call_is_flat(tmp_path):
    tf = tensorflow()

    @tf.function
    def inner(x, y):
        return x + 1, x * y

    @tf.function
    def outer(x):
        first, second = inner(x, 2 * x)
        return inner(second, first)[1]

    function = outer.get_concrete_function(tf.TensorSpec([None, 2, 2, 3], tf.float32))
    flat = flat_lib.flatten(function.graph.as_graph_def())
    assert {node.op for node in flat.nodes.values()} <= {
        *("Placeholder", "Identity", "Const", "AddV2", "Mul")
    }
    graph = graph_lib.extract(
        flat,
        images=function.inputs[0].name,
        features=function.outputs[0].name,
        slots={},
    )
    from rankckpt_jax.checkpoints.graphs import jax_operations

    x = np.random.default_rng(0).normal(size=(2, 2, 2, 3)).astype(np.float32)
    features, _ = jax_operations.convert(graph)([], x, jax.random.key(0))
    np.testing.assert_allclose(features, outer(x), rtol=1e-6)
    assert not flax.traverse_util.flatten_dict(dict(graph.variables))
