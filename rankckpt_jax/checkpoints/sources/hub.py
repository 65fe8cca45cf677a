"""TF-Hub modules and SavedModels: directories with saved_model.pb.

They become pure functions of images and Flax variables through their TensorFlow graphs
and tf2jax. If the variables are those of a network in `models` and the two agree, the
Flax network replaces the graph.
"""

from __future__ import annotations

from etils import epath

from rankckpt_jax.checkpoints.backbone import Backbone
from rankckpt_jax.checkpoints.graphs import convert, saved_models
from rankckpt_jax.checkpoints.sources import Options, fingerprint

KEEP_CONVERSION = True

_FILES = ("saved_model.pb", "tfhub_module.pb")


def matches(path: epath.Path) -> bool:
    """Return whether a path is a directory with a SavedModel or a TF-Hub module."""
    return any((path / name).exists() for name in _FILES)


def load(path: epath.Path, options: Options) -> Backbone:
    """Convert a SavedModel or TF-Hub module; see `checkpoints.load_hub`.

    Raises:
      InputError: It cannot be read, is unsafe, has no unambiguous features, or has an
        operation without a counterpart in JAX.
    """
    network = saved_models.read(path, options.signature or None)
    return convert.to_backbone(network, fingerprint(path, options), options)
