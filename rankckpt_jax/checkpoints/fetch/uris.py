"""What the user may name as a checkpoint, and the local path it resolves to.

DIR, FILE.keras, FILE.safetensors    used in place
FILE.tar.gz, FILE.zip                unpacked beside the downloads
gs://BUCKET/DIR, gs://.../X.tar.gz   copied, again after a change of sizes or times
https://tfhub.dev/vtab/sup-100/1     handle of TF-Hub, also without "https://"
https://HOST/FILE.tar.gz             downloaded and unpacked, once
https://HOST/FILE.zip!/INNER/PATH    downloaded and unpacked; a path in the archive

Options may follow after "#", as in
"https://tfhub.dev/vtab/vae/1#image_size=128&output=pre_logits"; see `options`. A path
that exists is never split at a comma, "#" or "!/", and its brackets are no pattern.
"""

from __future__ import annotations

import hashlib
import pathlib
import re
import shutil
from typing import Any
from urllib.parse import urlsplit

from etils import epath

from rankckpt_jax.checkpoints.fetch import download, kept
from rankckpt_jax.errors import InputError
from rankckpt_jax.storage import files

ARCHIVES = (".tar.gz", ".tgz", ".tar", ".zip")
"""Suffixes of the files that are unpacked."""

INNER = "!/"
"""Separates an archive from a path in it."""

_REMOTE = re.compile(r"(https?://|tfhub\.dev/)")
# Characters of a path; common file systems allow no more.
_LONGEST = 4096
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_FILE = re.compile(r"\.(keras|h5|hdf5|safetensors|pth|pt|pth\.tar)$")
_OPTION = r"(signature|output|image_size|input_range|model)=[^&#]+"
_OPTIONS = re.compile(rf"(?P<spec>.+)#(?P<options>{_OPTION}(&{_OPTION})*)")


def exists(spec: str) -> bool:
    """Return whether a spec is a path, a checkpoint's prefix, or a pattern of paths.

    Raises:
      InputError: It has a scheme that cannot be read.
    """
    if is_remote(spec):
        return False
    place = files.to_path(spec)
    if place.exists() or epath.Path(f"{place}.index").exists():
        return True
    return bool(files.WILDCARD.search(spec) and files.expand(place)[1])


def split_list(text: str) -> list[str]:
    """Split specs at commas, except within a path that exists.

    Of several possible paths, the longest counts.
    """
    parts, specs = text.split(","), []
    while parts:
        count = 1
        for end in range(2, len(parts) + 1):
            joined = ",".join(parts[:end]).strip()
            if _SCHEME.match(parts[end - 1].strip()) or len(joined) > _LONGEST:
                break
            if exists(split_options(joined)[0]):
                count = end
        specs.append(",".join(parts[:count]).strip())
        del parts[:count]
    return [spec for spec in specs if spec]


def split_options(spec: str) -> tuple[str, str]:
    """Split "SPEC#OPTIONS" into its parts; the options are empty if there are none."""
    match = _OPTIONS.fullmatch(spec)
    if match is None or exists(spec):
        return spec, ""
    return match["spec"], match["options"]


def split_archive(spec: str) -> tuple[str, str]:
    """Split "ARCHIVE!/PATH" into its parts; the path is empty if there is none."""
    if INNER not in spec or exists(spec):
        return spec, ""
    outer, _, inner = spec.partition(INNER)
    return outer, inner


def options(text: str) -> dict[str, Any]:
    """Parse the options after "#" into fields of `sources.Options`.

    Example:
      >>> options("output=pooled&image_size=128&input_range=-1:1")
      {'output': 'pooled', 'image_size': 128, 'input_range': (-1.0, 1.0)}

    Args:
      text: signature=NAME, output=NAME, model=NAME, image_size=PIXELS and
        input_range=LOW:HIGH, separated by "&".

    Raises:
      InputError: A value is invalid.
    """
    result: dict[str, Any] = {}
    for pair in filter(None, text.split("&")):
        key, _, value = pair.partition("=")
        try:
            if key == "image_size":
                result[key] = int(value)
            elif key == "input_range":
                low, high = value.split(":")
                result[key] = (float(low), float(high))
            else:
                result[key] = value
        except ValueError as error:
            raise InputError(
                f"The option {key} of a checkpoint is invalid",
                where=text,
                expected="image_size=PIXELS, input_range=LOW:HIGH",
                found=pair,
            ) from error
    return result


