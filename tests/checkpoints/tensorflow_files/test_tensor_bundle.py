"""TensorFlow's checkpoint files, damaged by chance and on purpose.

With right checksums over wrong contents TensorFlow's own reader ends the process (it
did for half of such files); so nothing of the kind may reach it. A test that fails here
may therefore end pytest; the slow one looks on from another process.
"""

import resource
import shutil
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rankckpt_jax.checkpoints.tensorflow_files import checkpoint_files as files
from rankckpt_jax.checkpoints.tensorflow_files import tensor_bundle
from rankckpt_jax.data.lazy_tensorflow import tensorflow
from rankckpt_jax.errors import InputError

FOOTER = 48
VALUES = {
    f"net/conv{i}/{name}": np.random.default_rng(i).normal(size=shape).astype("f4")
    for i in range(4)
    for name, shape in (("weights", (3, 3, 3, 4)), ("biases", (4,)), ("step", ()))
}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A small checkpoint's prefix; its files stay as they are."""
    prefix = tmp_path_factory.mktemp("original") / "model.ckpt"
    files.write(prefix, VALUES)
    return prefix


@pytest.fixture(scope="module")
def first_format(tmp_path_factory):
    """The same in format V1: one file."""
    v1 = tensorflow().compat.v1
    path = tmp_path_factory.mktemp("first") / "model.ckpt"
    with v1.Graph().as_default(), v1.Session() as session:
        variables = [v1.Variable(v, name=k) for k, v in VALUES.items()]
        session.run(v1.global_variables_initializer())
        saver = v1.train.Saver(variables, write_version=v1.train.SaverDef.V1)
        saver.save(session, str(path), write_meta_graph=False)
    return path


def _copied(original, folder):
    for path in original.parent.glob(f"{original.name}*"):
        shutil.copy(path, folder / path.name)
    return folder / original.name


def test_the_index_says_what_tensorflow_says(original):
    found = tensor_bundle.read(str(original))
    reader = tensorflow().train.load_checkpoint(str(original))
    assert {name: list(entry.shape) for name, entry in found.items()} == (
        reader.get_variable_to_shape_map()
    )
    tensor_bundle.check(str(original))
    values = files.read_any(str(original), VALUES)
    for name, value in VALUES.items():
        np.testing.assert_array_equal(values[name], value)


def test_texts_and_many_variables_are_read(tmp_path):
    """More than a block of them, and of types whose size follows from the values."""
    tf = tensorflow()
    values = {
        f"layer_with_a_long_name_{i:04}/kernel": np.ones(i % 3) for i in range(900)
    }
    values |= {"texts": np.array([b"", b"a", b"bc"]), "flags": np.array([True, False])}
    values |= {"half": tf.cast(tf.ones(3), tf.bfloat16)}
    files.write(tmp_path / "m", values)
    found = tensor_bundle.read(str(tmp_path / "m"))
    assert found.keys() == values.keys()
    tensor_bundle.check(str(tmp_path / "m"))
    assert list(files.read_any(str(tmp_path / "m"), ["texts"])["texts"]) == [
        *(b"", b"a", b"bc")
    ]


def _blocks(data):
    """(start, size) of the block of blocks, and of the blocks that it names."""
    footer = data[-FOOTER:]
    at, handle = 0, []
    for _ in range(4):
        number, at = tensor_bundle._number(footer, at)
        handle.append(number)
    found = [(handle[2], handle[3])]
    for _, value in tensor_bundle._block(data, *found[0]):
        start, at = tensor_bundle._number(value, 0)
        found.append((start, tensor_bundle._number(value, at)[0]))
    return found


def _forged(data, blocks):
    """With checksums that are right."""
    data = bytearray(data)
    for start, size in blocks:
        checked = bytes(data[start : start + size + 1])
        checksum = tensor_bundle._masked(tensor_bundle._crc32c(checked))
        data[start + size + 1 : start + size + 5] = struct.pack("<I", checksum)
    return bytes(data)


