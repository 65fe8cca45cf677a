"""Harmful modules are refused before anything of them is loaded."""

import numpy as np
import pytest

from rankckpt_jax import checkpoints
from rankckpt_jax.checkpoints.tensorflow_files import tf_op_allowlist
from rankckpt_jax.data.lazy_tensorflow import tensorflow
from rankckpt_jax.errors import InputError
from tests.checkpoints import modules

SIZE = 8


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """A file that must not be written; loading a module fails the test."""
    tf = tensorflow()
    monkeypatch.setattr(tf.saved_model, "load", lambda *_: pytest.fail("loaded"))
    yield str(tmp_path / "evil")
    assert not (tmp_path / "evil").exists()


def _nested(tf, path):
    @tf.function
    def inner():
        tf.io.write_file(path, "x")
        return 1.0

    @tf.function
    def outer():
        return inner() * 2.0

    return lambda images: tf.reduce_mean(images, [1, 2]) * outer()


def _in_a_loop(tf, path):
    def body(i, x):
        with tf.control_dependencies(
            [tf.raw_ops.WriteFile(filename=path, contents="")]
        ):
            return i + 1, x * 2.0

    def call(images):
        pooled = tf.reduce_mean(images, [1, 2])
        return tf.while_loop(lambda i, _: i < 3, body, (0, pooled))[1]

    return call


def _in_a_gradient(tf, path):
    @tf.custom_gradient
    def twice(x):
        def gradient(upstream):
            tf.io.write_file(path, "x")
            return upstream * 2.0

        return x * 2.0, gradient

    return lambda images: twice(tf.reduce_mean(images, [1, 2]))


def _python(tf, path):
    def run(x):
        open(path, "w").close()
        return x

    return lambda images: tf.numpy_function(
        run, [tf.reduce_mean(images, [1, 2])], tf.float32
    )


def _saving(tf, path):
    """The operations of every export, but in a function that would run."""

    def call_restoring_from_elsewhere(images):
        tf.raw_ops.SaveV2(
            prefix=path,
            tensor_names=["a"],
            shape_and_slices=[""],
            tensors=[tf.constant(1.0)],
        )
        return tf.reduce_mean(images, [1, 2])

    return call_restoring_from_elsewhere


def _printing(tf, path):
    def call(images):
        tf.print(images, output_stream=f"file://{path}")
        return tf.reduce_mean(images, [1, 2])

    return call


def _save(directory, call, **attributes):
    tf = tensorflow()
    module = tf.Module()
    spec = tf.TensorSpec([None, SIZE, SIZE, 3], tf.float32)
    module.__dict__["__call__"] = tf.function(call, input_signature=[spec])
    for name, value in attributes.items():
        setattr(module, name, value)
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=True)
    tf.saved_model.save(module, str(directory), options=options)
    return directory


@pytest.mark.parametrize(
    ("made", "operation"),
    [
        (_nested, "WriteFile in function __inference_inner"),
        (_in_a_loop, "WriteFile in function while_body"),
        (_in_a_gradient, "WriteFile in function __inference_"),
        (_python, "PyFunc"),
        (_saving, "SaveV2 in function"),
        (_printing, "PrintV2"),
    ],
)
def test_load_hub_refuses_a_hidden_operation(tmp_path, evil, made, operation):
    directory = _save(tmp_path / "m", made(tensorflow(), evil))
    with pytest.raises(InputError, match=operation):
        checkpoints.load_hub(directory)


def test_load_hub_refuses_saving_in_a_function_named_like_a_saver(tmp_path, evil):
    """TensorFlow's loader runs restore functions, whose names the file chooses."""
    directory = _save(tmp_path / "m", _saving(tensorflow(), evil))
    message = _read(directory)
    (graph,) = message.meta_graphs
    names = list(graph.object_graph_def.concrete_functions)
    text = message.SerializeToString()
    for name in names:
        # Of the same length, so that the file stays intact.
        text = text.replace(name.encode(), _disguised(name).encode())
    (directory / "saved_model.pb").write_bytes(text)
    with pytest.raises(InputError, match="SaveV2 in function __inference__traced_save"):
        checkpoints.load_hub(directory)


def _disguised(name):
    start = "__inference__traced_save"
    return (start + name[len("__inference_") :])[: len(name)].ljust(len(name), "_")


def _read(directory):
    from tensorflow.core.protobuf import saved_model_pb2

    file = directory / "saved_model.pb"
    return saved_model_pb2.SavedModel.FromString(file.read_bytes())


