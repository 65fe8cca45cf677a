"""Kinds of checkpoints. Each file of this directory reads one kind.

To add a kind, write a file with two functions:

    matches(path: epath.Path) -> bool
        Whether `load` reads this path. It looks at names and headers only.
    load(path: epath.Path, options: Options) -> Backbone
        Read the checkpoint. Raise `InputError` if it cannot be used.

A kind that is named instead of found in files, such as "timm:resnet50", has these:

    SCHEME: str
        What stands before the colon.
    names(pattern: str = "") -> tuple[str, ...]
        The names that a pattern means. A pattern without "*" means one name, with
        whatever the user left out, or raises `InputError` with the nearest names.
    identify(name: str) -> str
        A digest of the checkpoint without loading it; "" if it must be downloaded.
    load_named(name: str, options: Options) -> Backbone
        Load it. Downloads are looked for in a cache first.

The file is found by its place in this directory; no list names it. `checkpoints.load`
resolves handles, downloads and unpacks before it asks the sources, so `path` is always
on this machine, and `name` is one of `names`. A source whose conversion is slow sets
`KEEP_CONVERSION = True`; then `checkpoints.load` keeps what `load` returns on disk.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pathlib
import pkgutil
import re
from collections.abc import Mapping
from typing import Any

from etils import epath

from rankckpt_jax.errors import InputError, some, unknown_name
from rankckpt_jax.storage import files

IMAGE_SIZES = (8, 1024)
"""The smallest and the largest side of images that can be set, in pixels.

No published classifier was trained on larger ones, and a batch would fill the memory.
"""


def check_image_size(size: int, where: str) -> None:
    """Raise InputError unless a size is 0, for the default, or in IMAGE_SIZES."""
    low, high = IMAGE_SIZES
    if size != 0 and not low <= size <= high:
        raise InputError(
            f"Images of {size} x {size} pixels cannot be used",
            where=where,
            expected=f"{low} to {high}, or 0 for each checkpoint's own size",
            found=str(size),
            fix="leave it out for the default; most networks use 224",
        )


@dataclasses.dataclass(frozen=True)
class Options:
    """The user's choices for one checkpoint. Empty values mean the source's default.

    Attributes:
      handle: The path or handle that the user gave, without secrets. For messages.
      name: Name of the backbone, unique in its pool.
      image_size: Side of the square images in pixels.
      is_size_preferred: Whether a network of a fixed size may ignore `image_size`.
      signature: Function of a SavedModel or TF-Hub module.
      output: Output, layer or tensor that holds the features.
      input_range: Values that the pixels 0 and 255 become.
      input_mean: Mean per channel that is subtracted afterwards.
      architecture: Name of the network for `models.create`.
      use_moving_averages: Whether to load exponential moving averages of the weights.
      torch_engine: What computes a PyTorch network; see `checkpoints.load`.
      model: The network that a file of PyTorch weights belongs to.
      with_blocks: Whether to find the last blocks of a PyTorch network.
    """

    handle: str = ""
    name: str = ""
    image_size: int = 0
    is_size_preferred: bool = False
    signature: str = ""
    output: str = ""
    input_range: tuple[float, float] | None = None
    input_mean: tuple[float, float, float] | None = None
    architecture: str = ""
    use_moving_averages: bool = False
    model: str = ""
    torch_engine: str = "jax"
    with_blocks: bool = False

    def __post_init__(self) -> None:
        """Check the image size."""
        check_image_size(self.image_size, f"image_size of {self.handle or self.name}")


def _modules() -> tuple[Any, ...]:
    names = sorted(info.name for info in pkgutil.iter_modules(__path__))
    return tuple(importlib.import_module(f"{__name__}.{name}") for name in names)


@functools.cache
def all_sources() -> tuple[Any, ...]:
    """Return the modules of this directory that have `matches` and `load`."""
    return tuple(m for m in _modules() if hasattr(m, "matches") and hasattr(m, "load"))


@functools.cache
def schemes() -> Mapping[str, Any]:
    """Return the modules of this directory that load checkpoints by name, by scheme."""
    return {m.SCHEME: m for m in _modules() if hasattr(m, "SCHEME")}


def split_scheme(spec: str) -> tuple[Any, str] | None:
    """Split "SCHEME:NAME" into (source, name); None for what is no such name."""
    scheme, colon, name = spec.partition(":")
    return (schemes()[scheme], name) if colon and scheme in schemes() else None


def check_scheme(spec: str) -> None:
    """Raise for "SCHEME:NAME" with an unknown scheme.

    Args:
      spec: What was found to be no path.

    Raises:
      InputError: The message has the nearest scheme.
    """
    match = re.fullmatch(r"([A-Za-z][\w+-]+):(?!//).*", spec)
    if match and match[1] not in schemes():
        raise unknown_name("scheme", match[1], schemes(), spec)


def split_name(spec: str) -> tuple[Any, str] | None:
    """Split "SCHEME:NAME" into (source, the one name that is meant in full).

    Raises:
      InputError: The source does not know the name, or it is a pattern.
    """
    if (named := split_scheme(spec)) is None:
        return None
    source, pattern = named
    found = source.names(pattern)
    if len(found) != 1:
        raise InputError(
            "A pattern is not one checkpoint",
            where=spec,
            expected="one name",
            found=some(found) or "no name",
        )
    return source, found[0]


def find(path: epath.Path) -> Any:
    """Return the first source that matches a path, or None."""
    return next((source for source in all_sources() if source.matches(path)), None)


def get(path: epath.Path) -> Any:
    """Return the source that reads a path.

    Raises:
      InputError: No source matches.
    """
    source = find(path)
    if source is not None:
        return source
    if not path.exists():
        check_scheme(str(path))
    found = "nothing"
    if path.is_dir():
        names = sorted(child.name for child in path.iterdir())
        found = f"a directory with {some(names)}" if names else "an empty directory"
    elif path.exists():
        found = "a file of another kind"
    kinds = [(s.__doc__ or s.__name__).strip().splitlines()[0] for s in all_sources()]
    raise InputError(
        "No checkpoint of a known kind",
        where=str(path),
        expected=" ".join(kinds),
        found=found,
        fix="check the path, or export the network as a SavedModel",
    )


def fingerprint(path: epath.Path, options: Options) -> str:
    """Return the digest of a checkpoint's files and of the selected output.

    Args:
      path: A file, or a directory whose files all count.
      options: `signature` and `output` count.

    Returns:
      SHA-256 over the files' names and bytes, in hexadecimal.
    """
    root = pathlib.Path(path)
    paths = [root] if root.is_file() else sorted(root.rglob("*"))
    parts: list[str] = []
    for file in paths:
        if file.is_file():
            parts += [file.relative_to(root).as_posix(), files.digest_file(file)]
    digest = files.digest(*parts)
    if options.signature or options.output:
        selection = (options.signature or None, options.output or None)
        digest = files.digest(digest, repr(selection))
    return digest
