"""Converted networks on disk, so that each is converted once.

    DIRECTORY/manifest.json   key, provenance, attributes of the backbone, checksums
    DIRECTORY/variables/      the Flax variables, by Orbax
    DIRECTORY/*.pb            the graphs of a network that has no Flax module

A stored network that has a Flax module is loaded and applied without TensorFlow.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

import rankckpt_jax
from rankckpt_jax.checkpoints import backbone as backbone_lib
from rankckpt_jax.checkpoints import network_files, sources
from rankckpt_jax.checkpoints.sources import Options
from rankckpt_jax.devices import processes
from rankckpt_jax.storage import files, store

_log = logging.getLogger(__name__)

_LIBRARIES = ("tensorflow", "tf2jax", "keras", "jax", "flax")


def load_or_convert(
    convert: Callable[[Any, Options], backbone_lib.Backbone],
    path: epath.Path | str,
    options: Options,
    cache: epath.Path | str,
    identity: str = "",
) -> backbone_lib.Backbone:
    """Return the kept conversion of a checkpoint, or convert it and keep the result.

    Args:
      convert: `load` or `load_named` of the checkpoint's source.
      path: The checkpoint on this machine, or its name.
      options: The user's choices. The handle and the name may differ from those of
        the kept conversion.
      cache: Directory of all conversions.
      identity: Digest of the checkpoint; by default of its files.
    """
    fingerprint = identity or sources.fingerprint(epath.Path(path), options)
    choices = dataclasses.asdict(dataclasses.replace(options, handle="", name=""))
    # Conversions of PyTorch networks are not kept.
    del choices["torch_engine"], choices["with_blocks"]
    key: dict[str, Any] = {
        "fingerprint": fingerprint,
        "forward_version": backbone_lib.FORWARD_VERSION,
        "rankckpt_jax": rankckpt_jax.__version__,
    }
    for field, value in choices.items():
        key[field] = list(value) if isinstance(value, tuple) else value
    name = files.digest(fingerprint, json.dumps(choices))[:16]
    directory = epath.Path(cache) / name
    backbone = load(directory, key)
    if backbone is None:
        _log.info("%s: no matching conversion in %s; converting ...", path, directory)
        backbone = convert(path, dataclasses.replace(options, name=""))
        provenance = {"handle": options.handle, "versions": _versions()}
        if processes.is_main_process():
            save(directory, key, backbone, provenance)
    return dataclasses.replace(backbone, source=options.handle)


def _versions() -> dict[str, str]:
    versions = {"rankckpt_jax": rankckpt_jax.__version__}
    for library in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[library] = importlib.metadata.version(library)
    return versions


def save(
    directory: epath.Path,
    key: Mapping[str, Any],
    backbone: backbone_lib.Backbone,
    provenance: Mapping[str, Any],
) -> None:
    """Store a backbone.

    Args:
      directory: A directory of its own.
      key: JSON-able inputs that decide the conversion.
      backbone: The converted network.
      provenance: JSON-able facts, such as versions and agreement with the original.

    Raises:
      StorageError: A file cannot be written.
    """
    described, definitions = network_files.describe(backbone)
    result = {**described, "provenance": dict(provenance)}
    store.save_variables(directory, key, result, backbone.variables, definitions)


def load(directory: epath.Path, key: Mapping[str, Any]) -> backbone_lib.Backbone | None:
    """Return the stored backbone for this key, or None if it must be converted."""
    stored = store.load_variables(directory, key)
    if stored is None:
        return None
    variables, result = stored
    return network_files.rebuild(directory, result, variables)
