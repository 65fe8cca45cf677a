import shutil
import tarfile

import jax
import numpy as np
import pytest

from rankckpt_jax import checkpoints
from rankckpt_jax.checkpoints.graphs import flat_graph, jax_function, pure_graph
from rankckpt_jax.data.lazy_tensorflow import tensorflow
from rankckpt_jax.errors import InputError
from tests.checkpoints import modules
from tests.checkpoints.modules import assert_close


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(size=(6, 24, 24, 3)).astype(np.float32)


def _module(dropout=0.0, fused=True):
    """A TF2 module of two convolutions with batch norm."""
    tf = tensorflow()

    class Small(tf.Module):
        def __init__(self):
            super().__init__(name="small")
            random = np.random.default_rng(1)
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
            if fused:
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

        @tf.function(autograph=False)
        def __call__(self, images, training=False):
            x = images
            for layer in self.layers:
                x = tf.nn.conv2d(x, layer["kernel"], 2, "SAME")
                x = tf.nn.silu(self.norm(x, layer, training))
            x = tf.reduce_mean(x, [1, 2])
            return tf.nn.dropout(x, dropout) if training and dropout else x

    return Small()


def _save(directory, module, training=True, signatures=None):
    tf = tensorflow()
    spec = tf.TensorSpec([None, 24, 24, 3], tf.float32, "images")
    for flag in (False, True) if training else ():
        module.__call__.get_concrete_function(spec, training=flag)
    tf.saved_model.save(module, str(directory), signatures=signatures)
    return directory


@pytest.fixture(scope="module", params=["fused", "unfused"])
def saved(request, tmp_path_factory):
    """A SavedModel with batch norm as one operation, or as several."""
    directory = tmp_path_factory.mktemp(request.param) / "net"
    return _save(directory, _module(fused=request.param == "fused"))


@pytest.fixture(scope="module")
def loaded(saved):
    return checkpoints.load_hub(saved)


def test_load_hub_of_a_tf2_module_matches_tensorflow(saved, loaded, images):
    reference = tensorflow().saved_model.load(str(saved))
    output = jax.jit(loaded.apply)(loaded.variables, images)
    assert_close(output.features, reference(images, training=False))
    assert set(loaded.variables["params"]["conv0"]) == {"kernel", "gamma", "beta"}
    features = reference(images, training=True)
    updated = {
        f"conv{i}/{name}": layer[name].numpy()
        for i, layer in enumerate(reference.layers)
        for name in ("moving_mean", "moving_variance")
    }
    modules.assert_training_step(loaded, images, features, updated)


def test_apply_averages_moments_over_devices(loaded, images):
    modules.assert_moments_of_all_devices(loaded, images)


def test_load_hub_without_a_training_graph_keeps_statistics(tmp_path, images, caplog):
    tf = tensorflow()
    module, server = _module(), tf.Module()
    server.inner = module
    serve = tf.function(
        lambda pixels: {"feature_vector": module(pixels, training=False)},
        input_signature=[tf.TensorSpec([None, 24, 24, 3], tf.float32, "pixels")],
    )
    directory = _save(
        tmp_path / "m", server, training=False, signatures={"serving_default": serve}
    )
    backbone = checkpoints.load_hub(directory)
    assert "no graph for training" in caplog.text

    def loss(params):
        variables = {**backbone.variables, "params": params}
        output, stats = backbone.apply(variables, images, train=True)
        return output.features[:, ::2].sum(), (output.features, stats)

    step = jax.jit(jax.grad(loss, has_aux=True))
    gradients, (features, stats) = step(backbone.variables["params"])
    assert_close(features, module(images, training=False))
    jax.tree.map(
        np.testing.assert_array_equal, stats, backbone.variables["batch_stats"]
    )
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients))


def test_apply_draws_dropout_by_the_key(tmp_path, images):
    backbone = checkpoints.load_hub(_save(tmp_path / "m", _module(dropout=0.5)))

    @jax.jit
    def is_dropped(images, seed):
        key = jax.random.key(seed)
        output, _ = backbone.apply(backbone.variables, images, train=True, key=key)
        return output.features == 0

    first = is_dropped(images, 1)
    assert 0.2 < first.mean() < 0.8
    np.testing.assert_array_equal(is_dropped(images * 0.9, 1), first)
    assert (is_dropped(images, 2) != first).any()


def test_load_hub_names_a_tensor_that_switches_training(tmp_path):
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
    with pytest.raises(InputError, match="'training', to switch(.|\n)*Python bool"):
        checkpoints.load_hub(tmp_path / "m")


def test_load_hub_of_an_archive(saved, loaded, tmp_path):
    with tarfile.open(tmp_path / "net.tar.gz", "w:gz") as archive:
        archive.add(saved, arcname="net")
    storage = checkpoints.download.Storage(tmp_path / "cache")
    backbone = checkpoints.load_hub(tmp_path / "net.tar.gz", storage=storage)
    assert backbone.name == loaded.name == "net"
    assert backbone.fingerprint == loaded.fingerprint


