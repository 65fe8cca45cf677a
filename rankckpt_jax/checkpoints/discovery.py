"""Find the checkpoints that a text names, and give each a readable name.

Handles of TF-Hub, names such as "timm:resnet50" and paths in an archive are listed
without a download, which follows when they are loaded. An archive without a path is
downloaded here to list its contents.
"""

from __future__ import annotations

import collections
import functools
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from rankckpt_jax.checkpoints import sources, unread
from rankckpt_jax.checkpoints.fetch import download, uris
from rankckpt_jax.checkpoints.sources import slim, torch_files
from rankckpt_jax.checkpoints.tensorflow_files import checkpoint_files
from rankckpt_jax.errors import InputError
from rankckpt_jax.storage import files


def find(
    pattern: epath.Path | str, storage: download.Storage | None = None
) -> list[tuple[str, str]]:
    """List the checkpoints below directories or globs, and those named otherwise.

    Args:
      pattern: A directory, the prefix of a TF-Slim checkpoint, the directory of a
        module, a file, a glob of these, a handle (see `fetch.uris`), "SCHEME:NAME" or
        "SCHEME:PATTERN", or "@FILE", a text file with one of these on every line.
        Several are separated by commas.
      storage: Where archives are downloaded and unpacked; by default the user's cache.

    Returns:
      (name, path) of each, sorted. Names are unique and valid names of directories:
      "run/model.ckpt-90000" below the directory becomes "run-90000", and
      "net/best.keras" becomes "net" if it is the only one in its folder. Incomplete
      checkpoints (data without an index) are listed too; loading them raises.

    Raises:
      InputError: No checkpoint was found, a path or pattern matches nothing, a name is
        unknown, or PyTorch weights do not name their network.
    """
    names: dict[str, str] = {}
    missing = []
    specs = list(_read_lists(uris.split_list(str(pattern))))
    for spec in specs:
        found = list(_expand(spec, storage or download.storage()))
        _check_named([path for path, _ in found])
        for path, name in found:
            names.setdefault(path, name)
        # Other files among several, as of a shell's pattern, are no checkpoints.
        if not found and not uris.exists(uris.split_options(spec)[0]):
            missing.append(spec)
    if missing or not names:
        raise _nothing_found(specs, missing)
    counts: collections.Counter[str] = collections.Counter()
    result = []
    for path, name in sorted(names.items()):
        # Some file systems ignore case.
        key = name.casefold()
        counts[key] += 1
        result.append((f"{name}~{counts[key]}" if counts[key] > 1 else name, path))
    return sorted(result)


def _nothing_found(specs: Sequence[str], missing: Sequence[str]) -> InputError:
    for spec in missing:
        sources.check_scheme(spec)
    places = [] if missing else [uris.split_options(spec)[0] for spec in specs]
    others, advice = unread.describe(
        match for place in places for match in files.expand(files.to_path(place))[1]
    )
    return InputError(
        "No checkpoints found",
        where=", ".join(missing or specs),
        expected="NAME.index and NAME.data-* (TF-Slim), directories with "
        "saved_model.pb, .keras and .h5 files, folders with config.json and "
        "model.safetensors, or .safetensors and .pth files with #model=NAME",
        found=others or "none of these",
        fix=advice or "check the path, or name a directory above the checkpoints",
    )


def _check_named(paths: Sequence[str]) -> None:
    """Raise if all paths are of PyTorch weights that do not name their network.

    Among others they are listed, and loading them raises.
    """
    unnamed = []
    for path in paths:
        place, options = uris.split_options(path)
        is_local = not (uris.is_remote(place) or sources.split_scheme(place))
        has_model = "model" in uris.options(options)
        if is_local and not has_model and torch_files.needs_model(files.to_path(place)):
            unnamed.append(place)
    if unnamed and len(unnamed) == len(paths):
        raise torch_files.unnamed(sorted(unnamed))


def _read_lists(specs: Sequence[str]) -> Iterator[str]:
    """Replace every "@FILE" with the lines of the file.

    Paths in it are relative to its folder. Empty lines and those that start with "#"
    are skipped.
    """
    for spec in specs:
        if not spec.startswith("@") or uris.exists(spec):
            yield spec
            continue
        file = files.to_path(spec[1:])
        try:
            lines = file.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                "A list of checkpoints cannot be read",
                where=spec,
                expected="a text file with one checkpoint per line",
                found=files.reason(error),
                fix="check the path",
            ) from error
        for line in filter(None, map(str.strip, lines)):
            if line.startswith("#"):
                continue
            is_path = not (uris.is_remote(line) or "://" in line)
            if is_path and sources.split_scheme(line) is None:
                line = str(file.parent / os.path.expanduser(line))
            yield line


def _expand(spec: str, storage: download.Storage) -> Iterator[tuple[str, str]]:
    """Yield (path, name) of the checkpoints that one part of a pattern names."""
    part, options = uris.split_options(spec)
    if (named := sources.split_scheme(part)) is not None:
        source, pattern = named
        for name in _names(source, pattern):
            path = f"{source.SCHEME}:{name}"
            yield f"{path}#{options}" if options else path, _directory_name(name)
        return
    outer, inner = uris.split_archive(part)
    is_archive = uris.is_archive(outer) and (
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


def _names(source: Any, pattern: str) -> Sequence[str]:
    """Return the names that a pattern of a source means, at least one."""
    found = source.names(pattern) if pattern else ()
    if not found:
        raise InputError(
            "No name matches",
            where=f"{source.SCHEME}:{pattern}",
            expected=f"{source.SCHEME}:NAME, or a pattern with *",
            found=pattern or "nothing after the colon",
            fix=f"rankckpt list checkpoints '{source.SCHEME}:*' lists all names",
        )
    return found


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
        r"(?P<stem>.*?)(\.ckpt)?(?P<step>-\d+)?"
        r"(\.keras|\.h5|\.hdf5|\.safetensors|\.pth|\.pth\.tar|\.pt|\.bin)?",
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
