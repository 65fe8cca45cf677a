"""Anything on disk becomes a `Backbone`: `load_slim`, `load`, `find`, `recognise`."""

from rankckpt_jax.checkpoints.backbone import Backbone
from rankckpt_jax.checkpoints.finding import find
from rankckpt_jax.checkpoints.slim import Recognised, load_slim, recognise, save_slim

__all__ = [
    "Backbone",
    "Recognised",
    "find",
    "load",
    "load_slim",
    "recognise",
    "save_slim",
]


def load(
    path: str,
    *,
    name: str = "",
    image_size: int = 0,
    use_moving_averages: bool = False,
) -> Backbone:
    """Loads a checkpoint of whatever architecture it turns out to be.

    Args:
      path: See `load_slim`.
      name: Unique in its pool; by default the folder's name.
      image_size: Side of the images in pixels; 0 for what the folder's name says,
        else the architecture's default.
      use_moving_averages: See `load_slim`.

    Raises:
      InputError: It cannot be read or recognised.
    """
    recognised = recognise(path)
    return load_slim(
        recognised.architecture,
        path,
        image_size or None,
        name=name,
        use_moving_averages=use_moving_averages,
    )
