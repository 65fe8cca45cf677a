"""Download files once, completely, and detect later changes.

    DIRECTORY/FILE                  complete
    DIRECTORY/.FILE.partial         an interrupted download, which the next run resumes
    DIRECTORY/FILE.provenance.json  its address, size and SHA-256; no secrets

A file that the user copied there is used and recorded in the same way.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import os
import pathlib
import time
from collections.abc import Sequence
from typing import Any

from etils import epath

from rankckpt_jax.checkpoints.fetch import archives, kept
from rankckpt_jax.devices import progress
from rankckpt_jax.errors import InputError, StorageError, redact
from rankckpt_jax.storage import files

_log = logging.getLogger(__name__)

# Bytes written at a time; a partial chunk is lost when the connection breaks.
_CHUNK = 1 << 16
_TIMEOUTS = (20.0, 60.0)  # Seconds to connect, and between two chunks.
_ATTEMPTS = 5
_PAUSE = 1.0  # Seconds before the second attempt; doubled before each further one.


@dataclasses.dataclass(frozen=True)
class Storage:
    """Where downloads are kept, and their mirrors.

    Attributes:
      directory: A local directory for downloads and unpacked archives. It may start
        with "~", and is created when something is downloaded or unpacked.
      hub_cache: The cache of the library tensorflow_hub, whose modules are used in
        place; None for none.
      mirrors: Addresses to try before a handle's own: "https://host/{path}.tar.gz",
        in which {path} is the handle's path ("vtab/sup-100/1"), or the address of a
        directory that holds the file under its own name.
      limit: Largest size of an archive's contents in bytes.
    """

    directory: pathlib.Path
    hub_cache: pathlib.Path | None = None
    mirrors: tuple[str, ...] = ()
    limit: int = archives.LIMIT

    def place(self, *parts: str) -> pathlib.Path:
        """Return a path below the directory.

        Raises:
          InputError: There is no home directory.
        """
        try:
            directory = files.to_path(self.directory)
        except InputError as error:
            raise InputError(
                "There is no directory for downloads",
                where="config.download.directory",
                expected="a local directory",
                found=f"{self.directory}, and no home directory",
                fix="set --config.download.directory, RANKCKPT_DOWNLOADS or HOME",
            ) from error
        return pathlib.Path(directory, *parts)


def storage(settings: Any = None) -> Storage:
    """Build a `Storage` from a config's `download` section, or with the defaults.

    Raises:
      InputError: The directory is not local, or the limit is not a positive number.
    """
    directory = settings.directory if settings else ""
    hub_cache = settings.hub_cache if settings else ""
    hub_cache = hub_cache or os.environ.get("TFHUB_CACHE_DIR", "")
    directory = directory or os.environ.get("RANKCKPT_DOWNLOADS", "")
    if "://" in str(directory):
        raise InputError(
            "Downloads need a local directory",
            where="config.download.directory",
            expected="a local path",
            found=str(directory),
            fix="leave it empty to use ~/.cache/rankckpt_jax",
        )
    mirrors = tuple(settings.mirrors) if settings else ()
    limit = settings.limit_gigabytes if settings else Storage.limit / 1e9
    if not 0 < limit < math.inf:
        raise InputError(
            "The limit of an archive's size is not a positive number",
            where="config.download.limit_gigabytes",
            expected="a number above 0",
            found=str(limit),
        )
    return Storage(
        pathlib.Path(directory or "~/.cache/rankckpt_jax"),
        pathlib.Path(files.to_path(hub_cache)) if hub_cache else None,
        mirrors,
        int(limit * 1e9),
    )


def fetch(urls: Sequence[str], file: pathlib.Path, *, title: str = "") -> pathlib.Path:
    """Download a file unless it exists.

    Args:
      urls: Its addresses, in the order in which they are tried.
      file: The local path.
      title: For messages; by default the file's name.

    Returns:
      `file`.

    Raises:
      InputError: No address has the file, or it differs from the first download. The
        message explains how to put it there by hand.
    """
    file = pathlib.Path(file)
    with kept.writing(file):
        if file.exists():
            # It appears once it is complete, so a read-only directory is enough.
            _verify(file)
            return file
    failures = []
    with kept.exclusive(file):
        if file.exists():
            _verify(file)
            return file
        for url in urls:
            try:
                _accept(_download(url, file), url, file)
                return file
            except _Failure as failure:
                message = redact(f"{url}: {failure}")
                _log.warning("%s; trying the next address", message)
                failures.append(message)
    address = urls[0] if urls else str(file)
    raise InputError(
        f"{title or file.name} cannot be downloaded",
        where=address,
        found="; ".join(failures),
        fix=f"on a machine with network, download {address} and copy it to {file}; or "
        "add a mirror to config.download.mirrors",
    )


def fetch_unpacked(
    urls: Sequence[str],
    file: pathlib.Path,
    directory: pathlib.Path,
    *,
    limit: int = archives.LIMIT,
    title: str = "",
) -> pathlib.Path:
    """Download an archive with `fetch` and unpack it, unless `directory` exists.

    A damaged archive is removed, and the next address is tried.

    Returns:
      `directory`.
    """
    with kept.writing(directory):
        if directory.is_dir():
            return directory
    remaining = list(urls)
    while True:
        fetch(remaining, file, title=title)
        try:
            return unpack(file, directory, limit=limit)
        except archives.DamagedArchive as error:
            source = _read_record(file).get("url")
            addresses = [redact(url) for url in remaining]
            if source not in addresses:
                raise
            with kept.writing(file):
                file.unlink(missing_ok=True)
                _record_path(file).unlink(missing_ok=True)
            remaining = remaining[addresses.index(source) + 1 :]
            if not remaining:
                raise
            _log.warning("%s: %s; trying the next address", source, error)


def unpack(
    archive: pathlib.Path, directory: pathlib.Path, *, limit: int = archives.LIMIT
) -> pathlib.Path:
    """Unpack an archive with `archives.unpack`, unless `directory` exists.

    Args:
      archive: A `.tar`, `.tar.gz`, `.tgz` or `.zip`. If it was downloaded, it is
        compared with its recorded checksum.
      directory: The target, which appears once it is complete.
      limit: Largest size of the contents in bytes.

    Returns:
      `directory`.

    Raises:
      InputError: The archive is damaged, unsafe, too large or has changed.
    """
    archive, directory = pathlib.Path(archive), pathlib.Path(directory)
    with kept.writing(directory):
        if directory.is_dir():
            return directory
    with kept.exclusive(directory):
        if not directory.is_dir():
            record = _read_record(archive)
            if record and _sha256(archive) != record["sha256"]:
                raise _changed(archive, "another SHA-256")
            archives.unpack(archive, directory, limit=limit)
    return directory


class _Failure(Exception):
    """A download from one address failed."""


def _download(url: str, file: pathlib.Path) -> pathlib.Path:
    """Download to the partial file, resuming an earlier attempt; return its path."""
    import requests  # Here for start-up time.

    partial = file.with_name(f".{file.name}.partial")
    failure: Exception = _Failure("no attempt was made")
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE * 2 ** (attempt - 1))
        before = _size(partial)
        try:
            if _resume(url, partial, file.name):
                return partial
            failure = _Failure(f"the server sent only {_size(partial)} bytes")
        except requests.HTTPError as error:
            raise _Failure(_first_line(error)) from error
        except requests.ConnectionError as error:
            failure = error
            if not before and not _size(partial) and attempt:
                break
        except requests.RequestException as error:
            failure = error
    if isinstance(failure, requests.ConnectionError):
        raise _Failure(f"no connection ({_root_cause(failure)})")
    raise _Failure(_first_line(failure))


def _resume(url: str, partial: pathlib.Path, title: str) -> bool:
    """Continue a download; return whether the file is complete."""
    import requests  # Here for start-up time.

    state_file = partial.with_name(f"{partial.name}.json")
    state = _read_json(state_file) if partial.exists() else {}
    size = _size(partial) if state.get("url") == redact(url) else 0
    # Without compression, so that sizes and ranges count the bytes of the file.
    headers = {"Accept-Encoding": "identity"}
    if size:
        headers["Range"] = f"bytes={size}-"
        if state.get("validator"):
            headers["If-Range"] = state["validator"]
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUTS) as response:
        if response.status_code == 416:
            # No bytes after ours: the file is complete, or another one.
            if _total(response, 0) == size:
                return True
            partial.unlink(missing_ok=True)
            return _resume(url, partial, title)
        response.raise_for_status()
        resumed = response.status_code == 206 and _range_start(response) == size
        if response.status_code == 206 and not resumed:
            partial.unlink(missing_ok=True)
            raise requests.RequestException("the server sent another range")
        if not resumed:
            size = 0
        total = _total(response, size)
        if resumed and state.get("total") not in (None, total):
            partial.unlink(missing_ok=True)
            return _resume(url, partial, title)
        validator = response.headers.get("ETag", "")
        if not validator or validator.startswith("W/"):
            validator = response.headers.get("Last-Modified", "")
        state = {"url": redact(url), "validator": validator, "total": total}
        _write_json(state_file, state)
        with (
            progress.bar(f"downloading {title}", total or 0, "B", initial=size) as bar,
            partial.open("ab" if resumed else "wb") as out,
        ):
            for chunk in response.iter_content(_CHUNK):
                out.write(chunk)
                bar.update(len(chunk))
    size = _size(partial)
    if total is not None and size > total:
        partial.unlink()
        raise requests.RequestException(
            f"the server announced {total} bytes and sent {size}"
        )
    return total is None or size == total


def _range_start(response: Any) -> int | None:
    unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
    start = rest.partition("-")[0]
    return int(start) if unit == "bytes" and start.isdigit() else None


def _total(response: Any, size: int) -> int | None:
    """Return the size of the complete file, of which `size` bytes are skipped."""
    total = response.headers.get("Content-Range", "").rpartition("/")[2]
    if total.isdigit():
        return int(total)
    length = response.headers.get("Content-Length", "")
    return size + int(length) if length.isdigit() else None


def _accept(partial: pathlib.Path, url: str, file: pathlib.Path) -> None:
    """Record a complete download and give it its final name."""
    sha256 = _sha256(partial)
    expected = _read_record(file).get("sha256", sha256)
    state_file = partial.with_name(f"{partial.name}.json")
    if sha256 != expected:
        partial.unlink()
        state_file.unlink(missing_ok=True)
        raise _Failure(f"its SHA-256 is {sha256}, and was {expected} before")
    _write_record(file, url, _size(partial), sha256)
    partial.replace(file)
    state_file.unlink(missing_ok=True)


def _verify(file: pathlib.Path) -> None:
    """Compare a file with its record, or record it."""
    record = _read_record(file)
    if not record:
        # Without a record in a read-only directory, changes are not detected.
        with contextlib.suppress(StorageError):
            _write_record(file, "copied by the user", _size(file), _sha256(file))
    elif _size(file) != record["size"]:
        raise _changed(file, f"{_size(file)} bytes instead of {record['size']}")


def _changed(file: pathlib.Path, problem: str) -> InputError:
    return InputError(
        "A downloaded file has changed",
        where=str(file),
        found=problem,
        fix=f"remove it and {_record_path(file).name} to download it again",
    )


# ------------------------------------------------------------------- records


def _record_path(file: pathlib.Path) -> pathlib.Path:
    return file.with_name(f"{file.name}.provenance.json")


def _read_record(file: pathlib.Path) -> dict[str, Any]:
    record = _read_json(_record_path(file))
    return record if {"url", "size", "sha256"} <= record.keys() else {}


def _write_record(file: pathlib.Path, url: str, size: int, sha256: str) -> None:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    record = {"url": redact(url), "size": size, "sha256": sha256, "recorded": now}
    _write_json(_record_path(file), record)


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _write_json(path: pathlib.Path, value: Any) -> None:
    files.write_text_atomically(epath.Path(path), json.dumps(value, indent=1))


def _size(path: pathlib.Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _root_cause(error: BaseException) -> str:
    """Return the innermost message, without the layers of urllib3 around it."""
    while inner := next((a for a in error.args if isinstance(a, BaseException)), None):
        error = inner
    reason = getattr(error, "reason", None)
    if isinstance(reason, BaseException):
        error = reason
    return _first_line(error).rpartition(": ")[2]
