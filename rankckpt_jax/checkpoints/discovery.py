"""Find the checkpoints below a directory and give each a readable name.

Handles of TF-Hub and paths in an archive are listed as they are, and downloaded when
they are loaded. An archive without a path is downloaded here to list its contents.
"""

from __future__ import annotations

import collections
import functools
import os
import re
from collections.abc import Iterator

from etils import epath

from rankckpt_jax.checkpoints import sources
from rankckpt_jax.checkpoints.fetch import download, uris
from rankckpt_jax.checkpoints.sources import slim
from rankckpt_jax.checkpoints.tensorflow_files import checkpoint_files
from rankckpt_jax.errors import InputError
from rankckpt_jax.storage import files


def find(
    pattern: epath.Path | str, storage: download.Storage | None = None
) -> list[tuple[str, str]]:
    """List the checkpoints below directories or globs.

    Args:
      pattern: A directory, the prefix of a TF-Slim checkpoint, the directory of a
        module, a Keras file, a glob of these, or a handle (see `fetch.uris`).
        Several are separated by commas.
      storage: Where archives are downloaded and unpacked; by default the user's cache.

    Returns:
      (name, path) of each, sorted. Names are unique and valid names of directories:
      "run/model.ckpt-90000" below the directory becomes "run-90000", and
      "net/best.keras" becomes "net" if it is the only one in its folder. Incomplete
      checkpoints (data without an index) are listed too; loading them raises.

    Raises:
      InputError: No checkpoint was found, or a path or pattern matches nothing.
    """
    names: dict[str, str] = {}
    missing = []
    for spec in uris.split_list(str(pattern)):
        found = list(_expand(spec, storage or download.storage()))
        for path, name in found:
            names.setdefault(path, name)
        # Other files among several, as of a shell's pattern, are no checkpoints.
        if not found and not uris.exists(uris.split_options(spec)[0]):
            missing.append(spec)
    if missing or not names:
        raise InputError(
            "No checkpoints found",
            where=", ".join(missing) or str(pattern),
            expected="NAME.index and NAME.data-* (TF-Slim), directories with "
            "saved_model.pb, or .keras and .h5 files",
            found="none of these",
            fix="check the path, or name a directory above the checkpoints",
        )
    counts: collections.Counter[str] = collections.Counter()
    result = []
    for path, name in sorted(names.items()):
        # Some file systems ignore case.
        key = name.casefold()
        counts[key] += 1
        result.append((f"{name}~{counts[key]}" if counts[key] > 1 else name, path))
    return sorted(result)


def _expand(spec: str, storage: download.Storage) -> Iterator[tuple[str, str]]:
    """Yield (path, name) of the checkpoints that one part of a pattern names."""
    part, options = uris.split_options(spec)
    outer, inner = uris.split_archive(part)
    is_archive = outer.endswith(uris.ARCHIVES) and (
        uris.is_remote(outer) or not files.to_path(outer).is_dir()
    )
    if is_archive and (not inner or files.WILDCARD.search(inner)):
        # A path in an archive starts at the archive's top, without skipping folders.
        top = f"{outer}{uris.INNER}." if inner else outer
        place = uris.resolve(top, storage)
        if _is_module(place):
            yield spec, _directory_name(uris.name(outer))
            return
        part = f"{place}/{inner}".rstrip("/")
    elif inner:
        yield spec, _name(inner, epath.Path())
        return
    elif uris.is_remote(part):
        yield spec, _directory_name(uris.name(part))
        return
    place = files.to_path(part)
    root, matches = files.expand(place)
    # The prefix of a checkpoint is no file, but is meant literally as well.
    if root == place or epath.Path(f"{place}.index").exists():
        root, matches = (place if place.is_dir() else place.parent), [place]
    count = functools.cache(lambda folder: len(set(_checkpoints_at(folder))))
    for match in matches:
        for path in _checkpoints_at(match):
            folder = epath.Path(path).parent
            is_alone = folder != root and count(folder) == 1
            name = _name(path, root, is_alone)
            yield f"{path}#{options}" if options else path, name


def _checkpoints_at(
    place: epath.Path, parents: frozenset[str] = frozenset()
) -> Iterator[str]:
    """Yield the checkpoints that a path is, is part of, or contains.

    Symbolic links are followed, except back to a directory in `parents`.
    """
    if _is_module(place):
        yield str(place)
    elif place.is_dir():
        real = os.path.realpath(os.fspath(place))
        if real not in parents:
            for child in place.iterdir():
                yield from _checkpoints_at(child, parents | {real})
    elif match := checkpoint_files.PART.fullmatch(str(place)):
        yield match["prefix"]
    elif epath.Path(f"{place}.index").exists() or place.suffix == ".ckpt":
        yield str(place)


def _is_module(place: epath.Path) -> bool:
    """Return whether a path is one checkpoint; several of TF-Slim share a directory."""
    return sources.find(place) not in (None, slim)


def _name(path: str, root: epath.Path, is_alone: bool = False) -> str:
    """Return the path below `root` without "model.ckpt", but with its step.

    A file that is alone in its folder has the folder's name, and its step.
    """
    place = epath.Path(path)
    if place == root:
        return _directory_name(root.resolve().name)
    match = re.fullmatch(
        r"(?P<stem>.*?)(\.ckpt)?(?P<step>-\d+)?(\.keras|\.h5|\.hdf5)?",
        place.name,
        re.DOTALL,
    )
    stem, step = (match["stem"], match["step"] or "") if match else (place.name, "")
    folders = place.parent.relative_to(root).parts if place.parent != root else ()
    if place.is_dir():
        stem, step, is_alone = place.name, "", False
    if stem != "model" and not is_alone:
        name = "_".join((*folders, stem))
    else:
        name = "_".join(folders) or root.resolve().name
    return _directory_name(name + step)


def _directory_name(name: str) -> str:
    return files.directory_name(name, "checkpoint")
