"""PyTorch weights: .safetensors, .pth, .pt, .bin, or a folder with config.json.

A folder is laid out as on the Hugging Face hub: config.json names a network of timm,
and model.safetensors has its weights. A file alone needs the name of its network,
FILE#model=NAME.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence

from etils import epath

from rankckpt_jax.checkpoints.backbone import Backbone
from rankckpt_jax.checkpoints.fetch import hub_cache
from rankckpt_jax.checkpoints.sources import (
    Options,
    state_dict,
    timm_networks,
    torchvision,
)
from rankckpt_jax.errors import InputError, some


def matches(path: epath.Path) -> bool:
    """Return whether a path is a file of weights or a folder of the hub's layout."""
    if path.is_dir():
        return timm_networks.find_weights(path) is not None
    return state_dict.matches(path)


def needs_model(path: epath.Path) -> bool:
    """Return whether a path is of weights that do not name their network."""
    return not path.is_dir() and state_dict.matches(path)


def load(path: epath.Path, options: Options) -> Backbone:
    """Load a file of weights or a folder of the hub's layout.

    Raises:
      InputError: It cannot be read, its network is not named, or the weights are not
        those of the network.
    """
    file = timm_networks.find_weights(path) if path.is_dir() else path
    assert file is not None
    library, _, name = options.model.rpartition(":")
    if not name:
        if path.is_dir():
            return timm_networks.load_folder(path, file, options)
        raise unnamed([str(path)])
    where = f"#model={options.model}"
    loader: Callable[..., Backbone]
    if library == torchvision.SCHEME:
        (name,) = torchvision.names(name)
        loader = torchvision.load_weights
    elif library in ("", "timm"):
        timm_networks.check_architecture(name, where)
        loader = timm_networks.load
    else:
        raise InputError(
            f"Networks of {library!r} cannot be built",
            where=where,
            expected="a name of timm, or torchvision:NAME",
            found=options.model,
        )
    weights = state_dict.read(file, options.use_moving_averages)
    return loader(
        name,
        weights,
        options,
        digest=hub_cache.digest(pathlib.Path(file)),
        where=str(file),
    )


def unnamed(paths: Sequence[str]) -> InputError:
    """Return the error for files of weights without the name of their network."""
    return InputError(
        "The network that the weights belong to is not named",
        where=some(paths, 4),
        expected="FILE#model=NAME, where NAME is of timm, or torchvision:NAME",
        found="weights alone",
        fix=f"for example '{paths[0]}#model=resnet50'; rankckpt list checkpoints "
        "'timm:*' and 'torchvision:*' list the names",
    )
