import gzip
import hashlib
import http.server
import io
import json
import re
import tarfile
import threading
import zipfile

import numpy as np
import pytest

from rankckpt_jax.checkpoints.fetch import archives, download
from rankckpt_jax.errors import InputError

DATA = np.random.default_rng(0).bytes(300_000)
# What of half of it came in whole pieces.
RESUMED = f"bytes={150_000 // download._PIECE * download._PIECE}-"


class Server(http.server.ThreadingHTTPServer):
    """Serves `files` by path and does to each answer what `faults` lists, in turn."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.faults, self.requests, self.asked = {}, [], [], []

    def url(self, name):
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.requests.append(self.headers.get("Range"))
        server.asked.append((self.path, "Authorization" in self.headers))
        fault = server.faults.pop(0) if server.faults else ""
        data = server.files.get(self.path.lstrip("/").split("?")[0])
        if data is None or fault == "absent":
            self.send_error(404)
            return
        tag = f'"{hashlib.sha256(data).hexdigest()[:8]}"'
        start, status = 0, 200
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        same = self.headers.get("If-Range") in (None, tag)
        if asked and same and fault != "no ranges":
            start, status = int(asked[1]), 206
        if start >= len(data) > 0 and status == 206:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(data)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = data[start:]
        announced = len(body) + (1000 if fault == "announces more" else 0)
        self.send_response(status)
        self.send_header("ETag", tag)
        self.send_header("Content-Length", str(announced))
        if status == 206:
            last = len(data) - 1
            self.send_header("Content-Range", f"bytes {start}-{last}/{len(data)}")
        self.end_headers()
        if fault == "drops":
            body = body[: len(body) // 2]
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "_PAUSE", 0.0)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def _leftovers(folder):
    return [
        path.name
        for path in folder.rglob("*")
        if "partial" in path.name and path.stat().st_size
    ]


def test_a_file_is_fetched_once_and_recorded(server, tmp_path):
    server.files["a.bin"] = DATA
    for _ in range(2):
        file = download.fetch([server.url("a.bin")], tmp_path / "a.bin")
    assert file.read_bytes() == DATA
    assert len(server.requests) == 1
    record = json.loads((tmp_path / "a.bin.provenance.json").read_text())
    assert record["size"] == len(DATA)
    assert record["sha256"] == hashlib.sha256(DATA).hexdigest()
    assert record["url"] == server.url("a.bin")
    assert not _leftovers(tmp_path)


def test_a_dropped_connection_is_taken_up_where_it_ended(server, tmp_path):
    server.files["a.bin"] = DATA
    server.faults = ["drops"]
    file = download.fetch([server.url("a.bin")], tmp_path / "a.bin")
    assert file.read_bytes() == DATA
    assert server.requests == [None, RESUMED]


def test_the_next_run_goes_on_too(server, tmp_path, monkeypatch):
    server.files["a.bin"] = DATA
    monkeypatch.setattr(download, "_ATTEMPTS", 1)
    server.faults = ["drops"]
    with pytest.raises(InputError, match="cannot be downloaded"):
        download.fetch([server.url("a.bin")], tmp_path / "a.bin")
    assert not (tmp_path / "a.bin").exists()
    download.fetch([server.url("a.bin")], tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == DATA
    assert server.requests[1] == RESUMED


@pytest.mark.parametrize("fault", ["", "no ranges"])
def test_another_file_is_not_appended_to_the_first_half(
    server, tmp_path, monkeypatch, fault
):
    server.files["a.bin"] = DATA
    monkeypatch.setattr(download, "_ATTEMPTS", 1)
    server.faults = ["drops", fault]
    with pytest.raises(InputError):
        download.fetch([server.url("a.bin")], tmp_path / "a.bin")
    server.files["a.bin"] = DATA[::-1]
    download.fetch([server.url("a.bin")], tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == DATA[::-1]


def test_a_server_that_lies_about_the_length_leaves_no_file(server, tmp_path):
    server.files["a.bin"] = DATA
    server.faults = ["announces more"] * 100
    with pytest.raises(InputError, match="cannot be downloaded"):
        download.fetch([server.url("a.bin")], tmp_path / "a.bin")
    assert not (tmp_path / "a.bin").exists()


def test_mirrors_are_tried_in_order(server, tmp_path):
    server.files["there.bin"] = DATA
    urls = ["http://127.0.0.1:9/a.bin", server.url("gone.bin"), server.url("there.bin")]
    file = download.fetch(urls, tmp_path / "a.bin")
    assert file.read_bytes() == DATA


def test_without_a_network_it_is_said_what_to_put_where(tmp_path):
    with pytest.raises(InputError) as raised:
        download.fetch(["http://127.0.0.1:9/a.bin"], tmp_path / "a.bin")
    assert f"download http://127.0.0.1:9/a.bin and put it here as {tmp_path}" in str(
        raised.value
    )
    (tmp_path / "a.bin").write_bytes(DATA)
    assert download.fetch(["http://127.0.0.1:9/a.bin"], tmp_path / "a.bin")


def test_a_wrong_checksum_is_refused(server, tmp_path):
    server.files["a.bin"] = DATA
    with pytest.raises(InputError, match="SHA-256"):
        download.fetch([server.url("a.bin")], tmp_path / "a.bin", sha256="0" * 64)
    assert not (tmp_path / "a.bin").exists()


def test_what_changed_since_the_first_download_is_refused(server, tmp_path):
    server.files["a.zip"] = _zip({"x": b"1"})
    file = download.fetch([server.url("a.zip")], tmp_path / "a.zip")
    file.write_bytes(_zip({"x": b"2"}))
    with pytest.raises(InputError, match="not what it was"):
        download.unpack(file, tmp_path / "unpacked")
    file.unlink()
    server.files["a.zip"] = _zip({"x": b"2"})
    with pytest.raises(InputError, match="SHA-256"):
        download.fetch([server.url("a.zip")], file)


def _zip(members):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return data.getvalue()


def _tar(members):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return data.getvalue()


@pytest.mark.parametrize(("make", "name"), [(_zip, "a.zip"), (_tar, "a.tar.gz")])
def test_archives_are_unpacked(server, tmp_path, make, name):
    server.files[name] = make({"./top/one": DATA, "top/sub/two": b"2"})
    place = download.fetch_unpacked(
        [server.url(name)], tmp_path / name, tmp_path / "out"
    )
    assert (place / "top" / "one").read_bytes() == DATA
    assert (place / "top" / "sub" / "two").read_bytes() == b"2"
    assert not _leftovers(tmp_path)


@pytest.mark.parametrize("make", [_zip, _tar])
@pytest.mark.parametrize(
    "name", ["../evil", "/tmp/evil", "a/../../evil", "..\\evil", "C:/evil"]
)
def test_nothing_is_written_outside(tmp_path, make, name):
    archive = tmp_path / "archive"
    archive.write_bytes(make({"fine": b"1", name: b"2"}))
    with pytest.raises(InputError, match="written outside"):
        download.unpack(archive, tmp_path / "deep" / "out")
    assert not list(tmp_path.rglob("evil")) and not (tmp_path / "deep" / "out").exists()


def _link(kind):
    info = tarfile.TarInfo("link")
    info.type, info.linkname = kind, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
)
def test_links_and_devices_in_a_tar_are_refused(tmp_path, kind):
    (tmp_path / "a.tar.gz").write_bytes(_tar({"link": _link(kind)}))
    with pytest.raises(InputError, match="link or a device"):
        download.unpack(tmp_path / "a.tar.gz", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_links_in_a_zip_are_refused(tmp_path):
    info = zipfile.ZipInfo("link")
    info.create_system, info.external_attr = 3, 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(InputError, match="link"):
        download.unpack(tmp_path / "a.zip", tmp_path / "out")


@pytest.mark.parametrize("make", [_zip, _tar])
def test_contents_beyond_the_limit_are_refused(tmp_path, make):
    (tmp_path / "bomb").write_bytes(make({"a": b"0" * 600_000, "b": b"0" * 600_000}))
    with pytest.raises(InputError, match="larger than 0.001 GB"):
        download.unpack(tmp_path / "bomb", tmp_path / "out", limit=1_000_000)
    assert not (tmp_path / "out").exists()


def _broken(data):
    middle = len(data) // 2
    return data[:middle] + bytes(64) + data[middle + 64 :]


@pytest.mark.parametrize(
    "bad", [b"not an archive", _tar({"a": DATA})[:-5000], _broken(_tar({"a": DATA}))]
)
def test_a_corrupted_archive_is_replaced_by_the_next_mirrors(server, tmp_path, bad):
    server.files = {"bad.tar.gz": bad, "good.tar.gz": _tar({"a": DATA})}
    urls = [server.url("bad.tar.gz"), server.url("good.tar.gz")]
    with pytest.raises(InputError, match="cannot be unpacked"):
        download.fetch_unpacked(urls[:1], tmp_path / "x.tar.gz", tmp_path / "x")
    assert not (tmp_path / "x").exists() and not (tmp_path / "x.tar.gz").exists()
    place = download.fetch_unpacked(urls, tmp_path / "x.tar.gz", tmp_path / "x")
    assert (place / "a").read_bytes() == DATA
    assert not _leftovers(tmp_path)


def test_a_damaged_zip_is_refused(tmp_path):
    (tmp_path / "a.zip").write_bytes(_broken(_zip({"a": DATA})))
    with pytest.raises(InputError, match="cannot be unpacked"):
        download.unpack(tmp_path / "a.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _pax(**fields):
    info = tarfile.TarInfo("member")
    info.pax_headers = fields
    return info


@pytest.mark.parametrize("make", [_zip, _tar])
@pytest.mark.parametrize(
    "names",
    [
        ("a/weights", "A/Weights"),
        ("caf\u00e9", "cafe\u0301"),
        ("stra\u00dfe", "STRASSE"),
        ("a", "a/b"),
        ("a/b", "a"),
        ("a/./b", "a/b"),
    ],
)
def test_two_members_of_one_name_are_refused(tmp_path, make, names):
    """As a file system that folds case or composes letters would see them."""
    archive = tmp_path / "archive"
    archive.write_bytes(make(dict.fromkeys(names, b"1")))
    with pytest.raises(InputError, match="two members have one name"):
        download.unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_one_name_twice_is_refused(tmp_path):
    with (
        zipfile.ZipFile(tmp_path / "a.zip", "w") as archive,
        pytest.warns(UserWarning, match="Duplicate name"),
    ):
        archive.writestr("a", "1")
        archive.writestr("a", "2")
    with pytest.raises(InputError, match="two members have one name"):
        download.unpack(tmp_path / "a.zip", tmp_path / "out")


@pytest.mark.parametrize("make", [_zip, _tar])
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("a" * 300, "no file can have"),
        ("\u00e9" * 200, "no file can have"),
        ("/".join(["a"] * 200), "too deep"),
        ("/".join(["a" * 200] * 60), "too deep"),
    ],
)
def test_names_that_no_file_can_have_are_refused(tmp_path, make, name, says):
    archive = tmp_path / "archive"
    archive.write_bytes(make({"fine": b"1", name: b"2"}))
    with pytest.raises(InputError, match=says):
        download.unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "fields",
    [{"path": "a\0b"}, {"size": "-1"}, {"size": "many"}, {"mtime": "x"}, {"path": ""}],
)
def test_odd_extended_headers_are_refused_or_harmless(tmp_path, fields):
    (tmp_path / "a.tar.gz").write_bytes(_tar({"member": _pax(**fields)}))
    try:
        download.unpack(tmp_path / "a.tar.gz", tmp_path / "out")
    except InputError:
        assert not (tmp_path / "out").exists()
    assert {path.name for path in tmp_path.iterdir()} <= {
        *("a.tar.gz", "out", ".out.lock")
    }


def test_a_header_cannot_fill_the_memory(tmp_path):
    """A few kilobytes whose extended header says that it has a gigabyte."""
    info = tarfile.TarInfo("bomb")
    info.type, info.size = tarfile.XHDTYPE, 1 << 30
    with gzip.open(tmp_path / "a.tar.gz", "wb") as file:
        file.write(info.tobuf(tarfile.PAX_FORMAT))
        for _ in range(1 << 6):
            file.write(bytes(1 << 20))
    with pytest.raises(InputError, match="cannot be unpacked"):
        download.unpack(tmp_path / "a.tar.gz", tmp_path / "out")


def test_a_size_that_is_a_lie_does_not_help(tmp_path):
    """A zip whose directory says that a member of two megabytes has ten bytes."""
    data = bytearray(_zip({"a": bytes(2_000_000)}))
    place = data.rindex(b"PK\x01\x02") + 24
    assert int.from_bytes(data[place : place + 4], "little") == 2_000_000
    data[place : place + 4] = (10).to_bytes(4, "little")
    (tmp_path / "a.zip").write_bytes(bytes(data))
    with pytest.raises(InputError):
        download.unpack(tmp_path / "a.zip", tmp_path / "out", limit=1_000_000)
    assert not (tmp_path / "out").exists()


def test_too_many_members_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "_MAX_MEMBERS", 50)
    (tmp_path / "a.zip").write_bytes(_zip({str(i): b"" for i in range(51)}))
    with pytest.raises(InputError, match="more than 50 members"):
        download.unpack(tmp_path / "a.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_zip_with_a_password_is_refused(tmp_path):
    data = bytearray(_zip({"a": b"1"}))
    for start in (data.index(b"PK\x03\x04") + 6, data.index(b"PK\x01\x02") + 8):
        data[start] |= 1
    (tmp_path / "a.zip").write_bytes(bytes(data))
    with pytest.raises(InputError, match="cannot be unpacked"):
        download.unpack(tmp_path / "a.zip", tmp_path / "out")


ADDRESS = "user:pa55word@127.0.0.1:{port}/a.bin?X-Goog-Signature=5ecret&Expires=1"


def test_an_address_is_used_whole_and_told_without_its_secrets(
    server, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(download, "_ATTEMPTS", 1)
    address = "http://" + ADDRESS.format(port=server.server_port)
    server.files["a.bin"] = DATA
    server.faults = ["absent", "drops"]
    for _ in range(2):
        with pytest.raises(InputError) as raised:
            download.fetch([address], tmp_path / "a.bin")
        told = str(raised.value) + caplog.text
        assert "127.0.0.1" in told and "[hidden]" in told
        assert "pa55word" not in told and "5ecret" not in told
    # Half of it is here, and the other half is fetched under a new signature.
    again = address.replace("5ecret", "an0ther")
    assert download.fetch([again], tmp_path / "a.bin").read_bytes() == DATA
    assert server.requests[-1] == RESUMED
    assert server.asked[-1] == ("/a.bin?X-Goog-Signature=an0ther&Expires=1", True)
    for path in tmp_path.rglob("*"):
        if path.name != "a.bin" and path.is_file():
            text = path.read_text()
            assert not any(s in text for s in ("pa55word", "5ecret", "an0ther"))
    assert "127.0.0.1" in (tmp_path / "a.bin.provenance.json").read_text()
