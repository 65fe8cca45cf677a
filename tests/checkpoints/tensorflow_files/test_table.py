import pytest

from rankckpt_jax.checkpoints.tensorflow_files import protobuf, slices, table


def test_masked_crc32c_of_the_standard_test_vector():
    """CRC-32C of "123456789" is e3069283 (RFC 3720)."""
    crc = 0xE3069283
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    assert table.masked_crc32c(memoryview(b"123456789")) == masked
    assert table.masked_crc32c(b"") == 0xA282EAD8


LITERAL = b"\x0c" + b"abcd"  # Of 4 bytes.


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\x00", b""),
        (b"\x04" + LITERAL, b"abcd"),
        (b"\x46" + b"\xf0\x45" + bytes(70), bytes(70)),
        (b"\x08" + LITERAL + b"\x01\x04", b"abcdabcd"),
        (b"\x0a" + LITERAL + b"\x16\x02\x00", b"abcdcdcdcd"),
        (b"\x07" + LITERAL + b"\x0b\x04\x00\x00\x00", b"abcdabc"),
    ],
    ids=["empty", "literal", "long literal", "copy", "overlapping copy", "far copy"],
)
def test_decompress_snappy(data, expected):
    assert table.decompress_snappy(data) == expected


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x05" + LITERAL,
        b"\x03" + LITERAL,
        b"\x04" + LITERAL[:-1],
        b"\x08" + LITERAL + b"\x01\x05",
        b"\x08" + LITERAL + b"\x01\x00",
        b"\x08" + LITERAL + b"\x01",
        b"\x46" + b"\xf4\x45",
        b"\xff\xff\xff\xff\x0f" + LITERAL,
    ],
    ids=repr,
)
def test_decompress_snappy_refuses_damaged_data(data):
    with pytest.raises(protobuf.FormatError):
        table.decompress_snappy(data)


@pytest.mark.parametrize(
    ("extents", "expected"),
    [
        ((), "00"),
        (((0, None),), "01 01 80 7f"),
        (((0, 63), (64, 8191)), "01 02 80 bf c040 dfff"),
        (((1 << 40, 1 << 62),), "01 01 fd0000000000 ff c04000000000000000"),
    ],
    ids=str,
)
def test_slice_key_of_small_and_large_extents(extents, expected):
    """After TensorFlow's ordered_code.cc."""
    name = b"\0a\0\xffb\0\1"
    assert slices.slice_key("a\0b", extents) == name + bytes.fromhex(expected)
