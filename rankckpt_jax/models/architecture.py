"""What is known of an architecture apart from its weights, and the registry of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn

from rankckpt_jax.errors import InputError, suggest


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One network: how to build it, what it is fed, what TF-Slim calls its parts.

    Attributes:
      name: As in TF-Slim's `nets_factory`.
      build: `build(num_classes=, dtype=, axis_name=)` returns the Flax module.
      feature_dim: D, width of the features before the classifier.
      scope: TF-Slim's root variable scope.
      classifier: Scope of the classifier below the root.
      classifier_is_dense: Whether TF-Slim stores its weights as [D, C], and not as
        those of a 1x1 convolution, [1, 1, D, C].
      image_size: Side in pixels it is usually trained at.
      minimum_image_size: Smallest side that leaves every layer a whole window.
      input_range: Values that 0 and 255 become.
      input_mean: Subtracted afterwards, per channel.
    """

    name: str
    build: Callable[..., nn.Module]
    feature_dim: int
    scope: str
    classifier: str
    classifier_is_dense: bool = False
    image_size: int = 224
    minimum_image_size: int = 1
    input_range: tuple[float, float] = (-1.0, 1.0)
    input_mean: tuple[float, float, float] = (0.0, 0.0, 0.0)


Shapes = Mapping[str, tuple[int, ...]]
"""Variable names of a TF-Slim checkpoint and their shapes."""


@dataclasses.dataclass(frozen=True)
class Family:
    """Networks too many to list, such as those of any width multiplier.

    Attributes:
      resolve: The architecture of a name, or None where it is not of this family.
      guess: The architecture that a checkpoint's shapes point to, or None.
    """

    resolve: Callable[[str], Architecture | None]
    guess: Callable[[Shapes], Architecture | None]


_REGISTRY: dict[str, Architecture] = {}
_FAMILIES: list[Family] = []


def register(*architectures: Architecture) -> None:
    """Adds networks; a family's file calls it once with its table."""
    for architecture in architectures:
        if architecture.name in _REGISTRY:
            raise ValueError(f"{architecture.name!r} is registered twice")
        _REGISTRY[architecture.name] = architecture


def register_family(family: Family) -> None:
    """Adds a rule for networks that are not listed one by one."""
    _FAMILIES.append(family)


def names() -> tuple[str, ...]:
    """Names of all registered networks, sorted."""
    return tuple(sorted(_REGISTRY))


def get(name: str) -> Architecture:
    """Returns what is known of the network `name`.

    Raises:
      InputError: There is none of that name.
    """
    if name in _REGISTRY:
        return _REGISTRY[name]
    for family in _FAMILIES:
        if (architecture := family.resolve(name)) is not None:
            return architecture
    raise InputError(
        f"Unknown architecture {name!r}",
        where="the name of a network",
        expected=", ".join(names()),
        found=name,
        fix=suggest(name, names()),
    )


def candidates(shapes: Shapes) -> tuple[Architecture, ...]:
    """Networks that a checkpoint might hold: all that are listed, and guesses."""
    guesses = (family.guess(shapes) for family in _FAMILIES)
    return (*_REGISTRY.values(), *(guess for guess in guesses if guess is not None))


def create(name: str, num_classes: int = 0, **options: Any) -> nn.Module:
    """Builds the Flax module of the network `name`.

    Args:
      name: As in TF-Slim's `nets_factory`: "mobilenet_v1_025".
      num_classes: Width of the classifier; 0 for features alone.
      **options: `dtype` of the computation (float32), `axis_name` of the mapped axis
        over which batch moments are averaged in training (None).

    Returns:
      A module whose `apply(variables, images, train=False)` takes float [B, H, W, 3]
      in the network's input range and returns `layers.Output`.

    Raises:
      InputError: There is no network of that name.
    """
    return get(name).build(num_classes=num_classes, **options)


def default_image_size(name: str) -> int:
    """Side in pixels of the images that the network `name` is usually trained at."""
    return get(name).image_size


def minimum_image_size(name: str) -> int:
    """Side in pixels of the smallest images that the network `name` can take."""
    return get(name).minimum_image_size


def feature_dim(name: str) -> int:
    """D, width of the features of the network `name`."""
    return get(name).feature_dim


def input_range(name: str) -> tuple[float, float]:
    """Values that 0 and 255 become before the network `name`, less `input_mean`."""
    return get(name).input_range


def input_mean(name: str) -> tuple[float, float, float]:
    """What the network `name` wants subtracted from its input range, per channel."""
    return get(name).input_mean
