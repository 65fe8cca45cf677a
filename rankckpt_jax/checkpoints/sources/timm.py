"""Pre-trained networks of timm by name: timm:NAME or timm:NAME.TAG."""

from __future__ import annotations

import importlib.metadata
import pathlib
from typing import Any

from etils import epath

from rankckpt_jax.checkpoints.backbone import Backbone
from rankckpt_jax.checkpoints.fetch import hub_cache, torch_cache
from rankckpt_jax.checkpoints.sources import Options, state_dict, timm_networks
from rankckpt_jax.checkpoints.torch_modules import spec
from rankckpt_jax.storage import files

SCHEME = "timm"

names = timm_networks.names


def identify(name: str) -> str:
    """Return a digest of the weights, or "" if they are not in the cache."""
    config = _config(name)
    file: pathlib.Path | None
    if config.hf_hub_id:
        file = hub_cache.find(config.hf_hub_id, _files(config))
    else:
        file = torch_cache.path(config.url)
    if file is None or not file.exists():
        return ""
    version = importlib.metadata.version("timm")
    return files.digest(name, version, hub_cache.digest(file))


def load_named(name: str, options: Options) -> Backbone:
    """Load a network, and download its weights if necessary.

    Raises:
      InputError: It cannot be downloaded or converted.
    """
    config = _config(name)
    if config.hf_hub_id:
        file = hub_cache.get(config.hf_hub_id, _files(config))
    else:
        file = torch_cache.get(config.url, f"{SCHEME}:{name}")
    return timm_networks.load(
        name,
        state_dict.read(epath.Path(file)),
        options,
        digest=hub_cache.digest(file),
        where=str(file),
        is_exact=True,
    )


def _config(name: str) -> Any:
    return spec.import_library("timm").get_pretrained_cfg(name)


def _files(config: Any) -> tuple[str, ...]:
    file = config.hf_hub_filename
    return (file,) if file else timm_networks.FILES