def test_load_hub_refuses_a_table_filled_from_a_file(tmp_path, evil):
    tf = tensorflow()
    (tmp_path / "words").write_text("a\nb\n")
    initializer = tf.lookup.TextFileInitializer(
        str(tmp_path / "words"),
        tf.string,
        tf.lookup.TextFileIndex.WHOLE_LINE,
        tf.int64,
        tf.lookup.TextFileIndex.LINE_NUMBER,
    )
    table = tf.lookup.StaticHashTable(initializer, -1)
    directory = _save(tmp_path / "m", lambda x: tf.reduce_mean(x, [1, 2]), table=table)
    with pytest.raises(InputError, match="InitializeTableFromTextFileV2"):
        checkpoints.load_hub(directory)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/../../b"])
def test_load_hub_refuses_an_asset_outside_the_module(tmp_path, evil, name):
    from tensorflow.core.protobuf import saved_model_pb2

    message = saved_model_pb2.SavedModel()
    message.meta_graphs.add().asset_file_def.add(filename=name)
    (tmp_path / "saved_model.pb").write_bytes(message.SerializeToString())
    with pytest.raises(InputError, match="outside its own directory"):
        checkpoints.load_hub(tmp_path)


def test_load_hub_refuses_an_initializer_of_a_tf1_module(tmp_path, evil):
    """A collection of the graph names the node, as `saved_model_init_op` does."""
    v1 = tensorflow().compat.v1
    builder = v1.saved_model.Builder(str(tmp_path / "m"))
    with v1.Graph().as_default(), v1.Session() as session:
        images = v1.placeholder(v1.float32, [None, SIZE, SIZE, 3])
        outputs = v1.reduce_mean(images, [1, 2]) * modules.variable("a", (3,))
        session.run(v1.global_variables_initializer())
        signature = v1.saved_model.predict_signature_def(
            {"images": images}, {"default": outputs}
        )
        builder.add_meta_graph_and_variables(
            session,
            [],
            {"default": signature},
            main_op=v1.raw_ops.WriteFile(filename=evil, contents="x"),
        )
    builder.save()
    with pytest.raises(InputError, match="WriteFile in the graph"):
        checkpoints.load_hub(tmp_path / "m")


def test_check_operations_refuses_a_function_named_like_an_operation(tmp_path):
    """It would run instead of the operation."""
    from tensorflow.core.protobuf import meta_graph_pb2

    graph = meta_graph_pb2.MetaGraphDef()
    graph.graph_def.library.function.add().signature.name = "Relu"
    with pytest.raises(InputError, match="Relu in a function's name"):
        tf_op_allowlist.check_operations([graph], "m")


def test_check_operations_accepts_pure_modules_of_both_formats(tmp_path):
    tf = tensorflow()
    variable = tf.Variable(np.ones(3, np.float32))
    table = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(["a"], [1]), -1
    )
    _save(
        tmp_path / "m",
        lambda images: tf.reduce_mean(images, [1, 2]) * variable,
        variable=variable,
        table=table,
    )
    signatures = {"default": {"default": "pooled"}}
    modules.export_tf1(tmp_path / "h", modules.small, 24, signatures=signatures)
    for name in "m", "h":
        graphs = list(_read(tmp_path / name).meta_graphs)
        assert all("SaveV2" in str(graph) for graph in graphs)
        tf_op_allowlist.check_operations(graphs, name)


def test_computing_lists_existing_operations_and_all_of_tf2jax():
    """Review an operation that is new in tf2jax before adding it."""
    tensorflow()
    from tensorflow.python.framework import op_def_registry
    from tf2jax._src import ops

    known = tf_op_allowlist.COMPUTING | tf_op_allowlist.SAVING
    assert [name for name in known if op_def_registry.get(name) is None] == []
    assert set(ops._jax_ops) - tf_op_allowlist.COMPUTING == {"XlaCallModule"}


def test_computing_lists_no_operation_of_files_streams_or_python():
    """Judged by the names of the arguments and the kinds of operations."""
    tensorflow()
    from tensorflow.python.framework import op_def_registry

    suspicious = ("file", "path", "address", "prefix", "token", "url", "host")
    for name in tf_op_allowlist.COMPUTING:
        definition = op_def_registry.get(name)
        arguments = [a.name for a in (*definition.input_arg, *definition.attr)]
        for argument in arguments:
            assert not any(part in argument for part in suspicious), (name, argument)
        for part in "Py", "Dataset", "Reader", "Iterator", "Send", "Recv", "Queue":
            assert part not in name, name
