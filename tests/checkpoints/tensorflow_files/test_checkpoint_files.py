"""Checkpoint files against TensorFlow's own reader and writer, intact and damaged.

Files that `tensor_bundle.check` accepts are also given to TensorFlow, which aborts the
process on inconsistent indices that it does not detect. A regression can therefore end
pytest.
"""

import resource
import shutil
import time

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rankckpt_jax.checkpoints.tensorflow_files import (
    checkpoint_files,
    protobuf,
    table,
    tensor_bundle,
)
from rankckpt_jax.data.lazy_tensorflow import tensorflow
from rankckpt_jax.errors import InputError

RANDOM = np.random.default_rng(0)
NUMBERS = 50 * RANDOM.normal(size=(3, 5))
V1_TYPES = ("f4", "f8", "i1", "i2", "i4", "i8", "u1", "?")
TYPES = (*V1_TYPES, "f2", "u2", "u4", "u8", "c8", "c16", ml_dtypes.bfloat16)
SLICED = RANDOM.normal(size=(130, 200)).astype("f4")
SLICES = ("130 200 0,130:0,70", "130 200 0,100:70,130", "130 200 100,30:70,130")


def values_of(types):
    """Arrays of each type, and shapes that are special."""
    values = {
        f"net/{np.dtype(kind).name}": np.abs(NUMBERS).astype(kind)
        if np.dtype(kind).kind == "u"
        else NUMBERS.astype(kind)
        for kind in types
    }
    values["net/größe"] = np.array(-(10**12))
    values["net/zeros"] = np.zeros((64, 100), np.float32)
    return values


def save_v2(prefix, values, slices=None):
    tensorflow().raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=list(values),
        shape_and_slices=slices or [""] * len(values),
        tensors=list(values.values()),
    )


def sliced():
    """The parts of SLICED, for the same name."""
    return SLICED[:, :70], SLICED[:100, 70:], SLICED[100:, 70:]


@pytest.fixture(scope="module")
def v2(tmp_path_factory):
    """A checkpoint of two shards with a partitioned variable across both."""
    tf = tensorflow()
    folder = tmp_path_factory.mktemp("v2")
    prefixes = [str(folder / f"part{i}") for i in range(2)]
    first, second, third = sliced()
    for prefix, values, slices, parts in (
        (prefixes[0], values_of(TYPES), SLICES[:1], [first]),
        (prefixes[1], {"text": np.array([b"", b"abc"])}, SLICES[1:], [second, third]),
    ):
        tf.raw_ops.SaveV2(
            prefix=prefix,
            tensor_names=[*values, *["sliced"] * len(parts)],
            shape_and_slices=[*[""] * len(values), *slices],
            tensors=[*values.values(), *parts],
        )
    tf.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=prefixes, destination_prefix=str(folder / "model.ckpt")
    )
    return folder / "model.ckpt"


@pytest.fixture(scope="module")
def v1(tmp_path_factory):
    path = tmp_path_factory.mktemp("v1") / "model.ckpt"
    values = values_of(V1_TYPES)
    tensorflow().raw_ops.SaveSlices(
        filename=str(path),
        tensor_names=[*values, *["sliced"] * 3],
        shapes_and_slices=[*[""] * len(values), *SLICES],
        data=[*values.values(), *sliced()],
    )
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small checkpoint to damage."""
    prefix = tmp_path_factory.mktemp("small") / "model.ckpt"
    names = [f"net/conv{i}/{name}" for i in range(4) for name in ("weights", "biases")]
    save_v2(prefix, {name: RANDOM.normal(size=(3, 4)).astype("f4") for name in names})
    return prefix


@pytest.fixture(scope="module")
def small_v1(tmp_path_factory):
    path = tmp_path_factory.mktemp("small") / "model.ckpt"
    tensorflow().raw_ops.SaveSlices(
        filename=str(path),
        tensor_names=["a", "b"],
        shapes_and_slices=["", ""],
        data=[np.arange(12), np.zeros((4, 5), np.float32)],
    )
    return path


def copy_to(folder, prefix):
    for path in prefix.parent.glob(f"{prefix.name}*"):
        shutil.copy(path, folder / path.name)
    return folder / prefix.name


def assert_same(values, expected):
    assert values.keys() == expected.keys()
    for name, value in expected.items():
        assert values[name].dtype == value.dtype
        np.testing.assert_array_equal(values[name], value)


@pytest.mark.parametrize(("form", "types"), [("v1", V1_TYPES), ("v2", TYPES)])
def test_read_matches_tensorflow(request, form, types):
    prefix = str(request.getfixturevalue(form))
    reader = tensorflow().train.load_checkpoint(prefix)
    expected = reader.get_variable_to_shape_map()
    shapes = {name: tuple(shape) for name, shape in expected.items()}
    assert checkpoint_files.shapes(prefix) == shapes
    values = checkpoint_files.read(prefix)
    assert_same(values, values_of(types) | {"sliced": SLICED})
    if form == "v1":
        # TensorFlow's reader refuses slices.
        del values["sliced"]
    assert_same(values, {name: reader.get_tensor(name) for name in values})


def test_write_is_read_by_tensorflow(tmp_path):
    """With enough variables for several blocks in TensorFlow's own tables."""
    values = values_of(TYPES) | {"empty": np.zeros((0, 3), np.float32)}
    values |= {f"a_long_name_{i:04}/kernel": np.full(i % 3, i) for i in range(900)}
    checkpoint_files.write(tmp_path / "own", values)
    reader = tensorflow().train.load_checkpoint(str(tmp_path / "own"))
    assert_same({name: np.asarray(reader.get_tensor(name)) for name in values}, values)
    assert_same(checkpoint_files.read(str(tmp_path / "own")), values)
    save_v2(tmp_path / "tensorflow", values)
    assert_same(checkpoint_files.read(str(tmp_path / "tensorflow")), values)


