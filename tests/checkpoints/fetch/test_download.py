import hashlib
import http.server
import json
import re
import threading

import pytest

from rankckpt_jax.checkpoints.fetch import download
from rankckpt_jax.errors import InputError
from tests.checkpoints.fetch.test_archives import DATA, damage, make_tar, make_zip

# The request after half of DATA arrived, of which complete chunks are kept.
RESUMED = f"bytes={150_000 // download._CHUNK * download._CHUNK}-"


class Server(http.server.ThreadingHTTPServer):
    """Serve `files` by path; each request takes one of `faults`, in turn."""

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


def fetch(server, tmp_path):
    return download.fetch([server.url("a.bin")], tmp_path / "a.bin")


def test_fetch_downloads_once_and_records_the_file(server, tmp_path):
    server.files["a.bin"] = DATA
    for _ in range(2):
        file = fetch(server, tmp_path)
    assert file.read_bytes() == DATA
    assert len(server.requests) == 1
    record = json.loads((tmp_path / "a.bin.provenance.json").read_text())
    assert record["size"] == len(DATA)
    assert record["sha256"] == hashlib.sha256(DATA).hexdigest()
    assert record["url"] == server.url("a.bin")
    assert not list(tmp_path.glob("*partial*"))


def test_fetch_resumes_after_a_dropped_connection(server, tmp_path):
    server.files["a.bin"] = DATA
    server.faults = ["drops"]
    assert fetch(server, tmp_path).read_bytes() == DATA
    assert server.requests == [None, RESUMED]


@pytest.mark.parametrize(
    ("data", "fault"), [(DATA, ""), (DATA[::-1], ""), (DATA[::-1], "no ranges")]
)
def test_fetch_resumes_an_earlier_run_only_with_the_same_file(
    server, tmp_path, monkeypatch, data, fault
):
    monkeypatch.setattr(download, "_ATTEMPTS", 1)
    server.files["a.bin"] = DATA
    server.faults = ["drops", fault]
    with pytest.raises(InputError, match="cannot be downloaded"):
        fetch(server, tmp_path)
    assert not (tmp_path / "a.bin").exists()
    server.files["a.bin"] = data
    assert fetch(server, tmp_path).read_bytes() == data
    assert server.requests[1] == RESUMED


def test_fetch_leaves_no_file_if_the_length_is_wrong(server, tmp_path):
    server.files["a.bin"] = DATA
    server.faults = ["announces more"] * 100
    with pytest.raises(InputError, match="cannot be downloaded"):
        fetch(server, tmp_path)
    assert not (tmp_path / "a.bin").exists()


def test_fetch_tries_mirrors_in_order(server, tmp_path):
    server.files["there.bin"] = DATA
    urls = ["http://127.0.0.1:9/a.bin", server.url("gone.bin"), server.url("there.bin")]
    assert download.fetch(urls, tmp_path / "a.bin").read_bytes() == DATA


def test_a_file_that_changed_after_the_first_download_is_refused(server, tmp_path):
    server.files["a.bin"] = make_zip({"x": b"1"})
    file = fetch(server, tmp_path)
    file.write_bytes(make_zip({"x": b"2"}))
    with pytest.raises(InputError, match="has changed"):
        download.unpack(file, tmp_path / "unpacked")
    file.write_bytes(b"")
    with pytest.raises(InputError, match="0 bytes instead of"):
        fetch(server, tmp_path)
    file.unlink()
    server.files["a.bin"] = make_zip({"x": b"2"})
    with pytest.raises(InputError, match="SHA-256"):
        fetch(server, tmp_path)


@pytest.mark.parametrize(
    "bad", [b"not an archive", damage(make_tar({"a": DATA}))], ids=["text", "damaged"]
)
def test_fetch_unpacked_replaces_a_damaged_archive(server, tmp_path, bad):
    server.files = {"bad.tar.gz": bad, "good.tar.gz": make_tar({"a": DATA})}
    urls = [server.url("bad.tar.gz"), server.url("good.tar.gz")]
    file, directory = tmp_path / "x.tar.gz", tmp_path / "x"
    with pytest.raises(InputError, match="cannot be unpacked"):
        download.fetch_unpacked(urls[:1], file, directory)
    assert not directory.exists() and not file.exists()
    download.fetch_unpacked(urls, file, directory)
    assert (directory / "a").read_bytes() == DATA


ADDRESS = "user:pa55word@127.0.0.1:{port}/a.bin?X-Goog-Signature=5ecret&Expires=1"


def test_fetch_uses_secrets_of_an_address_and_never_stores_them(
    server, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(download, "_ATTEMPTS", 1)
    address = "http://" + ADDRESS.format(port=server.server_port)
    server.files["a.bin"] = DATA
    server.faults = ["absent", "drops"]
    for _ in range(2):
        with pytest.raises(InputError) as raised:
            download.fetch([address], tmp_path / "a.bin")
        message = str(raised.value) + caplog.text
        assert "127.0.0.1" in message and "[hidden]" in message
        assert "pa55word" not in message and "5ecret" not in message
    # The second half is fetched with a new signature.
    again = address.replace("5ecret", "an0ther")
    assert download.fetch([again], tmp_path / "a.bin").read_bytes() == DATA
    assert server.requests[-1] == RESUMED
    assert server.asked[-1] == ("/a.bin?X-Goog-Signature=an0ther&Expires=1", True)
    for path in tmp_path.rglob("*"):
        if path.name != "a.bin" and path.is_file():
            text = path.read_text()
            assert not any(s in text for s in ("pa55word", "5ecret", "an0ther"))
    assert "127.0.0.1" in (tmp_path / "a.bin.provenance.json").read_text()