@st.composite
def _changes(draw):
    """A function that cuts, flips, overwrites or copies bytes."""
    kind = draw(st.sampled_from(["cut", "bits", "bits", "fill", "splice"]))
    places = draw(st.lists(st.floats(0, 1, exclude_max=True), min_size=3, max_size=3))
    count = draw(st.integers(1, 40))
    value = draw(st.integers(0, 255))

    def change(data):
        data = bytearray(data)
        at, other, third = (int(place * len(data)) for place in places)
        if kind == "cut":
            return bytes(data[:at])
        if kind == "bits":
            for place in (at, other, third)[: 1 + count % 3]:
                data[place] ^= 1 << value % 8
        elif kind == "fill":
            data[at : at + count] = bytes([value]) * len(data[at : at + count])
        else:
            data[at : at + count] = data[other : other + count]
        return bytes(data)

    return change


def _read_all(prefix):
    """Whether everything could be read; an InputError is the only other way out."""
    try:
        shapes = files.shapes(str(prefix))
        values = files.read_any(str(prefix), shapes)
    except InputError:
        return False
    assert {name: value.shape for name, value in values.items()} == shapes
    return True


shared = [HealthCheck.function_scoped_fixture]


@settings(max_examples=150, deadline=None, suppress_health_check=shared)
@given(change=_changes(), forge=st.booleans())
def test_a_damaged_index_is_refused_or_whole(original, tmp_path, change, forge):
    prefix = _copied(original, tmp_path)
    index = prefix.with_name(f"{prefix.name}.index")
    data = index.read_bytes()
    changed = change(data)
    if forge:
        body = change(data[:-FOOTER]).ljust(len(data) - FOOTER, b"\0")
        changed = _forged(body + data[-FOOTER:], _blocks(data))
    index.write_bytes(changed)
    read = _read_all(prefix)
    # Without right checksums nothing but the parts that nothing uses may differ.
    assert (
        forge
        or not read
        or files.shapes(str(prefix))
        == {name: value.shape for name, value in VALUES.items()}
    )


@settings(max_examples=40, deadline=None, suppress_health_check=shared)
@given(change=_changes())
def test_damaged_data_is_refused_or_unchanged(original, tmp_path, change):
    prefix = _copied(original, tmp_path)
    (data,) = tmp_path.glob("*.data-*")
    before = data.read_bytes()
    data.write_bytes(change(before))
    assert _read_all(prefix) == (data.read_bytes()[: len(before)] == before)


@settings(max_examples=40, deadline=None, suppress_health_check=shared)
@given(change=_changes())
def test_a_damaged_file_of_the_first_format_is_refused(first_format, tmp_path, change):
    path = _copied(first_format, tmp_path)
    path.write_bytes(change(path.read_bytes()))
    _read_all(path)


def _entry(original, tmp_path, **fields):
    """The checkpoint with one entry that says something else, checksums right."""
    from tensorflow.core.protobuf import tensor_bundle_pb2

    prefix = _copied(original, tmp_path)
    index = prefix.with_name(f"{prefix.name}.index")
    rows = list(tensor_bundle._rows(index.read_bytes()))
    key, value = rows[-1]
    message = tensor_bundle_pb2.BundleEntryProto.FromString(value)
    for name, field in fields.items():
        if name == "shape":
            del message.shape.dim[:]
            for size in field:
                message.shape.dim.add(size=size)
        elif name == "slices":
            message.slices.add().extent.add(start=0)
        else:
            setattr(message, name, field)
    rows[-1] = key, message.SerializeToString()
    index.write_bytes(_table(rows))
    return prefix


