"""Kinds of checkpoints. Each file of this directory reads one kind.

To add a kind, write a file with two functions:

    matches(path: epath.Path) -> bool
        Whether `load` reads this path. It looks at names and headers only.
    load(path: epath.Path, options: Options) -> Backbone
        Read the checkpoint. Raise `InputError` if it cannot be used.

The file is found by its place in this directory; no list names it. `checkpoints.load`
resolves handles, downloads and unpacks before it asks the sources, so `path` is always
on this machine. A source whose conversion is slow sets `KEEP_CONVERSION = True`; then
`checkpoints.load` keeps what `load` returns on disk.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pathlib
import pkgutil
from typing import Any

from etils import epath

from rankckpt_jax.errors import InputError, some
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
    torch_engine: str = "jax"

    def __post_init__(self) -> None:
        """Check the image size."""
        check_image_size(self.image_size, f"image_size of {self.handle or self.name}")


@functools.cache
def all_sources() -> tuple[Any, ...]:
    """Return the modules of this directory that have `matches` and `load`."""
    names = sorted(info.name for info in pkgutil.iter_modules(__path__))
    modules = (importlib.import_module(f"{__name__}.{name}") for name in names)
    return tuple(m for m in modules if hasattr(m, "matches") and hasattr(m, "load"))


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
