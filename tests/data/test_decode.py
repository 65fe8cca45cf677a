"""Pixels of every kind of file, compared with Pillow's or with known ones."""

import csv
import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

from rankckpt_jax.data import decode, image_headers, tasks
from rankckpt_jax.data.lazy_tensorflow import tensorflow

RANDOM = np.random.default_rng(0)
SMOOTH = np.add.outer(np.arange(40), 2 * np.arange(50))[..., None] * [1, 1.5, 0.5]
SMOOTH = SMOOTH.astype(np.uint8)
COLORS = RANDOM.integers(0, 256, (16, 3), np.uint8)
INDICES = RANDOM.integers(0, 16, (6, 8)).astype(np.uint8)


def saved(image, kind, **options):
    file = io.BytesIO()
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    image.save(file, kind, **options)
    return file.getvalue()


def bmp(bits, rows, palette=b"", compression=0, masks=b"", sides=(8, 6)):
    """Return a BMP file with the header of Windows, from rows bottom up."""
    header = struct.pack(
        "<IiiHHIIiiII", 40, *sides, 1, bits, compression, len(rows), 0, 0, 0, 0
    )
    offset = 14 + len(header) + len(masks) + len(palette)
    start = struct.pack("<2sIHHI", b"BM", offset + len(rows), 0, 0, offset)
    return start + header + masks + palette + rows


def four_bytes(colors):
    return b"".join(bytes(c[::-1]) + b"\0" for c in colors)


def one_bit():
    bits = INDICES % 2
    rows = b"".join(np.packbits(row).tobytes() + bytes(3) for row in bits[::-1])
    return bmp(1, rows, four_bytes(COLORS[:2])), COLORS[bits]


def four_bits():
    rows = b"".join(
        bytes(16 * int(a) + int(b) for a, b in row.reshape(-1, 2))
        for row in INDICES[::-1]
    )
    return bmp(4, rows, four_bytes(COLORS)), COLORS[INDICES]


def run_lengths():
    rows = b"".join(
        b"".join(bytes((1, int(i))) for i in row) + b"\0\0" for row in INDICES[::-1]
    )
    # The palette of 8 bits has 256 colors.
    palette = four_bytes(COLORS) + bytes(4 * 240)
    return bmp(8, rows + b"\0\1", palette, compression=1), COLORS[INDICES]


def os2():
    """The header of OS/2 has sides of 16 bits, and colors of three bytes."""
    rows = b"".join(row.tobytes() for row in INDICES[::-1])
    palette = b"".join(bytes(c[::-1]) for c in COLORS) + bytes(3 * 240)
    header = struct.pack("<IHHHH", 12, 8, 6, 1, 8)
    offset = 14 + len(header) + len(palette)
    start = struct.pack("<2sIHHI", b"BM", offset + len(rows), 0, 0, offset)
    return start + header + palette + rows, COLORS[INDICES]


def bit_fields():
    pixels = COLORS[INDICES]
    rows = np.zeros((6, 8, 4), np.uint8)
    rows[..., 1:], rows[..., 0] = pixels[..., ::-1], 99
    masks = struct.pack("<III", 0xFF000000, 0xFF0000, 0xFF00)
    return bmp(32, rows[::-1].tobytes(), compression=3, masks=masks), pixels


def bit_fields_of_16_bits():
    five = RANDOM.integers(0, 32, (6, 8, 3))
    words = (five[..., 0] << 11 | five[..., 1] << 6 | five[..., 2]).astype("<u2")
    masks = struct.pack("<III", 0xF800, 0x7E0, 0x1F)
    pixels = np.stack(
        [
            five[..., 0] * 255 // 31,
            (five[..., 1] << 1) * 255 // 63,
            five[..., 2] * 255 // 31,
        ],
        -1,
    )
    return bmp(16, words[::-1].tobytes(), compression=3, masks=masks), pixels


def deep(kind, scale=256):
    """Return an image of 16 bits per sample, whose high byte is known."""
    samples = SMOOTH[..., 0].astype(np.uint16) * scale + 99
    return saved(samples, kind), np.repeat((samples >> 8)[..., None], 3, -1)


