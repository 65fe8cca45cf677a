"""Preprocessing within a network, beyond an input range and a mean."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from rankckpt_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Pixels:
    """Changes of the channels of an image; by default none.

    Attributes:
      reverse: Whether to reverse the channels to blue, green, red.
      scale: Factor of each channel.
      offset: Added to each channel afterwards.
    """

    reverse: bool = False
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Preprocess images [B, H, W, 3]; the shape stays."""
        if self.reverse:
            images = images[..., ::-1]
        if self == Pixels(self.reverse):
            return images
        return images * jnp.asarray(self.scale) + jnp.asarray(self.offset)


def standardize(
    mean: Sequence[float] | None, std: Sequence[float] | None, where: str
) -> Pixels:
    """Return the preprocessing (x - mean) / std of each channel.

    Args:
      mean: Mean per channel, [3]; None for zeros.
      std: Standard deviation per channel, [3], above 0; None for ones.
      where: The network, for messages.

    Raises:
      InputError: There are not three of each, or a deviation is not above 0.
    """
    means = [float(value) for value in (mean if mean is not None else (0, 0, 0))]
    stds = [float(value) for value in (std if std is not None else (1, 1, 1))]
    if len(means) != 3 or len(stds) != 3 or not min(stds) > 0:
        raise InputError(
            "The scaling of the pixels cannot be used",
            where=where,
            expected="mean and std of three channels each, std above 0",
            found=f"mean={mean}, std={std}",
            fix="for ImageNet mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)",
        )
    red, green, blue = (1 / deviation for deviation in stds)
    scale = red, green, blue
    red, green, blue = (-m / s for m, s in zip(means, stds, strict=True))
    return Pixels(scale=scale, offset=(red, green, blue))
