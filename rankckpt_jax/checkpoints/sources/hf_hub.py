"""Networks of timm in any repository of the Hugging Face hub: hf-hub:ORG/NAME."""

from __future__ import annotations

import re

from etils import epath

from rankckpt_jax.checkpoints.backbone import Backbone
from rankckpt_jax.checkpoints.fetch import hub_cache
from rankckpt_jax.checkpoints.sources import Options, timm_networks
from rankckpt_jax.checkpoints.torch_modules import spec
from rankckpt_jax.errors import InputError
from rankckpt_jax.storage import files

SCHEME = "hf-hub"

_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*(@\w[\w./-]*)?")


def names(pattern: str = "") -> tuple[str, ...]:
    """Return the name of a repository; the hub is not searched.

    Args:
      pattern: "ORG/NAME", with "@REVISION" for another than "main".

    Raises:
      InputError: It is not the name of a repository.
    """
    if not _NAME.fullmatch(pattern):
        raise InputError(
            "A name of the Hugging Face hub is needed",
            where=f"{SCHEME}:{pattern}",
            expected="hf-hub:ORG/NAME or hf-hub:ORG/NAME@REVISION",
            found=pattern or "nothing",
            fix="see https://huggingface.co/timm, or the names that timm knows: "
            "rankckpt list checkpoints 'timm:*'",
        )
    return (pattern,)


def identify(name: str) -> str:
    """Return a digest of the files, or "" if they are not in the cache."""
    spec.import_library("huggingface_hub")
    parts = [
        hub_cache.find(name, wanted)
        for wanted in ((timm_networks.CONFIG,), timm_networks.FILES)
    ]
    return (
        files.digest(*(hub_cache.digest(p) for p in parts if p)) if all(parts) else ""
    )


def load_named(name: str, options: Options) -> Backbone:
    """Load a network, and download its files if necessary.

    Raises:
      InputError: It cannot be downloaded, is not a network of timm, or cannot be
        converted.
    """
    spec.import_library("huggingface_hub")
    config = hub_cache.get(name, (timm_networks.CONFIG,))
    weights = hub_cache.get(name, timm_networks.FILES)
    return timm_networks.load_folder(
        epath.Path(config).parent, epath.Path(weights), options
    )
