"""What a user may name, wherever it is: a local path to read it from.

DIR, FILE.keras, FILE.h5             as they are
FILE.tar.gz, FILE.zip                unpacked beside the downloads
gs://BUCKET/DIR, gs://.../X.tar.gz   copied
https://tfhub.dev/vtab/sup-100/1     TF-Hub's handle; also without "https://"
https://HOST/FILE.tar.gz             downloaded and unpacked
https://HOST/FILE.zip!/INNER/PATH    likewise, then a path in it

After "#" may stand what is to be made of a module, as in
"https://tfhub.dev/vtab/vae/1#image_size=128&output=pre_logits"; see `options`.
"""

from __future__ import annotations

import hashlib
import pathlib
import re
import shutil
from typing import Any
from urllib.parse import urlsplit

from etils import epath

from rankckpt_jax.checkpoints.fetch import download
from rankckpt_jax.errors import InputError

ARCHIVES = (".tar.gz", ".tgz", ".tar", ".zip")
"""Endings of the files that are unpacked."""

_REMOTE = re.compile(r"(https?://|tfhub\.dev/)")
INNER = "!/"
"""Between an archive and a path in it."""


_OPTION = r"(signature|output|image_size|input_range)=[^&#]+"
_OPTIONS = re.compile(rf"(?P<spec>[^#]+)#(?P<options>{_OPTION}(&{_OPTION})*)")


def split_options(spec: str) -> tuple[str, str]:
    """Divides what a user named into (the thing, its options or "")."""
    match = _OPTIONS.fullmatch(spec)
    return (match["spec"], match["options"]) if match else (spec, "")


def options(text: str) -> dict[str, Any]:
    """Arguments of `load_hub` by the options that stand after "#".

    signature=NAME, output=NAME, image_size=PIXELS, input_range=LOW:HIGH; with "&"
    between.

    Raises:
      InputError: A value is not of its kind.
    """
    found: dict[str, Any] = {}
    for pair in filter(None, text.split("&")):
        key, _, value = pair.partition("=")
        try:
            if key == "image_size":
                found[key] = int(value)
            elif key == "input_range":
                low, high = value.split(":")
                found[key] = (float(low), float(high))
            else:
                found[key] = value
        except ValueError as error:
            raise InputError(
                f"The option {key} of a checkpoint cannot be read",
                where=text,
                expected="image_size=PIXELS, input_range=LOW:HIGH",
                found=pair,
            ) from error
    return found


def is_remote(spec: str) -> bool:
    """Whether it names something to download."""
    return _REMOTE.match(spec) is not None


def name(spec: str) -> str:
    """A readable name for what a user named: "vtab/sup-100"."""
    if not is_remote(spec):
        return _stem(pathlib.PurePath(spec).name)
    # TF-Hub's handles end in a version.
    return re.sub(r"/\d+$", "", _stem(_path(spec)))


def resolve(spec: epath.Path | str, storage: download.Storage) -> epath.Path:
    """Returns a local path for what a user named, fetched if it has to be.

    Raises:
      InputError: It is not there, or cannot be fetched; the message says what to put
        where by hand.
    """
    outer, _, inner = str(spec).partition(INNER)
    if is_remote(outer):
        place = _resolve_remote(outer, storage)
    elif outer.startswith("gs://"):
        place = _resolve_bucket(epath.Path(outer), storage)
    else:
        place = _resolve_local(pathlib.Path(outer).expanduser(), storage)
    if inner:
        return epath.Path(place) / inner
    unpacked = place.is_dir() and (is_remote(outer) or outer.endswith(ARCHIVES))
    return epath.Path(_single(place) if unpacked else place)


def _resolve_local(path: pathlib.Path, storage: download.Storage) -> pathlib.Path:
    if not path.name.endswith(ARCHIVES):
        return path
    if not path.is_file():
        raise InputError("There is no such file", where=str(path))
    key = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    # By time and size too, so that a new file under the old name is unpacked anew.
    facts = path.stat()
    name = f"{_stem(path.name)}-{key}-{facts.st_size}-{facts.st_mtime_ns}"
    place = storage.directory / "unpacked" / name
    return download.unpack(path, place, limit=storage.limit)