def deep_color():
    """Return a PNG of three samples of 16 bits, which Pillow does not write."""
    import zlib

    samples = (SMOOTH.astype(np.uint16) * 256 + 7).astype(">u2")

    def chunk(name, data):
        return (
            struct.pack(">I", len(data))
            + name
            + data
            + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", 50, 40, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in samples)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts), SMOOTH


def small_frame():
    """Return a GIF whose only frame covers a corner of its canvas."""
    palette = Image.fromarray(INDICES)
    palette.putpalette(COLORS.tobytes())
    data = bytearray(saved(palette, "GIF"))
    data[6:10] = struct.pack("<HH", 12, 10)
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(pixels[:6, :8], COLORS[INDICES])
    return bytes(data), pixels


def palette_image():
    image = Image.fromarray(INDICES)
    image.putpalette(COLORS.tobytes())
    return image


KNOWN = {
    "a BMP of 1 bit": one_bit(),
    "a BMP of 4 bits": four_bits(),
    "a BMP of 8 bits": (saved(palette_image(), "BMP"), COLORS[INDICES]),
    "a BMP with run lengths": run_lengths(),
    "a BMP of OS/2": os2(),
    "a BMP with bit fields": bit_fields(),
    "a BMP with bit fields of 16 bits": bit_fields_of_16_bits(),
    "a GIF with a small frame": small_frame(),
    "a WebP": (saved(SMOOTH, "WEBP", lossless=True), SMOOTH),
    "a TIFF": (saved(SMOOTH, "TIFF"), SMOOTH),
    "a compressed TIFF": (saved(SMOOTH, "TIFF", compression="tiff_lzw"), SMOOTH),
    "a gray PNG of 16 bits": deep("PNG"),
    "a color PNG of 16 bits": deep_color(),
    "a TIFF of 16 bits": deep("TIFF"),
    "a PNG with a palette": (saved(palette_image(), "PNG"), COLORS[INDICES]),
}
"""Files and their pixels."""


@pytest.mark.parametrize("case", KNOWN)
def test_decode_returns_known_pixels(case):
    data, pixels = KNOWN[case]
    np.testing.assert_array_equal(decode.decode(data), pixels)


def ordinary():
    """Yield files of the most frequent kinds."""
    noisy = np.clip(SMOOTH + RANDOM.normal(0, 20, SMOOTH.shape), 0, 255)
    noisy = noisy.astype(np.uint8)
    for quality in (30, 75, 95):
        for subsampling in (0, 1, 2):
            yield saved(noisy, "JPEG", quality=quality, subsampling=subsampling)
    yield saved(noisy, "JPEG", progressive=True)
    yield saved(noisy[..., 0], "JPEG")
    yield saved(noisy, "PNG")
    yield saved(noisy[..., 0], "PNG")
    image = Image.fromarray(noisy)
    for mode in ("RGBA", "LA", "P", "1"):
        yield saved(image.convert(mode), "PNG")
    for bits in (1, 2, 4):
        yield saved(palette_image(), "PNG", bits=bits)
    yield saved(palette_image(), "PNG", transparency=3)


def decode_with_tensorflow(data):
    tf = tensorflow()
    if data[:2] == b"\xff\xd8":
        options = {"channels": 3, "dct_method": "INTEGER_ACCURATE"}
        return tf.io.decode_jpeg(data, **options).numpy()
    return tf.io.decode_png(data, channels=3).numpy()


def test_decode_equals_tensorflow_on_ordinary_files():
    for data in ordinary():
        expected = decode_with_tensorflow(data)
        np.testing.assert_array_equal(decode.decode(data), expected)


@pytest.mark.parametrize("sides", [(1001, 1999), (3, 400_000), (400_000, 3)])
def test_decode_returns_all_pixels_of_large_images(sides):
    pixels = RANDOM.integers(0, 256, (*sides, 3), np.uint8)
    np.testing.assert_array_equal(decode.decode(saved(pixels, "BMP")), pixels)


@pytest.mark.shared
def test_decode_equals_tensorflow_on_real_photos(shared):
    photos = sorted((shared / "real" / "images").rglob("*.jpg"))[::100]
    photos += sorted((shared / "real" / "pool" / "images").rglob("*.*g"))[::50]
    assert len(photos) > 80
    for photo in photos:
        data = photo.read_bytes()
        expected = decode_with_tensorflow(data)
        np.testing.assert_array_equal(decode.decode(data), expected)


def why_unreadable(data):
    """Return the reason why an image cannot be decoded, or ""."""
    try:
        decode.decode(data)
        return ""
    except decode.UnusableImage as error:
        return str(error)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_decode_equals_pillow_on_cmyk(kind):
    data = saved(Image.fromarray(SMOOTH).convert("CMYK"), kind)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decode.decode(data), expected)


