"""Decodes image files to pixels, by Pillow."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, TiffImagePlugin

from rankckpt_jax.data import image_headers

JPEG_DECODER = "libjpeg INTEGER_ACCURATE"
"""JPEG decoder, recorded in every manifest because it changes the features.

Pillow, PyTorch's data sets and TensorFlow's `INTEGER_ACCURATE` share it. TensorFlow's
default, a faster DCT, moves the logits of a real MobileNet by up to 0.2.
"""

MAX_MEGAPIXELS = 64
"""Size above which an image is not decoded.

A file of a few kilobytes can expand to gigabytes, in every decoding thread.
"""

_TOO_LARGE = f"an image of more than {MAX_MEGAPIXELS} megapixels"
_BITS_PER_SAMPLE_TAG = 258
_BAND_BYTES = 1 << 17


class UnusableImage(ValueError):
    """An image cannot be used; the message is a short reason."""


def decode(data: bytes) -> np.ndarray:
    """Decode one image.

    Args:
      data: A file of one of `image_headers.KINDS`. The first frame of an animation is
        decoded, on its canvas.

    Returns:
      uint8 [height, width, 3], sRGB in [0, 255]; it may be read-only. Gray is repeated,
      alpha is dropped, and 16 bits are cut to 8. EXIF orientation is not applied; see
      `turn`.

    Raises:
      UnusableImage: The file is damaged, has another format, is larger than
        MAX_MEGAPIXELS, or would be nearly black because only 12 of its 16 bits are in
        use.
    """
    kind = image_headers.kind_of(data[:12])
    if kind not in image_headers.KINDS:
        raise UnusableImage(f"not a {image_headers.READABLE} file")
    try:
        with Image.open(io.BytesIO(data), formats=[kind]) as image:
            if image.width * image.height > MAX_MEGAPIXELS * 1_000_000:
                raise UnusableImage(_TOO_LARGE)
            return _pixels(image, _is_deep(data, image))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnusableImage(_TOO_LARGE) from error
    except Image.UnidentifiedImageError as error:
        raise UnusableImage(
            f"damaged {kind} file, or a variant that is not read"
        ) from error
    except UnusableImage:
        raise
    except Exception as error:  # A damaged file can raise any error in a parser.
        reason = str(error) or type(error).__name__
        raise UnusableImage(f"{kind} file: {reason}") from error


def _is_deep(data: bytes, image: Image.Image) -> bool:
    """Return whether a file has more than 8 bits per sample."""
    if image.format == "PNG":
        return data[24] > 8
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return max(image.tag_v2.get(_BITS_PER_SAMPLE_TAG, (1,))) > 8
    return False


def _pixels(image: Image.Image, is_deep: bool) -> np.ndarray:
    if not image.mode.startswith(("I", "F")):
        # Converting copies even what has the mode already.
        pixels = _to_array(image if image.mode == "RGB" else image.convert("RGB"))
    else:
        samples = np.asarray(image)
        if image.mode == "F" or samples.min() < 0 or samples.max() > 0xFFFF:
            raise UnusableImage("samples of more than 16 bits; convert it to 8 bits")
        # Pillow's own conversion would make everything above 255 white.
        pixels = np.repeat((samples >> 8).astype(np.uint8)[..., None], 3, -1)
    if is_deep and pixels.max() < 16:
        raise UnusableImage(
            "nearly black, because only 12 of its 16 bits are in use; convert it to 8 "
            "bits"
        )
    return pixels


def _to_array(image: Image.Image) -> np.ndarray:
    """Return the pixels of an image in the mode RGB."""
    width, height = image.size
    if width * height < 1_000_000:
        return np.asarray(image)
    # Pillow joins many small pieces of memory, which takes as long as decoding a large
    # image. Bands reuse the same memory.
    pixels = np.empty((height, width, 3), np.uint8)
    rows = max(_BAND_BYTES // (3 * width), 1)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        pixels[top:bottom] = np.asarray(image.crop((0, top, width, bottom)))
    return pixels


def turn(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turn an image as its EXIF orientation requires, as viewers show it.

    Args:
      image: [height, width, 3].
      orientation: From 1 to 8; 1 leaves the image as it is.

    Returns:
      A view of the image.
    """
    if orientation in (5, 6, 7, 8):
        image = image.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return image