def _number(value):
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _table(rows):
    """A table of one block."""

    def block(rows):
        whole = b"".join(
            b"\0" + _number(len(key)) + _number(len(value)) + key + value
            for key, value in rows
        )
        body = whole + struct.pack("<II", 0, 1) + b"\0"
        return body + struct.pack(
            "<I", tensor_bundle._masked(tensor_bundle._crc32c(body))
        )

    first = block(rows)
    handle = _number(0) + _number(len(first) - 5)
    second = block([(rows[-1][0], handle)])
    footer = handle + _number(len(first)) + _number(len(second) - 5)
    magic = struct.pack("<Q", tensor_bundle._MAGIC)
    return first + second + footer.ljust(FOOTER - 8, b"\0") + magic


def test_a_table_made_here_is_read_by_tensorflow(original, tmp_path):
    """So what the following refuse is refused for what it says."""
    assert _read_all(_entry(original, tmp_path))


@pytest.mark.parametrize(
    "fields",
    [
        {"shape": [-1]},
        {"shape": [1 << 40, 1 << 40]},
        {"shape": [1 << 62]},
        {"shape": [2]},
        {"shape": [1] * 255},
        {"dtype": 0},
        {"dtype": 20},
        {"dtype": 21},
        {"dtype": 101},
        {"dtype": 999},
        {"dtype": 7, "shape": [1 << 30]},
        {"shard_id": 1},
        {"shard_id": -1},
        {"offset": -4},
        {"offset": 1 << 62},
        {"offset": 1 << 20},
        {"size": -4},
        {"size": 1 << 40},
        {"slices": True},
    ],
    ids=str,
)
def test_entries_that_cannot_be(original, tmp_path, fields):
    prefix = _entry(original, tmp_path, **fields)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.monotonic()
    with pytest.raises(InputError, match="cannot be read"):
        files.read_any(str(prefix), files.shapes(str(prefix)))
    assert time.monotonic() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_it_says_where_the_data_ends(original, tmp_path):
    prefix = _copied(original, tmp_path)
    (data,) = tmp_path.glob("*.data-*")
    data.write_bytes(data.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"data-00000-of-00001(.|\n)*bytes or more"):
        files.read(str(prefix), VALUES)
    data.unlink()
    with pytest.raises(InputError, match="no such file"):
        files.read(str(prefix), VALUES)


def test_the_first_format_cannot_ask_for_more_than_its_bytes_hold(tmp_path):
    tensorflow()
    from tensorflow.core.util import saved_tensor_slice_pb2

    message = saved_tensor_slice_pb2.SavedTensorSlices()
    variable = message.meta.tensor.add(name="net/weights", type=1)
    variable.shape.dim.add(size=1 << 40)
    variable.slice.add().extent.add()
    (tmp_path / "model.ckpt").write_bytes(_table([(b"", message.SerializeToString())]))
    with pytest.raises(InputError, match="1099511627776 values in"):
        files.shapes(str(tmp_path / "model.ckpt"))
    with pytest.raises(InputError, match="cannot be read"):
        files.read_any(str(tmp_path / "model.ckpt"), ["net/weights"])


_MANY = """
import pathlib, sys
from hypothesis import HealthCheck, given, settings
from tests.checkpoints.tensorflow_files import test_tensor_bundle as t
original, first, folder = map(pathlib.Path, sys.argv[1:4])
def often(test, **given_by):
    function = test.hypothesis.inner_test
    given(**given_by)(settings(
        max_examples=int(sys.argv[4]), deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )(lambda **kw: function(folder_of, tmp_path=folder, **kw)))()
for folder_of, test, more in (
    (original, t.test_a_damaged_index_is_refused_or_whole, {"forge": t.st.booleans()}),
    (original, t.test_damaged_data_is_refused_or_unchanged, {}),
    (first, t.test_a_damaged_file_of_the_first_format_is_refused, {}),
):
    often(test, change=t._changes(), **more)
"""


@pytest.mark.slow
@pytest.mark.multiprocess
def test_many_damaged_files_in_another_process(original, first_format, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", _MANY, original, first_format, tmp_path, "4000"],
        capture_output=True,
        text=True,
        timeout=3600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
