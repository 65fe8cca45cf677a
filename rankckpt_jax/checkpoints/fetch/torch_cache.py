"""Files of weights in the cache of torch.hub, $TORCH_HOME/hub/checkpoints."""

from __future__ import annotations

import pathlib
import re
from urllib.parse import urlsplit

from rankckpt_jax.checkpoints.fetch import download, kept
from rankckpt_jax.checkpoints.torch_modules import spec
from rankckpt_jax.errors import InputError
from rankckpt_jax.storage import network

# Names end in the start of the SHA-256, as in resnet50-11ad3fa6.pth.
_DIGEST = re.compile(r"-([0-9a-f]{8,64})\.")


def path(url: str) -> pathlib.Path:
    """Return the place of a file in the cache; it need not be there."""
    torch = spec.import_library("torch")
    name = pathlib.PurePosixPath(urlsplit(url).path).name
    return pathlib.Path(torch.hub.get_dir(), "checkpoints", name)


def get(url: str, title: str) -> pathlib.Path:
    """Return a file, downloaded if necessary.

    Args:
      url: Its address.
      title: The checkpoint, for messages.

    Raises:
      InputError: It cannot be downloaded, or its contents are not those that its name
        promises. The message explains how to put it there by hand.
    """
    file = path(url)
    if not file.exists():
        if not network.reachable(url):
            raise InputError(
                f"{title} is not in the cache and cannot be downloaded",
                where=url,
                expected=str(file),
                found=f"no connection to {urlsplit(url).netloc}",
                fix=f"on a machine with network, download {url} and save it here as "
                f"{file}",
            )
        download.fetch([url], file, title=title)
    expected = _DIGEST.search(file.name)
    if expected and not kept.digest(file).startswith(expected[1]):
        raise InputError(
            "A file of weights has other contents than its name promises",
            where=str(file),
            expected=f"a SHA-256 that begins with {expected[1]}",
            found=kept.digest(file),
            fix=f"remove it, and download {url} again",
        )
    return file