def _cached(handle: str, storage: download.Storage) -> pathlib.Path | None:
    """A module's directory in tensorflow_hub's own cache, if it is there."""
    if storage.hub_cache is None:
        return None
    for name in (handle, f"{handle}?tf-hub-format=compressed"):
        # tensorflow_hub names a module's directory so.
        place = storage.hub_cache / hashlib.sha1(name.encode()).hexdigest()
        if place.is_dir() and any(place.iterdir()):
            return place
    return None


def _resolve_remote(spec: str, storage: download.Storage) -> pathlib.Path:
    handle = spec if "://" in spec else f"https://{spec}"
    if (cached := _cached(handle, storage)) is not None:
        return cached
    urls = addresses(handle, storage.mirrors)
    archive, place = destination(handle, storage)
    if archive == place:
        return download.fetch(urls, place, title=handle)
    return download.fetch_unpacked(
        urls, archive, place, limit=storage.limit, title=handle
    )


def destination(
    spec: str, storage: download.Storage
) -> tuple[pathlib.Path, pathlib.Path]:
    """Where a remote file is downloaded to, and where it is unpacked; one for a file.

    Whoever has no network puts the file at the first by hand.
    """
    handle = spec if "://" in spec else f"https://{spec}"
    # Without user and password, which are nobody else's to read.
    host = urlsplit(handle).netloc.rpartition("@")[2].replace(":", "_")
    path = _path(handle)
    base = storage.directory / host / path
    ending = next((end for end in ARCHIVES if path.endswith(end)), "")
    if not ending and re.search(r"\.(keras|h5|hdf5)$", path):
        return base, base
    archive = base if ending else base.with_name(f"{base.name}.tar.gz")
    return archive, base.with_name(_stem(base.name)) if ending else base


def is_here(spec: str, storage: download.Storage) -> bool:
    """Whether a remote file needs no network: it is downloaded or put there by hand."""
    handle = spec if "://" in spec else f"https://{spec}"
    return _cached(handle, storage) is not None or any(
        place.exists() for place in destination(handle, storage)
    )


def _resolve_bucket(path: epath.Path, storage: download.Storage) -> pathlib.Path:
    place = storage.directory / "gs" / str(path).removeprefix("gs://")
    if path.name.endswith(ARCHIVES):
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            partial = place.with_name(f".{place.name}.partial")
            with path.open("rb") as source, partial.open("wb") as out:
                shutil.copyfileobj(source, out)
            partial.replace(place)
        return _resolve_local(place, storage)
    if place.is_dir():
        return place
    partial = place.with_name(f".{place.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    _copy(path, partial)
    partial.replace(place)
    return place


def _copy(source: epath.Path, target: pathlib.Path) -> None:
    if not source.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
        return
    target.mkdir(parents=True, exist_ok=True)
    for child in source.iterdir():
        _copy(child, target / child.name)


def addresses(handle: str, mirrors: tuple[str, ...]) -> list[str]:
    """Addresses that may have what a handle names, the likeliest first."""
    path, parts = _path(handle), urlsplit(handle)
    is_file = path.endswith(ARCHIVES) or re.search(r"\.(keras|h5|hdf5)$", path)
    bare = path if is_file else f"{path}.tar.gz"
    urls = [
        mirror.format(path=path)
        if "{path}" in mirror
        else f"{mirror.rstrip('/')}/{bare.rpartition('/')[2] if is_file else bare}"
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


def _path(handle: str) -> str:
    """A handle's path: "vtab/sup-100/1"."""
    parts = urlsplit(handle if "://" in handle else f"https://{handle}")
    path = parts.path.strip("/")
    if not path or ".." in path.split("/"):
        raise InputError(
            "A handle names no module",
            where=handle,
            expected="https://HOST/PUBLISHER/MODULE/VERSION",
        )
    return path


def _stem(name: str) -> str:
    for ending in ARCHIVES:
        name = name.removesuffix(ending)
    return name


def _single(directory: pathlib.Path) -> pathlib.Path:
    """The one directory that an archive put everything into, if it did."""
    children = list(directory.iterdir())
    known = ("saved_model.pb", "variables", "assets")
    if len(children) == 1 and children[0].is_dir() and children[0].name not in known:
        return _single(children[0])
    return directory