@pytest.mark.parametrize(
    ("name", "match"), [("text", "wrong type"), ("absent", "no variable 'absent'")]
)
def test_read_refuses_text_and_unknown_names(v2, name, match):
    with pytest.raises(InputError, match=match):
        checkpoint_files.read(str(v2), [name])


def test_read_names_the_data_file_that_is_short_or_missing(small, tmp_path):
    prefix = copy_to(tmp_path, small)
    (data,) = tmp_path.glob("*.data-*")
    data.write_bytes(data.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"data-00000-of-00001(.|\n)*bytes or more"):
        checkpoint_files.read(str(prefix))
    data.unlink()
    with pytest.raises(InputError, match="no such file"):
        checkpoint_files.read(str(prefix))


# --------------------------------------------------------------- damaged files


@st.composite
def changes(draw):
    """Draw a function that cuts, flips, overwrites or copies bytes."""
    kind = draw(st.sampled_from(["cut", "bits", "bits", "fill", "splice"]))
    places = draw(st.lists(st.floats(0, 1, exclude_max=True), min_size=3, max_size=3))
    count = draw(st.integers(1, 40))
    value = draw(st.integers(0, 255))

    def change(data):
        data = bytearray(data)
        first, second, third = (int(place * len(data)) for place in places)
        if kind == "cut":
            return bytes(data[:first])
        if kind == "bits":
            for place in (first, second, third)[: 1 + count % 3]:
                data[place] ^= 1 << value % 8
        elif kind == "fill":
            data[first : first + count] = [value] * len(data[first : first + count])
        else:
            data[first : first + count] = data[second : second + count]
        return bytes(data)

    return change


def read_or_refuse(prefix):
    """Return the values, or None after an InputError, the only error allowed."""
    try:
        shapes = checkpoint_files.shapes(str(prefix))
        values = checkpoint_files.read(str(prefix))
    except InputError:
        return None
    assert {name: shapes[name] for name in values} == {
        name: value.shape for name, value in values.items()
    }
    return values


def read_with_tensorflow(prefix):
    """Return what TensorFlow reads; it must not abort the process."""
    tf = tensorflow()
    try:
        reader = tf.train.load_checkpoint(str(prefix))
        shapes = reader.get_variable_to_shape_map()
        return {name: reader.get_tensor(name) for name in shapes}
    except (tf.errors.OpError, ValueError, RuntimeError, IndexError):
        return None


def with_valid_checksums(changed, original):
    """Correct the checksums of the blocks, whose places are those of the original."""
    data = bytearray(changed)
    (_, index) = table._handles(original[-table.FOOTER_SIZE :], 2)
    handles = [table._handles(v, 1)[0] for _, v in table._block(original, *index)]
    for start, size in [index, *handles]:
        end = start + size + 1
        checksum = table.masked_crc32c(bytes(data[start:end]))
        data[end : end + 4] = checksum.to_bytes(4, "little")
    return bytes(data)


often = settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@often
@given(change=changes(), forge=st.booleans())
def test_read_refuses_a_damaged_index(small, tmp_path, change, forge):
    prefix = copy_to(tmp_path, small)
    index = prefix.with_name(f"{prefix.name}.index")
    data = index.read_bytes()
    changed = change(data)
    if forge:
        body = change(data[: -table.FOOTER_SIZE])
        body = body.ljust(len(data) - table.FOOTER_SIZE, b"\0")
        changed = with_valid_checksums(body + data[-table.FOOTER_SIZE :], data)
    index.write_bytes(changed)
    values = read_or_refuse(prefix)
    if values is None:
        return
    assert_same(values, read_with_tensorflow(prefix) or values)
    if not forge:
        assert_same(values, checkpoint_files.read(str(small)))


