"""From a decoded image to what a network is fed.

Two steps. On the host, in TensorFlow, per image: crop and resize to a float32 square
in [0, 255] (`resize`). On the device, in JAX, per batch: to the network's own range
(`to_input_range`), so that one decoded copy serves networks of different ranges.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from rankckpt_jax.data.lazy_tensorflow import tensorflow
from rankckpt_jax.errors import InputError, suggest

JPEG_DECODER = "libjpeg INTEGER_ACCURATE"
"""How JPEG files are decoded; part of every manifest, since the choice is visible.

The faster DCT that TensorFlow defaults to moves the logits of a real MobileNet by up
to 0.2; the accurate one agrees with other decoders.
"""


MAX_MEGAPIXELS = 64
"""Images of more are not decoded: each would take 3 bytes a pixel in every thread.

A file of a few kilobytes can unfold to gigabytes; no network here sees so much of it.
"""


def decode(data: Any) -> Any:
    """Decodes one encoded image.

    Args:
      data: Scalar string tensor: a JPEG, PNG, BMP or GIF (first frame) file.

    Returns:
      uint8 [height, width, 3], sRGB in [0, 255]; gray is repeated, alpha dropped, 16
      bits are cut to 8.

    Raises:
      tf.errors.InvalidArgumentError: When it runs: the file is damaged, of another
        format, or larger than MAX_MEGAPIXELS.
    """
    return _decoder()(data)


@functools.cache
def _decoder() -> Callable[[Any], Any]:
    """`decode`, traced once: a split's images are mapped over anew in every epoch."""
    tf = tensorflow()
    return tf.function(_decode, input_signature=[tf.TensorSpec([], tf.string)])


def _decode(data: Any) -> Any:
    tf = tensorflow()

    def small(sides: Any, decoded: Callable[[], Any]) -> Any:
        pixels = tf.reduce_prod(tf.cast(sides, tf.int64))
        limit = f"an image of more than {MAX_MEGAPIXELS} megapixels"
        with _asserted(pixels <= MAX_MEGAPIXELS * 1_000_000, limit):
            return decoded()

    image = tf.cond(
        tf.io.is_jpeg(data),
        lambda: small(
            tf.io.extract_jpeg_shape(data)[:2],
            lambda: tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE"),
        ),
        lambda: small(
            _sides(data),
            lambda: tf.io.decode_image(data, channels=3, expand_animations=False),
        ),
    )
    image.set_shape([None, None, 3])
    return image


def _sides(data: Any) -> Any:
    """Width and height as the head of a PNG, GIF or BMP file tells them; int64 [2]."""
    tf = tensorflow()
    # What is cut short reads as no pixels at all, and then fails to be decoded.
    head = tf.strings.join([tf.strings.substr(data, 0, 26), b"\0" * 26])

    def numbers(start: int, kind: Any, little_endian: bool) -> Any:
        part = tf.strings.substr(head, start, 2 * kind.size)
        found = tf.io.decode_raw(part, kind, little_endian=little_endian)
        return tf.abs(tf.cast(found, tf.int64))

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


def _asserted(condition: Any, otherwise: str) -> Any:
    """A context whose operations run only where the condition holds."""
    tf = tensorflow()
    assertion = tf.debugging.Assert(condition, [otherwise])
    # None where operations run at once: it has been raised already, or is well.
    return tf.control_dependencies([] if assertion is None else [assertion])


def _vtab(image: Any, size: int) -> Any:
    """Bilinear, to a square whatever the aspect ratio, no antialiasing (VTAB)."""
    return tensorflow().image.resize(image, [size, size], antialias=False)


def _slim_inception(image: Any, size: int) -> Any:
    """Central 87.5 % crop, then bilinear with TF1's corner-aligned-left sampling."""
    tf = tensorflow()
    image = tf.image.central_crop(tf.cast(image, tf.float32), 0.875)
    return _legacy_bilinear(image, [size, size])


def _slim_vgg(image: Any, size: int) -> Any:
    """Short side to 256/224 of `size` keeping the aspect ratio, then a central crop."""
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
    """Names of the ways to bring an image to network size."""
    return tuple(_PREPROCESSES)


def resize(image: Any, size: int, preprocess: str) -> Any:
    """Crops and resizes one image by a named rule.

    Args:
      image: uint8 [height, width, 3].
      size: Side of the square wanted, in pixels.
      preprocess: "vtab" (the benchmark's: bilinear resize, no crop, no
        antialiasing), "slim_inception" or "slim_vgg" (TF-Slim's evaluation).

    Returns:
      float32 [size, size, 3] in [0, 255].

    Raises:
      InputError: There is no such rule.
    """
    if preprocess not in _PREPROCESSES:
        raise InputError(
            f"Unknown preprocessing {preprocess!r}",
            where="config.preprocess",
            expected=", ".join(names()),
            found=str(preprocess),
            fix=suggest(preprocess, names()),
        )
    tf = tensorflow()
    image = tf.cast(_PREPROCESSES[preprocess](image, size), tf.float32)
    image.set_shape([size, size, 3])
    return image


def scaling(
    input_range: tuple[float, float], input_mean: tuple[float, float, float]
) -> tuple[np.float32, np.float32, np.ndarray]:
    """Returns (low, high, mean) as `to_input_range` takes them, in float32."""
    low, high = input_range
    return np.float32(low), np.float32(high), np.asarray(input_mean, np.float32)


def to_input_range(
    images: jax.Array, low: jax.Array, high: jax.Array, mean: jax.Array
) -> jax.Array:
    """Maps images from [0, 255] to [low, high] and subtracts a mean per channel.

    Args:
      images: float [B, H, W, 3] in [0, 255].
      low: Scalar that 0 becomes.
      high: Scalar that 255 becomes.
      mean: [3], subtracted afterwards (zeros for most; TF-Slim's VGG-style networks
        take [0, 255] less the ImageNet mean).

    Returns:
      float [B, H, W, 3].
    """
    return images * ((high - low) / 255.0) + low - mean
