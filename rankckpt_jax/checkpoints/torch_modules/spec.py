"""Names of PyTorch networks: which function of which library builds them."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

from rankckpt_jax.data import lazy_tensorflow
from rankckpt_jax.errors import InputError

ENGINES = ("auto", "jax", "torch")
"""The values of `config.torch_engine`."""

INSTALL = 'pip install "rankckpt_jax[torch]"'


@dataclasses.dataclass(frozen=True)
class ModuleSpec:
    """A network without weights. Equal specs build equal networks.

    Attributes:
      library: "timm", "torchvision", or "module" for one that exists in memory only.
      name: Name of the architecture within the library.
      arguments: Further arguments of the function that builds it, such as
        (("img_size", 256),), with hashable values.
    """

    library: str
    name: str
    arguments: tuple[tuple[str, Any], ...] = ()


def build(spec: ModuleSpec) -> Any:
    """Return the network as a new `torch.nn.Module` with random weights, on the CPU.

    Raises:
      InputError: The library is not installed, or the network exists in memory only.
    """
    arguments = dict(spec.arguments)
    if spec.library == "timm":
        timm = import_library("timm")
        return timm.create_model(spec.name, pretrained=False, **arguments)
    if spec.library == "torchvision":
        torchvision = import_library("torchvision")
        return torchvision.models.get_model(spec.name, weights=None, **arguments)
    raise InputError(
        f"The PyTorch module {spec.name} exists only in the process that made it",
        fix="pass the module again with checkpoints.from_torch",
    )


def import_library(name: str) -> Any:
    """Import "torch", "timm", "torchvision" or "safetensors.torch".

    Raises:
      InputError: It is not installed; the message has the line to install it.
    """
    # The user may have imported TensorFlow.
    lazy_tensorflow.hide_triton()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise InputError(
            f"PyTorch checkpoints need {error.name}, which is not installed",
            fix=INSTALL,
        ) from error
