"""The evaluation transforms of networks: an antialiased resize, then a central crop.

They equal those of timm and torchvision byte for byte, because they are the same
operations of Pillow on the same sizes.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from rankckpt_jax.data.decode import MAX_MEGAPIXELS, UnusableImage
from rankckpt_jax.errors import InputError, unknown_name

INTERPOLATIONS: Mapping[str, Image.Resampling] = {
    name.lower(): value for name, value in Image.Resampling.__members__.items()
}
"""Interpolations by timm's names. All of them are antialiased, except "nearest"."""

MODES = ("center", "squash", "border")
"""Modes of cropping by timm's names; see `Transform`."""

_RULE = re.compile(r"own\((\d+),([a-z]+),([a-z]+)(?: (\d+) (\d+) (\d+))?\)")


@dataclasses.dataclass(frozen=True)
class Transform:
    """A network's own evaluation transform, for any size of its input.

    Attributes:
      crop_share: Side of the crop divided by that of the resized image (timm's
        `crop_pct`). The resized side is floor(size / crop_share).
      interpolation: One of INTERPOLATIONS.
      mode: "center" resizes the short side and keeps the aspect ratio, "squash"
        resizes both sides, "border" resizes the long side and pads the other.
      fill: Color of the border in [0, 255], red, green and blue.
    """

    crop_share: float
    interpolation: str = "bicubic"
    mode: str = "center"
    fill: tuple[int, int, int] = (0, 0, 0)

    def __post_init__(self) -> None:
        """Check the attributes.

        Raises:
          InputError: The interpolation, the mode or the share is not supported.
        """
        where = "a network's own preprocessing"
        if self.interpolation not in INTERPOLATIONS:
            raise unknown_name(
                "interpolation", self.interpolation, INTERPOLATIONS, where
            )
        if self.mode not in MODES:
            raise unknown_name("crop mode", self.mode, MODES, where)
        if not 0.1 <= self.crop_share <= 10:
            raise InputError(
                "Unusual share of the crop",
                where=where,
                expected="a number from 0.1 to 10, usually 0.875 to 1",
                found=str(self.crop_share),
                fix='use another preprocessing, such as config.preprocess = "vtab"',
            )

    def rule(self, size: int) -> str:
        """Return the name of the transform at a size, for `preprocess.resize`.

        Example:
          >>> Transform(0.9).rule(224)
          'own(248,bicubic,center)'
        """
        # The same division as timm's, because others round differently.
        side = math.floor(size / self.crop_share)
        fill = " ".join(["", *map(str, self.fill)]) if self.mode == "border" else ""
        return f"own({side},{self.interpolation},{self.mode}{fill})"


def from_timm(config: Mapping[str, Any]) -> Transform:
    """Return the transform that `timm.data.create_transform(**config)` makes.

    Args:
      config: `timm.data.resolve_data_config({}, model=model)`: `crop_pct`, `crop_mode`,
        `interpolation` and `mean`.

    Raises:
      InputError: The transform is not supported.
    """
    red, green, blue = (round(255 * value) for value in config["mean"])
    return Transform(
        crop_share=config["crop_pct"],
        interpolation=config["interpolation"],
        mode=config["crop_mode"],
        fill=(red, green, blue) if config["crop_mode"] == "border" else (0, 0, 0),
    )


def from_sides(resize: int, crop: int, interpolation: str) -> Transform:
    """Return the transform that resizes the short side, as torchvision's presets do.

    Args:
      resize: Length of the short side after resizing, in pixels.
      crop: Side of the central crop at the network's own size, in pixels.
      interpolation: One of INTERPOLATIONS.
    """
    share = crop / resize
    # The quotient can round to just above the share.
    while math.floor(crop / share) < resize:
        share = math.nextafter(share, 0)
    return Transform(share, interpolation)


def is_rule(name: str) -> bool:
    """Return whether a name is one that `Transform.rule` returns."""
    return _RULE.fullmatch(name) is not None


def apply(image: np.ndarray, size: int, rule: str) -> np.ndarray:
    """Resize and crop an image by the transform that a rule names.

    Args:
      image: uint8 [H, W, 3].
      size: Side of the result in pixels, S.
      rule: A name that `Transform.rule` returned for this size.

    Returns:
      uint8 [S, S, 3].

    Raises:
      UnusableImage: The resized image would be larger than MAX_MEGAPIXELS.
    """
    match = _RULE.fullmatch(rule)
    assert match is not None, rule
    side, interpolation, mode = int(match[1]), match[2], match[3]
    fill = tuple(int(value or 0) for value in match.groups()[3:])
    height, width = image.shape[:2]
    if mode == "squash":
        new_height = new_width = side
    elif mode == "border":
        ratio = max(height / side, width / side)
        # At least a pixel; Pillow refuses an empty image.
        new_height, new_width = (max(round(x / ratio), 1) for x in (height, width))
    elif width <= height:
        new_height, new_width = int(side * height / width), side
    else:
        new_height, new_width = side, int(side * width / height)
    # One row of pixels that is resized by its short side would take gigabytes.
    if new_height * new_width > MAX_MEGAPIXELS * 1_000_000:
        raise UnusableImage(
            f"{width} x {height} pixels; its short side cannot be resized to {side}"
        )
    resized = image
    if (new_height, new_width) != (height, width):
        with Image.fromarray(image) as original:
            resized = np.asarray(
                original.resize((new_width, new_height), INTERPOLATIONS[interpolation])
            )
    return _crop_or_pad(resized, size, fill)


def _crop_or_pad(image: np.ndarray, size: int, fill: tuple[int, ...]) -> np.ndarray:
    """Return the central square, padded where the image is smaller."""
    missing = [max(size - length, 0) for length in image.shape[:2]]
    if any(missing):
        around = [(total // 2, total - total // 2) for total in missing]
        padded = np.empty(
            (image.shape[0] + missing[0], image.shape[1] + missing[1], 3), np.uint8
        )
        padded[:] = fill
        (top, _), (left, _) = around
        padded[top : top + image.shape[0], left : left + image.shape[1]] = image
        image = padded
    # Rounded half to even, as in torchvision.
    top, left = (round((length - size) / 2) for length in image.shape[:2])
    return np.ascontiguousarray(image[top : top + size, left : left + size])
