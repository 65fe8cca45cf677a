"""The registry of networks, and their properties apart from the weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn

from rankckpt_jax.errors import unknown_name


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One network: how to build it, its input, and the TF-Slim names of its parts.

    Attributes:
      name: As in TF-Slim's `nets_factory`.
      build: `build(num_classes=, dtype=, axis_name=, momentum=)` returns the module.
      feature_dim: D, width of the features before the classifier.
      scope: TF-Slim's root variable scope.
      classifier: Scope of the classifier below the root.
      classifier_is_dense: Whether TF-Slim stores the classifier's weights as [D, C]
        instead of [1, 1, D, C], the weights of a 1x1 convolution.
      image_size: Usual side of the training images in pixels.
      minimum_image_size: Smallest side at which every window fits its feature map.
      input_range: Values of the pixels 0 and 255 after scaling.
      input_mean: Subtracted after scaling, per channel.
      blocks: Names of the endpoints at the end of the last three stages, in order. A
        stage is all layers of one resolution, or a block of the paper.
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
    blocks: tuple[str, ...] = ()


NUM_BLOCKS = 3
"""Number of last blocks whose pooled outputs a run can use as features."""


def last_of_stages(names: Sequence[str], strides: Sequence[int]) -> tuple[str, ...]:
    """Return the names of the layers at the end of the last `NUM_BLOCKS` stages.

    Args:
      names: Names of consecutive layers.
      strides: Stride of each layer; a stage begins with a stride above 1.
    """
    begins = [*(stride > 1 for stride in strides[1:]), True]
    ends = [name for name, ends in zip(names, begins, strict=True) if ends]
    return tuple(ends[-NUM_BLOCKS:])


Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of a TF-Slim checkpoint's variables by their names."""


Resolve = Callable[[str], Architecture | None]
Guess = Callable[[Shapes], Architecture | None]

_REGISTRY: dict[str, Architecture] = {}
_FAMILIES: list[tuple[Resolve, Guess]] = []


def register(*architectures: Architecture) -> None:
    """Add networks to the registry; the file of each family calls this once."""
    for architecture in architectures:
        if architecture.name in _REGISTRY:
            raise ValueError(f"{architecture.name!r} is registered twice")
        _REGISTRY[architecture.name] = architecture


def register_family(resolve: Resolve, guess: Guess = lambda shapes: None) -> None:
    """Add a rule for more networks than can be listed, such as all width multipliers.

    Args:
      resolve: Returns the architecture with a name, or None if it is of another family.
      guess: Returns the architecture that a checkpoint's shapes suggest, or None.
    """
    _FAMILIES.append((resolve, guess))


def names() -> tuple[str, ...]:
    """Return the names of all registered networks, sorted."""
    return tuple(sorted(_REGISTRY))


def get(name: str) -> Architecture:
    """Return the architecture `name`.

    Raises:
      InputError: There is no network of that name.
    """
    if name in _REGISTRY:
        return _REGISTRY[name]
    for resolve, _ in _FAMILIES:
        if (architecture := resolve(name)) is not None:
            return architecture
    raise unknown_name("architecture", name, names(), where="the name of a network")


def candidates(shapes: Shapes) -> tuple[Architecture, ...]:
    """Return the networks that a checkpoint may hold: all listed ones, and guesses."""
    guesses = (guess(shapes) for _, guess in _FAMILIES)
    return (*_REGISTRY.values(), *(found for found in guesses if found is not None))


def create(name: str, num_classes: int = 0, **options: Any) -> nn.Module:
    """Build the Flax module of the network `name`.

    Args:
      name: As in TF-Slim's `nets_factory`, such as "mobilenet_v1_025".
      num_classes: Width of the classifier; 0 for features only.
      **options: Fields of `layers.Network`: `dtype`, `axis_name`, `momentum`.

    Returns:
      A module. `apply(variables, images, train=False)` takes float [B, H, W, 3] in the
      network's input range and returns `layers.Output`.

    Raises:
      InputError: There is no network of that name.
    """
    return get(name).build(num_classes=num_classes, **options)
