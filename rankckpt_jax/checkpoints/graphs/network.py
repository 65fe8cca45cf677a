"""A network as its file describes it, before conversion to a `Backbone`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from rankckpt_jax.checkpoints.graphs.flat_graph import FlatGraph
from rankckpt_jax.checkpoints.pixels import Pixels

Shape = tuple[int | None, ...] | None
"""A tensor's shape; None for unknown sizes, and for an unknown rank."""


@dataclasses.dataclass(frozen=True)
class Function:
    """A function of images.

    Attributes:
      flat: The graph.
      images: Tensor of the images.
      image_shape: Shape of that tensor.
      outputs: Tensors by the names of the outputs.
      shapes: Shapes by the names of the outputs.
      assigned: Nodes that assign variables when the function runs.
    """

    flat: FlatGraph
    images: str
    image_shape: Shape
    outputs: Mapping[str, str]
    shapes: Mapping[str, Shape]
    assigned: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Network:
    """The contents of a checkpoint.

    Attributes:
      where: The file, for messages.
      kind: "TF-Hub module", "SavedModel" or "Keras model".
      evaluation: The function that uses batch norm's moving averages.
      training: The function that uses batch statistics; None if the file has none.
      dtypes: TensorFlow's `DataType` of each variable, by name.
      trainable: Names of the variables that gradients update.
      read: Function that returns the values of named variables.
      image_size: Side of the images in pixels; None if the file does not give it.
      input_range: Values that the pixels 0 and 255 become, by the convention of the
        file's publisher; None if there is none.
      range_source: Where that convention is from, if it should be mentioned.
      input_mean: Mean per channel that is subtracted afterwards.
      pixels: Further preprocessing within the network.
      architecture: Name of the network; "" if the file does not give it.
    """

    where: str
    kind: str
    evaluation: Function
    training: Function | None
    dtypes: Mapping[str, int]
    trainable: frozenset[str]
    read: Callable[[Iterable[str]], dict[str, np.ndarray]]
    image_size: int | None = None
    input_range: tuple[float, float] | None = None
    range_source: str = ""
    input_mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    pixels: Pixels = Pixels()
    architecture: str = ""