def is_archive(name: str) -> bool:
    """Return whether a file is unpacked; FILE.pth.tar is one of PyTorch's."""
    return name.endswith(ARCHIVES) and not name.endswith(".pth.tar")


def is_remote(spec: str) -> bool:
    """Return whether a spec names something to download."""
    return _REMOTE.match(spec) is not None


def name(spec: str) -> str:
    """Return a readable name.

    Example:
      >>> name("https://tfhub.dev/vtab/sup-100/1"), name("pools/nets.tar.gz")
      ('vtab/sup-100', 'nets')
    """
    if not is_remote(spec):
        return _stem(pathlib.PurePath(spec).name)
    # TF-Hub's handles end in a version.
    return re.sub(r"/\d+$", "", _stem(_path(spec)))


def resolve(spec: epath.Path | str, storage: download.Storage) -> epath.Path:
    """Return the local path of a spec, downloaded and unpacked if necessary.

    Raises:
      InputError: It does not exist or cannot be downloaded. The message explains how
        to put it there by hand.
    """
    outer, inner = split_archive(str(spec))
    unpacked = is_remote(outer) or is_archive(outer)
    if is_remote(outer):
        place = _resolve_remote(outer, storage)
    else:
        path = files.to_path(outer)
        unpacked = unpacked and not path.is_dir()
        if files.is_on_bucket(path):
            place = _resolve_bucket(path, storage)
        else:
            place = _resolve_local(pathlib.Path(path), storage)
    if inner:
        return epath.Path(place) / inner
    unpacked = unpacked and place.is_dir()
    return epath.Path(_without_wrappers(place) if unpacked else place)


def _resolve_local(path: pathlib.Path, storage: download.Storage) -> pathlib.Path:
    if not is_archive(path.name) or path.is_dir():
        return path
    if not path.is_file():
        raise InputError("There is no such file", where=str(path))
    key = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    # Size and time are part of the name, so that a new version is unpacked again.
    facts = path.stat()
    name = f"{_stem(path.name)}-{key}-{facts.st_size}-{facts.st_mtime_ns}"
    place = storage.place("unpacked", name)
    return download.unpack(path, place, limit=storage.limit)


def _resolve_remote(spec: str, storage: download.Storage) -> pathlib.Path:
    handle = _absolute(spec)
    if (cached := _cached(handle, storage)) is not None:
        return cached
    urls = addresses(handle, storage.mirrors)
    archive, place = destination(handle, storage)
    if archive == place:
        return download.fetch(urls, place, title=handle)
    return download.fetch_unpacked(
        urls, archive, place, limit=storage.limit, title=handle
    )


def _resolve_bucket(path: epath.Path, storage: download.Storage) -> pathlib.Path:
    """Copy a directory, a file, or the files of a TF-Slim checkpoint's prefix.

    The files' version is part of the copy's path, so changed files are copied again.
    """
    version = bucket_version(path)
    place = storage.place("gs", version[:16], str(path).removeprefix("gs://"))
    index = place.with_name(f"{place.name}.index")
    if not (place.exists() or index.exists()):
        with kept.exclusive(place):
            if path.is_dir():
                sources = [path]
            else:
                # The index comes last, because it marks a complete copy.
                sources = sorted(_files_of(path), key=lambda p: p.suffix == ".index")
            for source in sources:
                target = place.with_name(source.name)
                if not target.exists():
                    _copy(source, target)
    return place if path.is_dir() else _resolve_local(place, storage)


def bucket_version(path: epath.Path) -> str:
    """Return a digest of the names, sizes and times of a checkpoint's files.

    It stands for the contents, which would have to be downloaded to be compared.

    Args:
      path: A directory, a file, or the prefix of a TF-Slim checkpoint, in a bucket.

    Raises:
      InputError: There is no such file.
    """
    described = []
    for file in _files_of(path):
        size, changed = files.size_and_time(file)
        described.append(f"{file}\0{size}\0{changed}")
    if not described:
        raise InputError("There is no such file", where=str(path))
    return files.digest(*described)


