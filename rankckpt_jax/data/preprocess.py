"""Preprocessing of images, in two steps.

On the host, each image is cropped and resized to a square of bytes (`resize`). On the
device, JAX maps each batch to the range of the network (`to_input_range`). One decoded
copy therefore serves networks of different ranges.

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

from rankckpt_jax.data import bilinear, decode, transform
from rankckpt_jax.errors import unknown_name

VERSIONS: Mapping[str, int] = types.MappingProxyType(
    {
        "decode": 2,
        "vtab": 2,
        "slim_inception": 2,
        "slim_vgg": 2,
        "own": 1,
        "to_input_range": 1,
    }
)
"""Version of each transformation: `decode`, the rules of `resize`, `to_input_range`.

They are part of the key of every result that is made of images. Raise a version with
every change of the values that its transformation returns.
"""

DTYPE = np.dtype(np.uint8)
"""Dtype of resized images, on the host and as arguments of compiled programs."""


OWN = "own"
"""The value of `config.preprocess` for the rule of each network; see `resolve`."""


def _vtab(image: np.ndarray, size: int) -> np.ndarray:
    """Resize bilinearly to a square, without crop or antialiasing (VTAB)."""
    return bilinear.resize(image, size, size, half_pixel_centers=True)


def _slim_inception(image: np.ndarray, size: int) -> np.ndarray:
    """Crop the central 87.5 %, then resize bilinearly as TensorFlow 1 does."""
    top, left = (int((length - length * 0.875) / 2) for length in image.shape[:2])
    height, width = image.shape[0] - 2 * top, image.shape[1] - 2 * left
    image = image[top : top + height, left : left + width]
    return bilinear.resize(image, size, size, half_pixel_centers=False)


def _slim_vgg(image: np.ndarray, size: int) -> np.ndarray:
    """Resize the short side to 256/224 of `size`, then crop the center."""
    sides = np.asarray(image.shape[:2], np.float32)
    short = np.float32(round(size * 256 / 224))
    height, width = np.rint(sides * (short / sides.min())).astype(int)
    image = bilinear.resize(image, height, width, half_pixel_centers=False)
    top, left = (height - size) // 2, (width - size) // 2
    return image[top : top + size, left : left + size]


_PREPROCESSES: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "vtab": _vtab,
    "slim_inception": _slim_inception,
    "slim_vgg": _slim_vgg,
}


def names() -> tuple[str, ...]:
    """Return the names of the rules of `resize` that do not depend on a network."""
    return tuple(_PREPROCESSES)


def check(setting: str) -> None:
    """Raise if a setting is neither a rule of `resize` nor `OWN`.

    Raises:
      InputError: Names the nearest value.
    """
    if setting not in (*names(), OWN):
        known = (*names(), OWN)
        raise unknown_name("preprocessing", setting, known, "config.preprocess")


def resolve(setting: str, own: str) -> str:
    """Return the rule of `resize` that `config.preprocess` selects for a network.

    Args:
      setting: One of `names()`, or `OWN`.
      own: The network's own rule.
    """
    return own if setting == OWN else setting


def key(preprocess: str) -> dict[str, Any]:
    """Return the part of a key that identifies the preprocessing of images.

    Args:
      preprocess: The rule; see `resize`.
    """
    name = OWN if transform.is_rule(preprocess) else preprocess
    return {
        "preprocess": preprocess,
        "preprocess_versions": {
            part: VERSIONS[part] for part in ("decode", name, "to_input_range")
        },
        "jpeg_decoder": decode.JPEG_DECODER,
    }


def resize(image: np.ndarray, size: int, preprocess: str) -> np.ndarray:
    """Crop and resize one image by a named rule.

    Args:
      image: uint8 [height, width, 3].
      size: Side of the resulting square in pixels.
      preprocess: "vtab" (used by the benchmark: bilinear, no crop, no antialiasing),
        "slim_inception" or "slim_vgg" (the evaluation of TF-Slim), or a name that
        `Transform.rule` returns (the evaluation of a network by its library).

    Returns:
      uint8 [size, size, 3], rounded half to even.

    Raises:
      InputError: The rule is unknown.
      UnusableImage: The resized image would be too large.
    """
    if transform.is_rule(preprocess):
        return transform.apply(image, size, preprocess)
    if preprocess not in _PREPROCESSES:
        raise unknown_name("preprocessing", preprocess, names(), "config.preprocess")
    return _PREPROCESSES[preprocess](image, size)


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
