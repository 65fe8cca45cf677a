"""Fine-tuned models on disk: a network, its new head, and how to use them.

    DIRECTORY/model.json      classes, preprocessing and provenance, for people too
    DIRECTORY/variables/      the weights with the head, by Orbax
    DIRECTORY/*.pb            the graphs of a network that has no Flax module
    DIRECTORY/serving.bin     the exported program, if there is one
    DIRECTORY/manifest.json   structure of the network, checksums of all other files

The manifest is written last, so that a killed run leaves no model instead of a part.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from rankckpt_jax.checkpoints import backbone as backbone_lib
from rankckpt_jax.checkpoints import network_files
from rankckpt_jax.errors import InputError
from rankckpt_jax.storage import files, store

CARD = "model.json"
"""Name of the file that describes a model."""

SERVING = "serving.bin"
"""Name of the file of the exported program."""

FORMAT = 1
"""Raised with every change after which older versions cannot read a model."""


def matches(directory: epath.Path) -> bool:
    """Return whether a directory holds a fine-tuned model, by its files' names."""
    names = (CARD, store.MANIFEST, "variables")
    return all((directory / name).exists() for name in names)


def save(
    directory: epath.Path,
    key: Mapping[str, Any],
    backbone: backbone_lib.Backbone,
    card: Mapping[str, Any],
    serving: bytes = b"",
) -> None:
    """Write a model. An older one is replaced.

    Args:
      directory: A directory of its own.
      key: JSON-able inputs that decide the weights.
      backbone: The network with its head in `params["logits"]`.
      card: JSON-able content of `model.json`.
      serving: Content of `serving.bin`; empty for no such file.

    Raises:
      InputError: The network cannot be kept; see `network_files.check`.
      StorageError: A file cannot be written.
    """
    network_files.check(backbone.apply, backbone.name)
    # At the kept size, the network's own transform is one rule.
    backbone = dataclasses.replace(backbone, own_transform=backbone.own_preprocess)
    described, further = network_files.describe(backbone)
    text = json.dumps({"format": FORMAT, **card}, indent=2, ensure_ascii=False)
    further[CARD] = f"{text}\n".encode()
    if serving:
        further[SERVING] = serving
    store.save_variables(directory, key, described, backbone.variables, further)


def read_key(directory: epath.Path) -> Mapping[str, Any] | None:
    """Return the key of an intact model, or None. All processes call this."""
    manifest = _read_manifest(directory)
    key = None if manifest is None else manifest.get("request")
    if not isinstance(key, dict) or store.load_files(directory, key) is None:
        return None
    return key


def load(
    directory: epath.Path,
) -> tuple[backbone_lib.Backbone, dict[str, Any]]:
    """Read a model.

    Returns:
      (the network with its head, the content of `model.json`).

    Raises:
      InputError: There is no model, it is damaged, or a newer version wrote it.
    """
    directory = epath.Path(directory)
    if not matches(directory):
        raise InputError(
            "No fine-tuned model",
            where=str(directory),
            expected=f"a directory with {CARD}, which config.finetune.keep=best writes",
            found="another directory" if directory.exists() else "nothing",
            fix="the log line `kept the model` names the directory of a run",
        )
    manifest = _read_manifest(directory) or {}
    described = manifest.get("files")
    if not isinstance(described, dict):
        raise _damaged(directory, store.MANIFEST)
    for name, checksum in described.items():
        if not _is_intact(directory / name.replace("..", "_"), checksum):
            raise _damaged(directory, name)
    try:
        card = json.loads((directory / CARD).read_text())
        version = int(card["format"])
        stored = store.load_variables(directory, manifest["request"])
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(directory, CARD) from error
    if version > FORMAT:
        raise InputError(
            "A newer version wrote this model",
            where=str(directory),
            expected=f"format {FORMAT}",
            found=f"format {version}",
            fix="install a newer rankckpt_jax",
        )
    if stored is None:
        raise _damaged(directory, store.MANIFEST)
    variables, result = stored
    return network_files.rebuild(directory, result, variables), card


def _read_manifest(directory: epath.Path) -> dict[str, Any] | None:
    try:
        manifest = json.loads((directory / store.MANIFEST).read_bytes())
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) else None


def _is_intact(path: epath.Path, checksum: str) -> bool:
    try:
        return files.digest_file(path) == checksum
    except OSError:
        return False


def _damaged(directory: epath.Path, name: str) -> InputError:
    return InputError(
        "The fine-tuned model is damaged",
        where=str(directory / name),
        expected="the file that fine-tuning wrote, by its checksum",
        found="another content, or no file",
        fix="copy the whole directory again, or run the fine-tuning again",
    )
