"""Files of the Hugging Face hub, in the cache of huggingface_hub.

A file in the cache is used without asking the hub for a newer one.
"""

from __future__ import annotations

import pathlib
import re
from typing import Any

from rankckpt_jax.checkpoints.fetch import kept
from rankckpt_jax.errors import InputError
from rankckpt_jax.storage import network


def find(repository: str, names: tuple[str, ...]) -> pathlib.Path | None:
    """Return the first of several files that is in the cache, or None.

    Args:
      repository: "ORG/NAME", with "@REVISION" for another than "main".
      names: The files.
    """
    # Here, because it is an extra.
    import huggingface_hub

    repository, revision = _split(repository)
    for name in names:
        found = huggingface_hub.try_to_load_from_cache(
            repository, name, revision=revision
        )
        if isinstance(found, str):
            return pathlib.Path(found)
    return None


def get(repository: str, names: tuple[str, ...]) -> pathlib.Path:
    """Return the first of several files that exists, downloaded if necessary.

    Args:
      repository: "ORG/NAME", with "@REVISION" for another than "main".
      names: The files, of which one is enough.

    Raises:
      InputError: None is in the cache, and none can be downloaded. The message
        explains how to put the first one there by hand.
    """
    # Here, because it is an extra.
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    found = find(repository, names)
    if found is not None:
        return found
    # Otherwise huggingface_hub would try for a minute.
    if constants.HF_HUB_OFFLINE:
        reason = "HF_HUB_OFFLINE is set"
    elif not network.reachable(constants.ENDPOINT):
        reason = f"no connection to {constants.ENDPOINT}"
    else:
        reason = f"none of {', '.join(names)} in the repository"
        plain, revision = _split(repository)
        for name in names:
            try:
                return pathlib.Path(hf_hub_download(plain, name, revision=revision))
            except EntryNotFoundError:
                continue
            except Exception as error:  # Of the hub, of requests or of the disk.
                reason = str(error).strip().partition("\n")[0]
                break
    raise _missing(repository, names[0], reason, constants)


def _missing(repository: str, name: str, reason: str, constants: Any) -> InputError:
    plain, revision = _split(repository)
    folder = pathlib.Path(constants.HF_HUB_CACHE, f"models--{plain.replace('/', '--')}")
    address = f"{constants.ENDPOINT}/{plain}/resolve/{revision}/{name}"
    return InputError(
        f"{repository} is not in the cache and cannot be downloaded",
        where=f"https://huggingface.co/{plain}",
        expected=f"{name} in {folder}",
        found=reason,
        fix=f"on a machine with network, download {address}. Save it here as "
        f"{folder}/snapshots/{revision}/{name}, and the word {revision} as "
        f"{folder}/refs/{revision}. Or copy the folder {folder.name} of a cache there",
    )


def digest(path: pathlib.Path) -> str:
    """Return a digest of a file's contents, from its name in the cache if possible."""
    blob = path.resolve()
    # The hub names large files by their SHA-256.
    if blob.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", blob.name):
        return blob.name
    return kept.digest(path)


def _split(repository: str) -> tuple[str, str]:
    name, _, revision = repository.partition("@")
    return name, revision or "main"
