import gzip
import io
import tarfile
import zipfile

import numpy as np
import pytest

from rankckpt_jax.checkpoints.fetch import archives
from rankckpt_jax.errors import InputError

DATA = np.random.default_rng(0).bytes(300_000)


def make_zip(members):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return data.getvalue()


def make_tar(members):
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


def damage(data):
    middle = len(data) // 2
    return data[:middle] + bytes(64) + data[middle + 64 :]


both_kinds = pytest.mark.parametrize("make", [make_zip, make_tar])


@pytest.fixture
def refuse(tmp_path):
    """Check that an archive is refused, and that nothing of it is left."""

    def refuse(data, match, limit=archives.LIMIT):
        archive, target = tmp_path / "archive", tmp_path / "deep" / "out"
        archive.write_bytes(data)
        target.parent.mkdir()
        with pytest.raises(InputError, match=match):
            archives.unpack(archive, target, limit=limit)
        assert sorted(tmp_path.rglob("*")) == [archive, target.parent]

    return refuse


@both_kinds
def test_unpack(tmp_path, make):
    (tmp_path / "a").write_bytes(make({"./top/one": DATA, "top/sub/two": b"2"}))
    archives.unpack(tmp_path / "a", tmp_path / "out", limit=archives.LIMIT)
    assert (tmp_path / "out" / "top" / "one").read_bytes() == DATA
    assert (tmp_path / "out" / "top" / "sub" / "two").read_bytes() == b"2"
    assert {path.name for path in tmp_path.iterdir()} == {"a", "out"}


@both_kinds
@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("../evil", "outside"),
        ("/tmp/evil", "outside"),
        ("a/../../evil", "outside"),
        ("..\\evil", "outside"),
        ("C:/evil", "outside"),
        ("a" * 300, "invalid file name"),
        ("\u00e9" * 200, "invalid file name"),
        ("/".join(["a"] * 200), "nested too deeply"),
        ("/".join(["a" * 200] * 60), "nested too deeply"),
    ],
    ids=lambda value: value[:12],
)
def test_unpack_refuses_unsafe_names(refuse, make, name, match):
    refuse(make({"fine": b"1", name: b"2"}), match)


@both_kinds
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
def test_unpack_refuses_names_that_some_file_systems_confuse(refuse, make, names):
    refuse(make(dict.fromkeys(names, b"1")), "two members have one name")


def test_unpack_refuses_a_repeated_name(refuse):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("a", "1")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a", "2")
    refuse(data.getvalue(), "two members have one name")


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
)
def test_unpack_refuses_links_and_devices_in_a_tar(refuse, kind):
    info = tarfile.TarInfo("link")
    info.type, info.linkname = kind, "/etc/passwd"
    refuse(make_tar({"link": info}), "link or a device")


def test_unpack_refuses_links_in_a_zip(refuse):
    info = zipfile.ZipInfo("link")
    info.create_system, info.external_attr = 3, 0o120777 << 16
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr(info, "/etc/passwd")
    refuse(data.getvalue(), "link")


@both_kinds
def test_unpack_refuses_contents_beyond_the_limit(refuse, make):
    data = make({"a": b"0" * 600_000, "b": b"0" * 600_000})
    refuse(data, "larger than 0.001 GB", limit=1_000_000)


def test_unpack_counts_the_bytes_and_not_the_announced_size(refuse):
    """The directory of this zip announces 10 bytes for a member of two megabytes."""
    data = bytearray(make_zip({"a": bytes(2_000_000)}))
    place = data.rindex(b"PK\x01\x02") + 24
    assert int.from_bytes(data[place : place + 4], "little") == 2_000_000
    data[place : place + 4] = (10).to_bytes(4, "little")
    refuse(bytes(data), "cannot be unpacked", limit=1_000_000)


def test_unpack_refuses_too_many_members(refuse, monkeypatch):
    monkeypatch.setattr(archives, "_MAX_MEMBERS", 50)
    refuse(make_zip({str(i): b"" for i in range(51)}), "more than 50 members")


def with_password():
    data = bytearray(make_zip({"a": b"1"}))
    for start in (data.index(b"PK\x03\x04") + 6, data.index(b"PK\x01\x02") + 8):
        data[start] |= 1
    return bytes(data)


def with_a_large_header():
    """A few kilobytes whose extended header announces a gigabyte."""
    info = tarfile.TarInfo("bomb")
    info.type, info.size = tarfile.XHDTYPE, 1 << 30
    header = info.tobuf(tarfile.PAX_FORMAT)
    return gzip.compress(header + bytes(64 << 20), compresslevel=1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: b"not an archive",
        lambda: make_tar({"a": DATA})[:-5000],
        lambda: damage(make_tar({"a": DATA})),
        lambda: damage(make_zip({"a": DATA})),
        with_password,
        with_a_large_header,
    ],
    ids=["text", "truncated tar", "tar", "zip", "password", "header"],
)
def test_unpack_refuses_damaged_archives(refuse, make):
    refuse(make(), "cannot be unpacked")


@pytest.mark.parametrize(
    "fields",
    [{"path": "a\0b"}, {"size": "-1"}, {"size": "many"}, {"mtime": "x"}, {"path": ""}],
    ids=str,
)
def test_unpack_survives_odd_extended_headers(tmp_path, fields):
    info = tarfile.TarInfo("member")
    info.pax_headers = fields
    (tmp_path / "a.tar.gz").write_bytes(make_tar({"member": info}))
    try:
        archives.unpack(tmp_path / "a.tar.gz", tmp_path / "out", limit=archives.LIMIT)
    except InputError:
        assert not (tmp_path / "out").exists()
    assert {path.name for path in tmp_path.iterdir()} <= {"a.tar.gz", "out"}
