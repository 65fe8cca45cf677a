"""Preprocessing of images, in two steps.

On the host, TensorFlow crops and resizes each image to a float32 square in [0, 255]
(`resize`). On the device, JAX maps each batch to the range of the network
(`to_input_range`). One decoded copy therefore serves networks of different ranges.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from rankckpt_jax.data.lazy_tensorflow import tensorflow
from rankckpt_jax.errors import unknown_name

JPEG_DECODER = "libjpeg INTEGER_ACCURATE"
"""JPEG decoder, recorded in every manifest because it changes the features.

TensorFlow's default, a faster DCT, moves the logits of a real MobileNet by up to 0.2.
The accurate DCT agrees with other decoders.
"""

VERSIONS: Mapping[str, int] = types.MappingProxyType(
    {"decode": 1, "vtab": 1, "slim_inception": 1, "slim_vgg": 1, "to_input_range": 1}
)
"""Version of each transformation: `decode`, the rules of `resize`, `to_input_range`.

They are part of the key of every result that is made of images. Raise a version with
every change of the values that its transformation returns.
"""

MAX_MEGAPIXELS = 64
"""Size above which an image is not decoded.

A file of a few kilobytes can expand to gigabytes, in every decoding thread.
"""


def decode(data: Any) -> Any:
    """Decode one image.

    Args:
      data: Scalar string tensor: a JPEG, PNG, BMP or GIF (first frame) file.

    Returns:
      uint8 [height, width, 3], sRGB in [0, 255]. Gray is repeated, alpha is dropped,
      and 16 bits are cut to 8.

    Raises:
      tf.errors.InvalidArgumentError: The file is damaged, has another format, or is
        larger than MAX_MEGAPIXELS. Raised when the operation runs.
    """
    return _decoder()(data)


@functools.cache
def _decoder() -> Callable[[Any], Any]:
    """Return `decode` as a traced function, because every epoch maps it again."""
    tf = tensorflow()
    return tf.function(_decode, input_signature=[tf.TensorSpec([], tf.string)])


def _decode(data: Any) -> Any:
    tf = tensorflow()

    def checked(sides: Any, decoded: Callable[[], Any]) -> Any:
        pixels = tf.reduce_prod(tf.cast(sides, tf.int64))
        limit = f"an image of more than {MAX_MEGAPIXELS} megapixels"
        with _asserted(pixels <= MAX_MEGAPIXELS * 1_000_000, limit):
            return decoded()

    image = tf.cond(
        tf.io.is_jpeg(data),
        lambda: checked(
            tf.io.extract_jpeg_shape(data)[:2],
            lambda: tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE"),
        ),
        lambda: checked(
            _sides(data),
            lambda: tf.io.decode_image(data, channels=3, expand_animations=False),
        ),
    )
    image.set_shape([None, None, 3])
    return image


def _sides(data: Any) -> Any:
    """Return width and height from the header of a PNG, GIF or BMP file, int64 [2]."""
    tf = tensorflow()
    # A truncated header reads as zero pixels. Decoding it fails later.
    head = tf.strings.join([tf.strings.substr(data, 0, 26), b"\0" * 26])

    def numbers(start: int, kind: Any, little_endian: bool) -> Any:
        part = tf.strings.substr(head, start, 2 * kind.size)
        sides = tf.io.decode_raw(part, kind, little_endian=little_endian)
        return tf.abs(tf.cast(sides, tf.int64))

    def other() -> Any:
        with _asserted(tf.constant(False), "not a JPEG, PNG, GIF or BMP file"):
            return tf.zeros(2, tf.int64)

    def begins(text: bytes) -> Any:
        return tf.equal(tf.strings.substr(head, 0, len(text)), text)

    return tf.case(
        [
            (begins(b"\x89PNG"), lambda: numbers(16, tf.int32, False)),
            (begins(b"GIF8"), lambda: numbers(6, tf.uint16, True)),
            (begins(b"BM"), lambda: numbers(18, tf.int32, True)),
        ],
        default=other,
    )


def _asserted(condition: Any, message: str) -> Any:
    """Return a context whose operations run only if the condition holds."""
    tf = tensorflow()
    assertion = tf.debugging.Assert(condition, [message])
    # In eager mode the assertion has already passed or raised, and is None.
    return tf.control_dependencies([] if assertion is None else [assertion])


def _vtab(image: Any, size: int) -> Any:
    """Resize bilinearly to a square, without crop or antialiasing (VTAB)."""
    return tensorflow().image.resize(image, [size, size], antialias=False)


def _slim_inception(image: Any, size: int) -> Any:
    """Crop the central 87.5 %, then resize bilinearly as TensorFlow 1 does."""
    tf = tensorflow()
    image = tf.image.central_crop(tf.cast(image, tf.float32), 0.875)
    return _legacy_bilinear(image, [size, size])


def _slim_vgg(image: Any, size: int) -> Any:
    """Resize the short side to 256/224 of `size`, then crop the center."""
    tf = tensorflow()
    shape = tf.cast(tf.shape(image)[:2], tf.float32)
    short = round(size * 256 / 224)
    target = tf.cast(tf.round(shape * (short / tf.reduce_min(shape))), tf.int32)
    image = _legacy_bilinear(tf.cast(image, tf.float32), target)
    return tf.image.resize_with_crop_or_pad(image, size, size)


def _legacy_bilinear(image: Any, size: Any) -> Any:
    tf = tensorflow()
    return tf.compat.v1.image.resize_bilinear(
        image[None], size, align_corners=False, half_pixel_centers=False
    )[0]


_PREPROCESSES: dict[str, Callable[[Any, int], Any]] = {
    "vtab": _vtab,
    "slim_inception": _slim_inception,
    "slim_vgg": _slim_vgg,
}


def names() -> tuple[str, ...]:
    """Return the names of all rules of `resize`."""
    return tuple(_PREPROCESSES)


def key(preprocess: str) -> dict[str, Any]:
    """Return the part of a key that identifies the preprocessing of images.

    Args:
      preprocess: The rule; see `resize`.
    """
    return {
        "preprocess": preprocess,
        "preprocess_versions": {
            name: VERSIONS[name] for name in ("decode", preprocess, "to_input_range")
        },
        "jpeg_decoder": JPEG_DECODER,
    }


def resize(image: Any, size: int, preprocess: str) -> Any:
    """Crop and resize one image by a named rule.

    Args:
      image: uint8 [height, width, 3].
      size: Side of the resulting square in pixels.
      preprocess: "vtab" (used by the benchmark: bilinear, no crop, no antialiasing),
        or "slim_inception" or "slim_vgg" (the evaluation of TF-Slim).

    Returns:
      float32 [size, size, 3] in [0, 255].

    Raises:
      InputError: The rule is unknown.
    """
    if preprocess not in _PREPROCESSES:
        raise unknown_name("preprocessing", preprocess, names(), "config.preprocess")
    tf = tensorflow()
    image = tf.cast(_PREPROCESSES[preprocess](image, size), tf.float32)
    image.set_shape([size, size, 3])
    return image


def scaling(
    input_range: tuple[float, float], input_mean: tuple[float, float, float]
) -> tuple[np.float32, np.float32, np.ndarray]:
    """Return the arguments (low, high, mean) of `to_input_range` in float32."""
    low, high = input_range
    return np.float32(low), np.float32(high), np.asarray(input_mean, np.float32)


def to_input_range(
    images: jax.Array, low: jax.Array, high: jax.Array, mean: jax.Array
) -> jax.Array:
    """Map images from [0, 255] to [low, high] and subtract a mean per channel.

    Args:
      images: float [B, H, W, 3] in [0, 255].
      low: Scalar, the result for 0.
      high: Scalar, the result for 255.
      mean: [3], subtracted afterwards. Zeros for most networks; VGG-style networks of
        TF-Slim use the ImageNet mean with the range [0, 255].

    Returns:
      float [B, H, W, 3].
    """
    return images * ((high - low) / 255.0) + low - mean