def _pooled(tf, images):
    return tf.reduce_mean(images, [1, 2]) * modules.variable("a", (3,))


def _switched(tf, images):
    training = tf.compat.v1.placeholder(tf.bool, [], "is_training")
    return _pooled(tf, images) * tf.where(training, 2.0, 1.0)


def _branched(tf, images):
    v1 = tf.compat.v1
    pooled = _pooled(tf, images)
    v1.disable_control_flow_v2()
    try:
        return v1.cond(pooled[0, 0] > 0, lambda: pooled, lambda: -pooled)
    finally:
        v1.enable_control_flow_v2()


def _unsupported(tf, images):
    pooled = _pooled(tf, images)
    return tf.raw_ops.Betainc(a=pooled, b=pooled, x=pooled)


def _two_inputs(tf, images):
    return _pooled(tf, images) * tf.compat.v1.placeholder(tf.float32, [3], "other")


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (_switched, "'is_training', to switch(.|\n)*Python bool"),
        (_branched, "control flow: (Switch|Merge)(.|\n)*Python's `if`"),
        (_unsupported, "without a counterpart in JAX: Betainc"),
        (_two_inputs, "another input than the images: 'other'"),
    ],
)
def test_load_hub_names_the_refused_operation(tmp_path, network, message):
    modules.export_tf1(
        tmp_path / "m",
        lambda images, training: {"features": network(tensorflow(), images)},
        24,
        signatures={"default": {"default": "features"}},
    )
    with pytest.raises(InputError, match=message):
        checkpoints.load_hub(tmp_path / "m")


@pytest.mark.parametrize(
    ("file", "size", "message"),
    [
        ("saved_model.pb", -100, "cannot be read"),
        ("variables/variables.data-00000-of-00001", 100, "cannot be read"),
        ("variables/variables.index", None, "net/conv1/weights"),
    ],
)
def test_load_hub_names_a_damaged_file(small, tmp_path, file, size, message):
    directory = tmp_path / "m"
    shutil.copytree(small.directory, directory)
    path = directory / file
    data = path.read_bytes()
    path.unlink()
    if size is not None:
        path.write_bytes(data[:size])
    with pytest.raises(InputError, match=message):
        checkpoints.load_hub(directory)


def test_load_hub_checks_variables_before_tensorflow_loads_them(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "m")
    data = tmp_path / "m" / "variables" / "variables.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(InputError, match="cannot be read"):
        checkpoints.load_hub(tmp_path / "m")


def test_load_hub_refuses_a_module_of_an_unknown_format(small, tmp_path):
    shutil.copytree(small.directory, tmp_path / "m")
    (tmp_path / "m" / "tfhub_module.pb").write_bytes(b"\x08\x07")
    with pytest.raises(InputError, match="unknown format"):
        checkpoints.load_hub(tmp_path / "m")


def test_flatten_inlines_function_calls():
    tf = tensorflow()

    @tf.function
    def inner(x, y):
        return x + 1, x * y

    @tf.function
    def outer(x):
        first, second = inner(x, 2 * x)
        return inner(second, first)[1]

    function = outer.get_concrete_function(tf.TensorSpec([None, 2, 2, 3], tf.float32))
    flat = flat_graph.flatten(function.graph.as_graph_def())
    assert {node.op for node in flat.nodes.values()} <= {
        *("Placeholder", "Identity", "Const", "AddV2", "Mul")
    }
    graph = pure_graph.extract(
        flat,
        images=function.inputs[0].name,
        features=function.outputs[0].name,
        paths={},
        dtypes={},
    )
    x = np.random.default_rng(0).normal(size=(2, 2, 2, 3)).astype(np.float32)
    features, updates = jax_function.convert(graph)([], x, jax.random.key(0))
    np.testing.assert_allclose(features, outer(x), rtol=1e-6)
    assert graph.variables == () and updates == {}


def test_read_of_a_checkpoint_of_objects_finds_variables_by_name(tmp_path, any_size):
    # Keras of TensorFlow 1.15 exports a graph of TensorFlow 1 with such a checkpoint.
    tf = tensorflow()
    directory = tmp_path / "module"
    shutil.copytree(any_size.directory, directory)
    values = tf.train.load_checkpoint(str(directory / "variables/variables"))
    names = list(values.get_variable_to_shape_map())
    variables = [tf.Variable(values.get_tensor(name), name=name) for name in names]
    shutil.rmtree(directory / "variables")
    tf.train.Checkpoint(layers=variables).write(str(directory / "variables/variables"))
    backbone = checkpoints.load_hub(directory, image_size=24)
    output = jax.jit(backbone.apply)(backbone.variables, any_size.images)
    assert_close(output.features, any_size.evaluated["pre_logits"][:, 0, 0])
