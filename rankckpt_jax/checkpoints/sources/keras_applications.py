"""Pre-trained networks of keras.applications: keras:NAME, such as keras:ResNet50."""

from __future__ import annotations

import dataclasses
import fnmatch
import importlib.metadata
import os
import pathlib
import re
from urllib.parse import urlsplit

from rankckpt_jax.checkpoints.backbone import Backbone, digest_weights
from rankckpt_jax.checkpoints.graphs import convert
from rankckpt_jax.checkpoints.sources import Options, keras
from rankckpt_jax.errors import InputError, unknown_name
from rankckpt_jax.storage import files

SCHEME = "keras"

KEEP_CONVERSION = True

# Keras stores these under other names than those of their addresses.
_RENAMED = {
    "NASNet-large.h5": "nasnet_large.h5",
    "NASNet-mobile.h5": "nasnet_mobile.h5",
}


def names(pattern: str = "") -> tuple[str, ...]:
    """Return the networks of keras.applications.

    Args:
      pattern: A name with "*", or one name.

    Raises:
      InputError: Keras has no such network.
    """
    applications = keras.import_keras().applications
    known = tuple(
        name
        for name in sorted(dir(applications))
        if name[0].isupper() and callable(getattr(applications, name))
    )
    if not pattern or set(pattern) & set("*?["):
        return tuple(fnmatch.filter(known, pattern or "*"))
    if pattern not in known:
        kind = "network of keras.applications"
        raise unknown_name(kind, pattern, known, f"{SCHEME}:{pattern}")
    return (pattern,)


def identify(name: str) -> str:
    """Return a digest of the name and of Keras's version, which decide the weights."""
    return files.digest(SCHEME, name, importlib.metadata.version("keras"))


def load_named(name: str, options: Options) -> Backbone:
    """Build a network with its ImageNet weights, downloaded if necessary.

    Raises:
      InputError: The weights cannot be downloaded, or the network not be converted.
    """
    module = keras.import_keras()
    try:
        model = getattr(module.applications, name)(weights="imagenet")
    except Exception as error:  # Keras raises Exception if it cannot download.
        raise _missing(name, error) from error
    digest = digest_weights(model.get_weights())
    where = f"{SCHEME}:{name}"
    network = keras.read_model(
        model, where, options.output or None, options.image_size or None
    )
    remaining = dataclasses.replace(options, output="")
    return convert.to_backbone(
        network, files.digest(name, digest, options.output), remaining
    )


def _missing(name: str, error: Exception) -> InputError:
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    address = re.search(r"https?://\S+?(?=:? |$)", reason)
    if address is None:
        return InputError(
            f"Keras cannot load {name}", where=f"{SCHEME}:{name}", found=reason
        )
    file = pathlib.PurePosixPath(urlsplit(address[0]).path).name
    place = pathlib.Path(
        os.path.expanduser(os.environ.get("KERAS_HOME", "~/.keras")),
        "models",
        _RENAMED.get(file, file),
    )
    return InputError(
        f"{SCHEME}:{name} is not in the cache and cannot be downloaded",
        where=address[0],
        expected=str(place),
        found=reason,
        fix=f"on a machine with network, download {address[0]} and save it here as "
        f"{place}",
    )
