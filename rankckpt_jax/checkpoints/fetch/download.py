"""Fetches files once, whole and as they were the first time.

    DIRECTORY/FILE                  under its final name only when it is whole
    DIRECTORY/.FILE.partial         while it arrives; the next run goes on from its end
    DIRECTORY/FILE.provenance.json  where it came from, its size and SHA-256; no secrets

A file that was put there by hand is taken as it is and recorded.
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
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from rankckpt_jax.checkpoints.fetch import archives
from rankckpt_jax.devices import progress
from rankckpt_jax.errors import InputError, redact
from rankckpt_jax.storage import files

RANK_CKPT = "http://storage.googleapis.com/gresearch/rank_ckpt/rank_ckpt.zip"
"""The paper's own checkpoints, of Groups II and III and two of Group I."""

_log = logging.getLogger(__name__)

# Of a download: a piece that the connection breaks off in is lost.
_PIECE = 1 << 16
_TIMEOUTS = (20.0, 60.0)  # Seconds, to connect and between two pieces.
_PROBE = 5.0  # Seconds that a server has to answer whether it is there.
_ATTEMPTS = 5
_PAUSE = 1.0  # Seconds before the second attempt; doubled before each further one.


@dataclasses.dataclass(frozen=True)
class Storage:
    """Where downloads are kept, and from where else they may come.

    Attributes:
      directory: Of downloads and what was unpacked; a local one.
      hub_cache: tensorflow_hub's own cache, whose modules are used where they are;
        None for none.
      mirrors: Tried before a handle's own address: "https://host/{path}.tar.gz", in
        which {path} is the handle's path ("vtab/sup-100/1"), or the address of a
        directory that has the file under its own name.
      limit: Bytes that an archive may unpack to.
    """

    directory: pathlib.Path
    hub_cache: pathlib.Path | None = None
    mirrors: tuple[str, ...] = ()
    limit: int = archives.LIMIT


def storage(settings: Any = None) -> Storage:
    """Makes a `Storage` of a config's `download` section; the defaults without one."""
    directory = settings.directory if settings else ""
    hub_cache = settings.hub_cache if settings else ""
    hub_cache = hub_cache or os.environ.get("TFHUB_CACHE_DIR", "")
    fallback = pathlib.Path("~/.cache/rankckpt_jax")
    place = pathlib.Path(directory or os.environ.get("RANKCKPT_DOWNLOADS") or fallback)
    if "://" in str(directory):
        raise InputError(
            "Downloads are kept in a local directory",
            where="config.download.directory",
            found=str(directory),
        )
    mirrors = tuple(settings.mirrors) if settings else ()
    limit = settings.limit_gigabytes if settings else Storage.limit / 1e9
    if not 0 < limit < math.inf:
        raise InputError(
            "An archive has to unpack to something, and to a limit",
            where="config.download.limit_gigabytes",
            expected="a number above 0",
            found=str(limit),
        )
    return Storage(
        place.expanduser(),
        pathlib.Path(hub_cache).expanduser() if hub_cache else None,
        mirrors,
        int(limit * 1e9),
    )


def reachable(url: str) -> bool:
    """Whether a server answers at an address; an answer of any kind will do."""
    import requests

    try:
        requests.head(url, timeout=_PROBE, allow_redirects=False).close()
    except requests.RequestException:
        return False
    return True


def fetch(
    urls: Sequence[str], file: pathlib.Path, *, sha256: str = "", title: str = ""
) -> pathlib.Path:
    """Returns `file`, having downloaded it if it was not there.

    Args:
      urls: Where it may come from, in the order in which they are tried.
      file: Its final name.
      sha256: What it must be, in hexadecimal; what it was the first time if empty.
      title: For messages; by default the file's name.

    Raises:
      InputError: No address has it, or it is not what it was; the message says what to
        put where by hand.
    """
    file = pathlib.Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    with _lock(file):
        if file.exists():
            _verify(file, sha256)
            return file
        failures = []
        for url in urls:
            try:
                found = _download(url, file)
                _accept(found, url, file, sha256)
                return file
            except _Failure as failure:
                told = redact(f"{url}: {failure}")
                _log.warning("%s", told)
                failures.append(told)
    raise InputError(
        f"{title or file.name} cannot be downloaded",
        where=urls[0] if urls else str(file),
        found="; ".join(failures),
        fix=f"on a machine with network, download {urls[0] if urls else 'it'} and put "
        f"it here as {file}; or name a mirror in config.download.mirrors",
    )