@often
@given(change=changes())
def test_read_refuses_damaged_values(small, tmp_path, change):
    prefix = copy_to(tmp_path, small)
    (data,) = tmp_path.glob("*.data-*")
    before = data.read_bytes()
    data.write_bytes(change(before))
    intact = data.read_bytes()[: len(before)] == before
    assert (read_or_refuse(prefix) is not None) == intact


@often
@given(change=changes(), forge=st.booleans())
def test_read_refuses_a_damaged_file_in_format_v1(small_v1, tmp_path, change, forge):
    path = copy_to(tmp_path, small_v1)
    data = path.read_bytes()
    changed = change(data)
    if forge and len(changed) == len(data):
        changed = with_valid_checksums(changed, data)
    path.write_bytes(changed)
    values = read_or_refuse(path)
    if values is not None and not forge:
        assert_same(values, checkpoint_files.read(str(small_v1)))


# ---------------------------------------------------------------- forged files


def forge(prefix, folder, edit):
    """Copy a checkpoint and rewrite its index, with valid checksums."""
    prefix = copy_to(folder, prefix)
    index = prefix.with_name(f"{prefix.name}.index")
    entries = {key: bytes(value) for key, value in table.read(index.read_bytes())}
    edit(entries)
    index.write_bytes(table.write(sorted(entries.items())))
    return str(prefix)


def encode_entry(shape=(3, 4), dtype=1, shard=0, start=0, size=48, extra=b""):
    dims = b"".join(protobuf.field(2, protobuf.field(1, d)) for d in shape)
    numbers = enumerate((shard, start, size), 3)
    return (
        protobuf.field(1, dtype)
        + protobuf.field(2, dims)
        + b"".join(protobuf.field(i, value % (1 << 64)) for i, value in numbers)
        + extra
    )


def read_forged(prefix):
    """Read a forged checkpoint, which must be refused quickly and without memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    with pytest.raises(InputError, match="cannot be read"):
        checkpoint_files.read(prefix)
    assert time.process_time() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


@pytest.mark.parametrize(
    "fields",
    [
        {"shape": [(1 << 64) - 1]},
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
        {"shard": 1},
        {"shard": -1},
        {"start": -4},
        {"start": 1 << 62},
        {"start": 1 << 20},
        {"size": -4},
        {"size": 1 << 40},
        {"extra": protobuf.field(1, 1)},
        {"extra": protobuf.field(6, 1)},
        {"extra": protobuf.field(7, b"")},
        {"extra": b"\xff"},
        {"extra": protobuf.varint(4 << 3 | 3)},
    ],
    ids=str,
)
def test_read_refuses_a_forged_entry(small, tmp_path, fields):
    valid = {b"net/conv0/biases": encode_entry()}
    read_or_refuse(forge(small, tmp_path, lambda entries: entries.update(valid)))
    forged = {b"net/conv0/biases": encode_entry(**fields)}
    read_forged(forge(small, tmp_path, lambda entries: entries.update(forged)))


@pytest.mark.parametrize("name", [b"\xff", b"\0net", b""], ids=repr)
def test_read_refuses_a_forged_name(small, tmp_path, name):
    read_forged(
        forge(small, tmp_path, lambda entries: entries.update({name: encode_entry()}))
    )


@pytest.mark.parametrize("kept", [[0, 1], [0, 1, 1], [0, 1, 2, 2]], ids=str)
def test_read_refuses_slices_with_gaps_or_overlaps(v2, tmp_path, kept):
    def edit(entries):
        fields = {7: protobuf.Field("slices", protobuf.BYTES, repeated=True)}
        slices = protobuf.parse(entries[b"sliced"], fields)["slices"]
        head = entries[b"sliced"][: entries[b"sliced"].index(slices[0]) - 2]
        entries[b"sliced"] = head + b"".join(protobuf.field(7, slices[i]) for i in kept)

    read_forged(forge(v2, tmp_path, edit))


def test_read_refuses_a_missing_slice(v2, tmp_path):
    def edit(entries):
        del entries[next(key for key in entries if key[:1] == b"\0")]

    read_forged(forge(v2, tmp_path, edit))


def test_read_refuses_more_values_than_bytes_in_format_v1(tmp_path):
    field = protobuf.field
    dims = field(2, field(1, 1 << 40))
    extent = field(4, field(1, b""))
    variable = field(1, b"weights") + field(2, dims) + field(3, 1) + extent
    record = field(1, field(1, variable))
    (tmp_path / "model.ckpt").write_bytes(table.write([(b"", record)]))
    with pytest.raises(InputError, match="1099511627776 values in"):
        checkpoint_files.shapes(str(tmp_path / "model.ckpt"))
    read_forged(str(tmp_path / "model.ckpt"))


def test_check_accepts_what_tensorflow_wrote(v2):
    assert "sliced" in tensor_bundle.variables(tensor_bundle.check(str(v2)))