def _files_of(path: epath.Path) -> list[epath.Path]:
    if path.is_dir():
        children = sorted(path.iterdir(), key=str)
        return [file for child in children for file in _files_of(child)]
    return [path] if path.exists() else prefix_files(path)


def prefix_files(prefix: epath.Path) -> list[epath.Path]:
    """Return the files of a TF-Slim checkpoint: its prefix, a dot and a suffix."""
    siblings = files.matching(prefix.parent, "*")
    return [file for file in siblings if file.name.startswith(f"{prefix.name}.")]


def _copy(source: epath.Path, target: pathlib.Path) -> None:
    """Copy a file or directory, which appears under its name once it is complete."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        partial.mkdir()
        for child in source.iterdir():
            _copy(child, partial / child.name)
    else:
        with source.open("rb") as opened, partial.open("wb") as out:
            shutil.copyfileobj(opened, out)
    partial.replace(target)


def destination(
    spec: str, storage: download.Storage
) -> tuple[pathlib.Path, pathlib.Path]:
    """Return where a remote spec is downloaded to, and where it is unpacked.

    Both are the same for a single file. Without a network, the user copies the file to
    the first.
    """
    handle = _absolute(spec)
    # Without user and password.
    host = urlsplit(handle).netloc.rpartition("@")[2].replace(":", "_")
    path = _path(handle)
    base = storage.place(host, path)
    if is_archive(path):
        return base, base.with_name(_stem(base.name))
    if _FILE.search(path):
        return base, base
    return base.with_name(f"{base.name}.tar.gz"), base


def is_here(spec: str, storage: download.Storage) -> bool:
    """Return whether a remote spec needs no network."""
    return _cached(_absolute(spec), storage) is not None or any(
        place.exists() for place in destination(spec, storage)
    )


def addresses(handle: str, mirrors: tuple[str, ...]) -> list[str]:
    """Return the addresses of a handle, in the order in which they are tried."""
    path, parts = _path(handle), urlsplit(handle)
    is_file = is_archive(path) or _FILE.search(path)
    file = path if is_file else f"{path}.tar.gz"
    urls = [
        mirror.format(path=path)
        if "{path}" in mirror
        else f"{mirror.rstrip('/')}/{file.rpartition('/')[2] if is_file else file}"
        for mirror in mirrors
    ]
    if parts.netloc == "tfhub.dev":
        bucket = "" if path.startswith("vtab/") else "tfhub-modules/"
        urls.append(f"https://storage.googleapis.com/{bucket}{path}.tar.gz")
    if is_file:
        urls.append(handle)
    else:
        urls.append(f"{handle}{'&' if parts.query else '?'}tf-hub-format=compressed")
    return urls


def _cached(handle: str, storage: download.Storage) -> pathlib.Path | None:
    """Return a module's directory in the cache of tensorflow_hub, or None."""
    if storage.hub_cache is None:
        return None
    for name in (handle, f"{handle}?tf-hub-format=compressed"):
        # tensorflow_hub names directories in this way.
        place = storage.hub_cache / hashlib.sha1(name.encode()).hexdigest()
        if place.is_dir() and any(place.iterdir()):
            return place
    return None


def _absolute(spec: str) -> str:
    return spec if "://" in spec else f"https://{spec}"


def _path(handle: str) -> str:
    """Return a handle's path, such as "vtab/sup-100/1"."""
    path = urlsplit(_absolute(handle)).path.strip("/")
    if not path or ".." in path.split("/"):
        raise InputError(
            "A handle names no module",
            where=handle,
            expected="https://HOST/PUBLISHER/MODULE/VERSION",
        )
    return path


def _stem(name: str) -> str:
    for suffix in ARCHIVES:
        name = name.removesuffix(suffix)
    return name


def _without_wrappers(directory: pathlib.Path) -> pathlib.Path:
    """Descend into the only folder of an archive, again and again."""
    children = list(directory.iterdir())
    parts = ("saved_model.pb", "variables", "assets")
    if len(children) == 1 and children[0].is_dir() and children[0].name not in parts:
        return _without_wrappers(children[0])
    return directory