def fetch_unpacked(
    urls: Sequence[str],
    file: pathlib.Path,
    directory: pathlib.Path,
    *,
    limit: int = archives.LIMIT,
    title: str = "",
) -> pathlib.Path:
    """Returns `directory` with the contents of an archive, fetched as by `fetch`.

    An archive that cannot be unpacked is removed, and the next address is tried.
    """
    if directory.is_dir():
        return directory
    remaining = list(urls)
    while True:
        fetch(remaining, file, title=title)
        try:
            return unpack(file, directory, limit=limit)
        except archives.DamagedArchive as damaged:
            source = _record(file).get("url")
            told = [redact(url) for url in remaining]
            if source not in told:
                raise
            _forget(file)
            remaining = remaining[told.index(source) + 1 :]
            _log.warning("%s: %s", source, damaged)
            if not remaining:
                raise


class _Failure(Exception):
    """One address failed; the next may do."""


def _download(url: str, file: pathlib.Path) -> pathlib.Path:
    """Downloads to the partial file, going on where an earlier attempt ended."""
    import requests

    partial = file.with_name(f".{file.name}.partial")
    failure: Exception = _Failure("no attempt was made")
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE * 2 ** (attempt - 1))
        before = partial.stat().st_size if partial.exists() else 0
        try:
            if _continue(url, partial, file.name):
                return partial
            failure = _Failure(
                f"the server sent {partial.stat().st_size} bytes and announced more"
            )
        except requests.HTTPError as error:
            raise _Failure(_first_line(error)) from error
        except requests.ConnectionError as error:
            failure = error
            after = partial.stat().st_size if partial.exists() else 0
            if not before and not after and attempt:
                break
        except requests.RequestException as error:
            failure = error
    if isinstance(failure, requests.ConnectionError):
        raise _Failure(f"no connection ({_innermost(failure)})")
    raise _Failure(_first_line(failure))


def _innermost(error: BaseException) -> str:
    """What went wrong, without the names of the layers it came up through."""
    while inner := next((a for a in error.args if isinstance(a, BaseException)), None):
        error = inner
    reason = getattr(error, "reason", None)
    if isinstance(reason, BaseException):
        error = reason
    return _first_line(error).rpartition(": ")[2]


def _continue(url: str, partial: pathlib.Path, title: str) -> bool:
    """Takes up a download; returns whether the file is whole now."""
    import requests

    state = partial.with_name(f"{partial.name}.json")
    known = _read_json(state) if partial.exists() else {}
    have = partial.stat().st_size if known.get("url") == redact(url) else 0
    # Bytes as they are stored, so that sizes and ranges mean the same thing.
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if known.get("validator"):
            headers["If-Range"] = known["validator"]
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUTS) as answer:
        if answer.status_code == 416:
            # There is nothing after what we have: whole, or of another file.
            total = _total(answer, 0)
            if total == have:
                return True
            partial.unlink(missing_ok=True)
            return _continue(url, partial, title)
        answer.raise_for_status()
        resumed = answer.status_code == 206 and _starts_at(answer) == have
        if answer.status_code == 206 and not resumed:
            partial.unlink(missing_ok=True)
            raise requests.RequestException("the server sent another range than asked")
        if not resumed:
            have = 0
        total = _total(answer, have)
        if resumed and known.get("total") not in (None, total):
            partial.unlink(missing_ok=True)
            return _continue(url, partial, title)
        validator = answer.headers.get("ETag", "")
        if not validator or validator.startswith("W/"):
            validator = answer.headers.get("Last-Modified", "")
        _write_json(state, {"url": redact(url), "validator": validator, "total": total})
        with (
            progress.bar(f"downloading {title}", total or 0, "B") as shown,
            partial.open("ab" if resumed else "wb") as out,
        ):
            shown.update(have)
            for chunk in answer.iter_content(_PIECE):
                out.write(chunk)
                shown.update(len(chunk))
    size = partial.stat().st_size
    if total is not None and size > total:
        partial.unlink()
        raise requests.RequestException(
            f"the server announced {total} bytes and sent {size}"
        )
    return total is None or size == total


