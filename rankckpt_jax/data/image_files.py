"""Image files below a folder: which files are images, and facts about each of them."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import pathlib
import stat
from collections.abc import Iterable, Iterator

from rankckpt_jax.data import image_headers

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif"),
    *(".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"),
)

UNSUPPORTED_SUFFIXES = (".avif", ".heic", ".heif", ".jp2", ".jxl")
"""Image formats that some installations do not decode, or decode differently."""

THREADS = 16
"""Files opened at the same time, because each waits on a network file system."""

# In lower case. Names that start with a dot are ignored too, such as ".DS_Store",
# ".ipynb_checkpoints" and the "._*" of macOS.
_IGNORED_NAMES = frozenset(
    {
        "@eadir",
        "__macosx",
        "__pycache__",
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        "icon\r",
        "$recycle.bin",
        "@recycle",
        "#recycle",
        "lost+found",
        "system volume information",
    }
)


@dataclasses.dataclass(frozen=True)
class FileInfo:
    """Facts from the first bytes of a file.

    Attributes:
      size: Size in bytes.
      why: Why the file is not an image; empty if it may be one.
      orientation: EXIF orientation that is to be applied, from 1 to 8.
    """

    size: int
    why: str
    orientation: int = 1


def is_ignored(name: str) -> bool:
    """Return whether systems and programs, not people, make entries of this name.

    Example:
      >>> [is_ignored(name) for name in ("@eaDir", "._0.jpg", "Thumbs.db", "cat")]
      [True, True, True, False]
    """
    return name.startswith(".") or name.casefold() in _IGNORED_NAMES


def is_image(path: pathlib.Path) -> bool:
    """Return whether the suffix of a path is that of an image file."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def folders(folder: pathlib.Path) -> list[pathlib.Path]:
    """Return the folders in a folder, or links to folders, sorted.

    Ignored names are left out, and folders that hold nothing but ignored names.
    """
    return [
        child
        for child in sorted(folder.iterdir())
        if child.is_dir() and not is_ignored(child.name) and not _only_ignored(child)
    ]


def _only_ignored(folder: pathlib.Path) -> bool:
    names = os.listdir(folder)
    return bool(names) and all(map(is_ignored, names))


def walk(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield all paths below a folder, except ignored names and what is below them.

    Links to folders are not followed, because they could form a circle or count a file
    twice.
    """
    for base, directories, names in os.walk(folder):
        directories[:] = [name for name in directories if not is_ignored(name)]
        for name in (*directories, *names):
            if not is_ignored(name):
                yield pathlib.Path(base, name)


def images(folder: pathlib.Path) -> list[pathlib.Path]:
    """Return the image files below a folder, sorted by path."""
    return sorted(filter(is_image, walk(folder)))


def read_infos(paths: Iterable[pathlib.Path]) -> dict[pathlib.Path, FileInfo]:
    """Return facts about files, each of which is opened once."""
    every = list(dict.fromkeys(paths))
    with concurrent.futures.ThreadPoolExecutor(THREADS) as threads:
        return dict(zip(every, threads.map(_read_info, every), strict=True))


def _read_info(path: pathlib.Path) -> FileInfo:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            # Opening a pipe would block.
            return FileInfo(0, "not a regular file")
        with path.open("rb") as file:
            header = image_headers.read(file)
    except OSError as error:
        return FileInfo(0, error.strerror or str(error))
    if not status.st_size:
        return FileInfo(0, "empty")
    return FileInfo(status.st_size, header.why, header.orientation)
