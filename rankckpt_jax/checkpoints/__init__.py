"""Anything on disk or on a hub becomes a `Backbone`.

`load` takes whatever it is; `load_slim` and `load_hub` are for one kind and have more
to say about it; `find` lists a pool and `recognize` tells a TF-Slim checkpoint's
architecture.
"""

from __future__ import annotations

from etils import epath

from rankckpt_jax.checkpoints.backbone import Backbone
from rankckpt_jax.checkpoints.discovery import find
from rankckpt_jax.checkpoints.fetch import download
from rankckpt_jax.checkpoints.fetch import uris as handles
from rankckpt_jax.checkpoints.sources.hub import is_module, load_hub
from rankckpt_jax.checkpoints.sources.slim import (
    CheckpointInfo,
    load_slim,
    recognize,
    save_slim,
)

__all__ = [
    "Backbone",
    "CheckpointInfo",
    "download",
    "find",
    "load",
    "load_hub",
    "load_slim",
    "recognize",
    "save_slim",
]


def load(
    path: str,
    *,
    name: str = "",
    image_size: int = 0,
    use_moving_averages: bool = False,
    storage: download.Storage | None = None,
    cache: epath.Path | str | None = None,
) -> Backbone:
    """Loads a checkpoint of whatever kind and architecture it turns out to be.

    Args:
      path: See `load_slim` and `load_hub`; a module may have options after "#", see
        `handles`.
      name: Unique in its pool; by default the folder's name.
      image_size: Side of the images in pixels; 0 for what the checkpoint says, else
        the architecture's default.
      use_moving_averages: See `load_slim`; of a module its own variables are taken.
      storage: Where downloads are kept.
      cache: Where conversions of modules are kept.

    Raises:
      InputError: It cannot be fetched, read or recognized.
    """
    storage = storage or download.storage()
    spec, text = handles.split_options(str(path))
    place = handles.resolve(spec, storage)
    if is_module(place):
        options = {"image_size": image_size or None, **handles.options(text)}
        return load_hub(
            spec, name=name or None, storage=storage, cache=cache, **options
        )
    recognized = recognize(place)
    return load_slim(
        recognized.architecture,
        place,
        image_size or None,
        name=name,
        use_moving_averages=use_moving_averages,
    )