def _starts_at(answer: Any) -> int | None:
    unit, _, rest = answer.headers.get("Content-Range", "").partition(" ")
    start = rest.partition("-")[0]
    return int(start) if unit == "bytes" and start.isdigit() else None


def _total(answer: Any, have: int) -> int | None:
    """Size of the whole file, by the server."""
    total = answer.headers.get("Content-Range", "").rpartition("/")[2]
    if total.isdigit():
        return int(total)
    length = answer.headers.get("Content-Length", "")
    return have + int(length) if length.isdigit() else None


def _accept(partial: pathlib.Path, url: str, file: pathlib.Path, sha256: str) -> None:
    """Gives a whole download its final name and records what it is."""
    found = _sha256(partial)
    expected = sha256 or _record(file).get("sha256", "")
    state = partial.with_name(f"{partial.name}.json")
    if expected and found != expected:
        partial.unlink()
        state.unlink(missing_ok=True)
        raise _Failure(f"its SHA-256 is {found} instead of {expected}")
    _remember(file, url, partial.stat().st_size, found)
    partial.replace(file)
    state.unlink(missing_ok=True)


def _verify(file: pathlib.Path, sha256: str) -> None:
    """Compares a file with its record, which is made where there is none."""
    record = _record(file)
    size = file.stat().st_size
    if not record:
        found = _sha256(file)
        _remember(file, "put there by hand", size, found)
        record = _record(file)
    found = record["sha256"]
    if size != record["size"]:
        problem = f"{size} bytes instead of {record['size']}"
    elif sha256 and sha256 != found:
        problem = f"SHA-256 {found} instead of {sha256}"
    else:
        return
    raise InputError(
        "A downloaded file is not what it was",
        where=str(file),
        found=problem,
        fix=f"remove it and {_record_path(file).name}, and it is fetched again",
    )


def unpack(
    archive: pathlib.Path, directory: pathlib.Path, *, limit: int = archives.LIMIT
) -> pathlib.Path:
    """Unpacks a `.tar`, `.tar.gz`, `.tgz` or `.zip` to a new directory.

    Args:
      archive: Compared with its record first, where it has one.
      directory: Appears when everything is in it.
      limit: Bytes that the contents may have.

    Returns:
      `directory`.

    Raises:
      InputError: A member would stand outside, is a link or a device, the contents are
        too large, or the archive is damaged. Nothing is left then.
    """
    archive, directory = pathlib.Path(archive), pathlib.Path(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with _lock(directory):
        if directory.is_dir():
            return directory
        record = _record(archive)
        if record and _sha256(archive) != record["sha256"]:
            raise InputError(
                "A downloaded file is not what it was",
                where=str(archive),
                expected=f"SHA-256 {record['sha256']}",
                fix=f"remove it and {_record_path(archive).name}, and it is fetched "
                "again",
            )
        archives.unpack(archive, directory, limit=limit)
    return directory


# ------------------------------------------------------------------- records


def _record_path(file: pathlib.Path) -> pathlib.Path:
    return file.with_name(f"{file.name}.provenance.json")


def _record(file: pathlib.Path) -> dict[str, Any]:
    record = _read_json(_record_path(file))
    return record if {"url", "size", "sha256"} <= record.keys() else {}


def _remember(file: pathlib.Path, url: str, size: int, sha256: str) -> None:
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    record = {"url": redact(url), "size": size, "sha256": sha256, "recorded": when}
    _write_json(_record_path(file), record)


def _forget(file: pathlib.Path) -> None:
    file.unlink(missing_ok=True)
    _record_path(file).unlink(missing_ok=True)


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _write_json(path: pathlib.Path, value: Any) -> None:
    files.write_text_atomically(epath.Path(path), json.dumps(value, indent=1))


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextlib.contextmanager
def _lock(path: pathlib.Path) -> Iterator[None]:
    """Lets one process of this machine at a time make `path`."""
    try:
        import fcntl
    except ImportError:  # Not on Windows, where one process has to do.
        yield
        return
    with path.with_name(f".{path.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
