"""Finds the checkpoints below a directory and gives each a readable name.

Handles of TF-Hub and paths within an archive are listed as they are, to be fetched when
they are loaded; an archive without a path is fetched here, to see what is in it.
"""

from __future__ import annotations

import collections
import os
import re
from collections.abc import Iterable, Iterator

from etils import epath

from rankckpt_jax.checkpoints import sources
from rankckpt_jax.checkpoints.fetch import download
from rankckpt_jax.checkpoints.fetch import uris as handles
from rankckpt_jax.checkpoints.sources import slim
from rankckpt_jax.checkpoints.tensorflow_files import checkpoint_files
from rankckpt_jax.errors import InputError
from rankckpt_jax.storage import files

_WILDCARD = re.compile(r"[*?\[]")


def find(
    pattern: epath.Path | str, storage: download.Storage | None = None
) -> list[tuple[str, str]]:
    """Lists the checkpoints below directories or globs.

    Args:
      pattern: A directory, a checkpoint's prefix, a module's directory, a Keras file,
        a glob of these, a handle or address (see `handles`), or several of all that
        with commas between.
      storage: Where archives are fetched and unpacked to; by default the user's cache.

    Returns:
      (name, path) of each, sorted. Names are unique and safe as a directory's name:
      "run/model.ckpt-90000" below the directory becomes "run-90000". Half checkpoints
      (data without an index) are listed too, for loading to refuse and report.

    Raises:
      InputError: There is none.
    """
    names: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in str(pattern).split(","))):
        whole, (part, options) = part, handles.split_options(part)
        outer, _, inner = part.partition(handles.INNER)
        if outer.endswith(handles.ARCHIVES) and (not inner or _WILDCARD.search(inner)):
            # With a path within, from the archive's own top.
            top = f"{outer}{handles.INNER}." if inner else outer
            place = handles.resolve(top, storage or download.storage())
            if _is_whole(place):
                names.setdefault(whole, _safe(handles.name(outer)))
                continue
            part = f"{place}/{inner}".rstrip("/")
        elif inner:
            names.setdefault(whole, _name(inner, epath.Path()))
            continue
        elif handles.is_remote(part):
            names.setdefault(whole, _safe(handles.name(part)))
            continue
        root = _root(part)
        for place in _places(part):
            for prefix in _prefixes(place):
                spec = f"{prefix}#{options}" if options else prefix
                names.setdefault(spec, _name(prefix, root))
    if not names:
        raise InputError(
            "No checkpoints found",
            where=str(pattern),
            expected="below it NAME.index and NAME.data-*, as TF-Slim writes; "
            "directories with saved_model.pb; or .keras and .h5 files",
            found="none of these",
            fix="--config.checkpoints=DIR_OR_GLOB",
        )
    taken: collections.Counter[str] = collections.Counter()
    found = []
    for prefix, name in sorted(names.items()):
        # Two that differ by case alone are one directory to some file systems.
        taken[name.casefold()] += 1
        count = taken[name.casefold()]
        found.append((f"{name}~{count}" if count > 1 else name, prefix))
    return sorted(found)


def _root(part: str) -> epath.Path:
    """The directory that names are relative to: all before the first wildcard."""
    place = epath.Path(part).expanduser()
    wildcard = _WILDCARD.search(part)
    if wildcard:
        cut = part.rfind("/", 0, wildcard.start())
        return epath.Path(
            part[:cut] if cut > 0 else part[: cut + 1] or "."
        ).expanduser()
    return place if place.is_dir() else place.parent


def _places(part: str) -> Iterable[epath.Path]:
    root = _root(part)
    if not _WILDCARD.search(part):
        return [epath.Path(part).expanduser()]
    below = str(epath.Path(part).expanduser())[len(str(root)) :]
    if str(root) == ".":
        below = part
    return sorted(root.glob(below.lstrip("/")), key=str)


def _prefixes(place: epath.Path, above: frozenset[str] = frozenset()) -> Iterator[str]:
    """Paths of the checkpoints that a path is, belongs to, or has below it.

    Links are followed, but not back to a directory that is being looked through
    (`above`): each checkpoint in it would be found dozens of times.
    """
    if _is_whole(place):
        yield str(place)
        return
    if place.is_dir():
        here = os.path.realpath(os.fspath(place))
        if here not in above:
            for child in place.iterdir():
                yield from _prefixes(child, above | {here})
        return
    match = checkpoint_files.PART.fullmatch(str(place))
    if match:
        yield match["prefix"]
    elif epath.Path(f"{place}.index").exists() or place.suffix == ".ckpt":
        yield str(place)


def _is_whole(place: epath.Path) -> bool:
    """Whether a path is one checkpoint; TF-Slim's share a directory."""
    return sources.find(place) not in (None, slim)


def _name(prefix: str, root: epath.Path) -> str:
    """The path below `root` without a bare "model.ckpt"; its steps are kept."""
    path = epath.Path(prefix)
    if path == root:
        return _safe(root.resolve().name)
    match = re.fullmatch(r"(?P<stem>.*?)(\.ckpt)?(?P<step>-\d+)?", path.name, re.DOTALL)
    stem, step = (match["stem"], match["step"] or "") if match else (path.name, "")
    folders = path.parent.relative_to(root).parts if path.parent != root else ()
    if path.is_dir():
        stem, step = path.name, ""
    if stem != "model":
        name = "_".join((*folders, stem))
    else:
        name = "_".join(folders) or root.resolve().name
    return _safe(name + step)


def _safe(name: str) -> str:
    return files.directory_name(name, "checkpoint")
