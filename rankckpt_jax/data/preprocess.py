"""Preprocessing of images, in two steps.

On the host, TensorFlow crops and resizes each image to a square of bytes (`resize`). On
the device, JAX maps each batch to the range of the network (`to_input_range`). One
decoded copy therefore serves networks of different ranges.

Resized values are rounded to whole gray levels. VTAB and TF-Slim pass them to the
network without rounding, so ours differ by at most half a level. A byte takes a quarter
of the space and of the time to copy.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from rankckpt_jax.data import decode
from rankckpt_jax.data.lazy_tensorflow import tensorflow
from rankckpt_jax.errors import unknown_name

VERSIONS: Mapping[str, int] = types.MappingProxyType(
    {"decode": 2, "vtab": 2, "slim_inception": 2, "slim_vgg": 2, "to_input_range": 1}
)
"""Version of each transformation: `decode`, the rules of `resize`, `to_input_range`.

They are part of the key of every result that is made of images. Raise a version with
every change of the values that its transformation returns.
"""

DTYPE = np.dtype(np.uint8)
"""Dtype of resized images, on the host and as arguments of compiled programs."""


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
        "jpeg_decoder": decode.JPEG_DECODER,
    }


def resize(image: Any, size: int, preprocess: str) -> Any:
    """Crop and resize one image by a named rule.

    Args:
      image: uint8 [height, width, 3].
      size: Side of the resulting square in pixels.
      preprocess: "vtab" (used by the benchmark: bilinear, no crop, no antialiasing),
        or "slim_inception" or "slim_vgg" (the evaluation of TF-Slim).

    Returns:
      uint8 [size, size, 3], rounded half to even.

    Raises:
      InputError: The rule is unknown.
    """
    if preprocess not in _PREPROCESSES:
        raise unknown_name("preprocessing", preprocess, names(), "config.preprocess")
    tf = tensorflow()
    image = tf.cast(tf.round(_PREPROCESSES[preprocess](image, size)), DTYPE)
    image.set_shape([size, size, 3])
    return image


def scaling(
    input_range: tuple[float, float], input_mean: tuple[float, float, float]
) -> tuple[np.float32, np.float32, np.ndarray]:
    """Return the arguments (low, high, mean) of `to_input_range` in float32."""
    low, high = input_range
    return np.float32(low), np.float32(high), np.asarray(input_mean, np.float32)


def scaling_shapes() -> tuple[jax.ShapeDtypeStruct, ...]:
    """Return the shapes of `scaling`."""
    return tuple(jax.ShapeDtypeStruct(shape, np.float32) for shape in ((), (), (3,)))


def to_input_range(
    images: jax.Array, low: jax.Array, high: jax.Array, mean: jax.Array
) -> jax.Array:
    """Map images from [0, 255] to [low, high] and subtract a mean per channel.

    Args:
      images: uint8 or float [B, H, W, 3] in [0, 255]. Bytes are promoted to float32,
        the dtype of the scale.
      low: Scalar, the result for 0.
      high: Scalar, the result for 255.
      mean: [3], subtracted afterwards. Zeros for most networks; VGG-style networks of
        TF-Slim use the ImageNet mean with the range [0, 255].

    Returns:
      float [B, H, W, 3].
    """
    return images * ((high - low) / 255.0) + low - mean