UNREADABLE = {
    "12 of 16 bits": (deep("PNG", scale=16)[0], "only 12 of its 16 bits"),
    "12 of 16 bits in a TIFF": (deep("TIFF", scale=16)[0], "only 12 of its 16 bits"),
    "numbers with fractions": (
        saved(SMOOTH[..., 0] / np.float32(9), "TIFF"),
        "16 bits",
    ),
    "a WebP cut short": (saved(SMOOTH, "WEBP")[:-40], "WEBP file"),
    "a TIFF cut short": (saved(SMOOTH, "TIFF")[:-400], "TIFF file"),
    "a large BMP": (bmp(24, b"", sides=(9000, 9000)), "more than 64 megapixels"),
    "a huge BMP": (bmp(24, b"", sides=(30_000, 30_000)), "more than 64 megapixels"),
    "a start alone": (b"BM", "BMP file"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_decode_names_the_reason(case):
    data, text = UNREADABLE[case]
    reason = why_unreadable(data)
    assert text in reason and "Error" not in reason and "0x" not in reason


def test_header_names_what_is_not_read():
    data = bytearray(saved(SMOOTH, "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 4] = 12
    assert "12 bits per sample" in image_headers.read(io.BytesIO(data)).why
    data = saved(SMOOTH, "AVIF") if "AVIF" in Image.SAVE else b"\0\0\0 ftypavif"
    assert "an AVIF file, which is not read" in image_headers.read(io.BytesIO(data)).why


def with_orientation(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    return saved(SMOOTH, kind, exif=exif, **options)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_from_folder_turns_images_by_exif_orientation(image_folder, kind):
    suffix = {"JPEG": "jfif", "TIFF": "tif"}.get(kind, kind.lower())
    folder = image_folder / "train" / "red"
    for path in folder.iterdir():
        path.unlink()
    expected = []
    for orientation in range(1, 9):
        data = with_orientation(kind, orientation)
        (folder / f"{orientation}.{suffix}").write_bytes(data)
        image = Image.open(io.BytesIO(data))
        expected.append(np.asarray(ImageOps.exif_transpose(image)))
    task = tasks.from_folder(str(image_folder))
    # Pillow itself turns a TIFF.
    turned = f"{0 if kind == 'TIFF' else 7} images turned by their EXIF orientation"
    assert (turned in task.description) == (kind != "TIFF")
    split = task.splits["train"]
    assert split.orientation == "EXIF"
    found = [example.read() for example in split.examples(None, 0, 1, 0)]
    for image, pixels in zip(found[-8:], expected, strict=True):
        np.testing.assert_array_equal(image, pixels)
    assert {image.shape for image in found[-8:]} == {(40, 50, 3), (50, 40, 3)}


@pytest.mark.parametrize(
    "data", [b"Exif\0\0", b"Exif\0\0II*\0", b"Exif\0\0MM\0*" + b"\xff" * 40]
)
def test_damaged_exif_data_turns_nothing(data):
    jpeg = saved(SMOOTH, "JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data
    header = image_headers.read(io.BytesIO(jpeg[:2] + segment + jpeg[2:]))
    assert header == image_headers.Header("JPEG")
    for length in range(12, 200):
        image_headers.read(io.BytesIO(with_orientation("JPEG", 6)[:length]))
        image_headers.read(io.BytesIO(with_orientation("PNG", 6)[:length]))
        image_headers.read(io.BytesIO(with_orientation("WEBP", 6)[:length]))


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 10**6,
        b"\xff\xd8\xff\xe1\0\0" + bytes(10**6),
        b"\x89PNG\r\n\x1a\n" + (bytes(4) + b"tEXt" + bytes(4)) * 10**5,
        b"RIFF\0\0\0\0WEBP" + bytes(10**6),
    ],
    ids=["fill bytes", "an empty segment", "empty chunks", "zeros"],
)
def test_header_of_hostile_files_is_read_quickly(data):
    file = io.BytesIO(b"\xff\xd8\xff" + data if data[:3] == b"\xff\xff\xff" else data)
    header = image_headers.read(file)
    assert header.orientation == 1 and not header.why
    assert file.tell() < 20_000


LEFT_OUT = {
    "12bit.jpg": "a JPEG file of 12 bits per sample",
    "avif.jpg": "an AVIF file, which is not read",
    "bomb.gif": "more than 64 megapixels",
    "broken_idat.png": "PNG file: unrecognized data stream",
    "mri16.png": "only 12 of its 16 bits are in use",
    "rgb32bf.bmp": "Unsupported BMP bitfields layout",
    "shortfile.bmp": "truncated",
    "truncated.gif": "truncated",
}
"""The reason for each real file that is not decoded."""


@pytest.mark.shared
def test_decode_equals_pillow_on_real_files(shared):
    folder = shared / "real" / "messy"
    with (folder / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) > 20
    for row in rows:
        name = row["file"]
        data = (folder / name).read_bytes()
        with (folder / name).open("rb") as file:
            why = image_headers.read(file).why
        why = why or why_unreadable(data)
        if name in LEFT_OUT:
            assert LEFT_OUT[name] in why, name
            continue
        assert row["pillow"] == "read" and not why, name
        pixels = decode.decode(data)
        with Image.open(folder / name) as image:
            np.testing.assert_array_equal(pixels, np.asarray(image.convert("RGB")))
        means = [float(row[f"mean_{c}"]) for c in "rgb"]
        np.testing.assert_allclose(pixels.mean((0, 1)), means, atol=0.006)
