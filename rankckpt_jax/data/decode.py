"""Decodes image files to pixels: ordinary ones by TensorFlow, all others by Pillow.

Ordinary files are JPEG files of one or three components and PNG files of at most 8
bits. TensorFlow decodes them fastest, to the same pixels as Pillow. Of other files it
decodes fewer kinds, and some of them wrongly: for example, it returns the palette's
indices instead of the colors of a BMP file.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin

from rankckpt_jax.data import image_headers
from rankckpt_jax.data.lazy_tensorflow import tensorflow

JPEG_DECODER = "libjpeg INTEGER_ACCURATE"
"""JPEG decoder, recorded in every manifest because it changes the features.

TensorFlow's default, a faster DCT, moves the logits of a real MobileNet by up to 0.2.
The accurate DCT agrees with other decoders.
"""

MAX_MEGAPIXELS = 64
"""Size above which an image is not decoded.

A file of a few kilobytes can expand to gigabytes, in every decoding thread.
"""

_TOO_LARGE = f"an image of more than {MAX_MEGAPIXELS} megapixels"
_BITS_PER_SAMPLE_TAG = 258


def decode(data: Any) -> Any:
    """Decode one image.

    Args:
      data: Scalar string tensor: a file of one of `image_headers.KINDS`. The first
        frame of an animation is decoded, on its canvas.

    Returns:
      uint8 [height, width, 3], sRGB in [0, 255]. Gray is repeated, alpha is dropped,
      and 16 bits are cut to 8. EXIF orientation is not applied; see `turn`.

    Raises:
      tf.errors.InvalidArgumentError: The file is damaged, has another format, is larger
        than MAX_MEGAPIXELS, or would be nearly black because only 12 of its 16 bits are
        in use. Raised when the operation runs.
    """
    return _decoder()(data)


def decode_with_pillow(data: bytes) -> np.ndarray:
    """Decode one image with Pillow; see `decode`.

    Returns:
      uint8 [height, width, 3].

    Raises:
      ValueError: The image cannot be decoded; the message is a short reason.
    """
    kind = image_headers.kind_of(data[:12])
    if kind not in image_headers.KINDS:
        raise ValueError(f"not a {image_headers.READABLE} file")
    try:
        with Image.open(io.BytesIO(data), formats=[kind]) as image:
            if image.width * image.height > MAX_MEGAPIXELS * 1_000_000:
                raise ValueError(_TOO_LARGE)
            return _pixels(image, _is_deep(data, image))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(_TOO_LARGE) from error
    except Image.UnidentifiedImageError as error:
        raise ValueError(
            f"damaged {kind} file, or a variant that is not read"
        ) from error
    except Exception as error:  # A damaged file can raise any error in a parser.
        reason = str(error) or type(error).__name__
        raise ValueError(
            reason if isinstance(error, ValueError) else f"{kind} file: {reason}"
        ) from error


def _try_pillow(data: bytes) -> tuple[np.ndarray, str]:
    """Return (pixels, "") or (nothing, the reason).

    TensorFlow would print the traceback of an error.
    """
    try:
        return decode_with_pillow(data), ""
    except ValueError as error:
        return np.zeros((0, 0, 3), np.uint8), str(error)


def _is_deep(data: bytes, image: Image.Image) -> bool:
    """Return whether a file has more than 8 bits per sample."""
    if image.format == "PNG":
        return data[24] > 8
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return max(image.tag_v2.get(_BITS_PER_SAMPLE_TAG, (1,))) > 8
    return False


def _pixels(image: Image.Image, is_deep: bool) -> np.ndarray:
    if not image.mode.startswith(("I", "F")):
        pixels = np.asarray(image.convert("RGB"))
    else:
        samples = np.asarray(image)
        if image.mode == "F" or samples.min() < 0 or samples.max() > 0xFFFF:
            raise ValueError("samples of more than 16 bits; convert it to 8 bits")
        # Pillow's own conversion would make everything above 255 white.
        pixels = np.repeat((samples >> 8).astype(np.uint8)[..., None], 3, -1)
    if is_deep and pixels.max() < 16:
        raise ValueError(
            "nearly black, because only 12 of its 16 bits are in use; convert it to 8 "
            "bits"
        )
    return pixels


@functools.cache
def _decoder() -> Callable[[Any], Any]:
    """Return `decode` as a traced function, because every epoch maps it again."""
    tf = tensorflow()
    return tf.function(_decode, input_signature=[tf.TensorSpec([], tf.string)])


def _decode(data: Any) -> Any:
    tf = tensorflow()

    def checked(sides: Any, decoded: Callable[[], Any]) -> Any:
        pixels = tf.reduce_prod(tf.cast(sides, tf.int64))
        with _asserted(pixels <= MAX_MEGAPIXELS * 1_000_000, _TOO_LARGE):
            return decoded()

    def other() -> Any:
        pixels, why = tf.numpy_function(
            _try_pillow, [data], [tf.uint8, tf.string], stateful=False
        )
        with _asserted(tf.equal(why, ""), why):
            return tf.identity(pixels)

    def jpeg() -> Any:
        shape = tf.io.extract_jpeg_shape(data)
        return checked(
            shape[:2],
            lambda: tf.cond(
                tf.equal(shape[2], 4),  # CMYK.
                other,
                lambda: tf.io.decode_jpeg(
                    data, channels=3, dct_method="INTEGER_ACCURATE"
                ),
            ),
        )

    def not_jpeg() -> Any:
        # A truncated header reads as zeros. Decoding it fails later.
        head = tf.strings.join([tf.strings.substr(data, 0, 25), b"\0" * 25])
        sides = tf.io.decode_raw(
            tf.strings.substr(head, 16, 8), tf.int32, little_endian=False
        )
        depth = tf.io.decode_raw(tf.strings.substr(head, 24, 1), tf.uint8)[0]
        is_png = tf.equal(tf.strings.substr(head, 0, 8), b"\x89PNG\r\n\x1a\n")
        return tf.cond(
            is_png & (depth <= 8),
            lambda: checked(sides, lambda: tf.io.decode_png(data, channels=3)),
            other,
        )

    image = tf.cond(tf.io.is_jpeg(data), jpeg, not_jpeg)
    image.set_shape([None, None, 3])
    return image


def _asserted(condition: Any, message: Any) -> Any:
    """Return a context whose operations run only if the condition holds."""
    tf = tensorflow()
    assertion = tf.debugging.Assert(condition, [message])
    # In eager mode the assertion has already passed or raised, and is None.
    return tf.control_dependencies([] if assertion is None else [assertion])


def turn(image: Any, orientation: Any) -> Any:
    """Turn an image as its EXIF orientation requires, as viewers show it.

    Args:
      image: [height, width, 3].
      orientation: int scalar from 1 to 8; 1 leaves the image as it is.
    """
    tf = tensorflow()

    def apply(change: Callable[[Any], Any], *orientations: int) -> None:
        nonlocal image
        before = image
        is_due = tf.reduce_any(tf.equal(orientation, list(orientations)))
        image = tf.cond(is_due, lambda: change(before), lambda: before)

    apply(lambda pixels: tf.transpose(pixels, [1, 0, 2]), 5, 6, 7, 8)
    apply(lambda pixels: tf.reverse(pixels, [1]), 2, 3, 6, 7)
    apply(lambda pixels: tf.reverse(pixels, [0]), 3, 4, 7, 8)
    image.set_shape([None, None, 3])
    return image
