import pathlib
import time

import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st

from rankckpt_jax.errors import InputError
from rankckpt_jax.storage import files


@given(
    name=st.text()
    | st.text("./\\\0~a \n", max_size=9)
    | st.sampled_from(["..", ".", "", "/", "a" * 400, "\u00e9" * 200, "Report.HTML"])
)
@settings(max_examples=100, deadline=None)
def test_directory_name_is_safe_for_any_name(name):
    result = files.directory_name(name)
    assert result not in ("", ".", "..") and len(result.encode()) <= 130
    assert not set(result) & set("/\\\0~:") and result.isprintable()
    assert not result.startswith((".", "-"))
    assert result.casefold() not in ("report.html", "ranking.csv", "converted")
    assert pathlib.PurePath("a", result).parent == pathlib.PurePath("a")
    assert files.directory_name(result) == result


def test_directory_name_keeps_long_names_distinct():
    assert len({files.directory_name("a" * 300 + end) for end in "bc"}) == 2


def test_write_replaces_the_leftover_of_a_killed_write(tmp_path):
    path = epath.Path(tmp_path) / "file"
    files.write_text_atomically(path, "old")
    (path.parent / ".file.partial").write_text("half of the n")
    assert path.read_text() == "old"
    files.write_text_atomically(path, "new")
    assert [p.name for p in path.parent.iterdir()] == ["file"]
    assert path.read_text() == "new"


def test_reason_shortens_long_messages():
    message = f'OUT_OF_RANGE: Error writing "{"a/" * 300}": File too large'
    appended = f" [tensorstore_spec='{{{'x' * 900}}}'] [os_error_code='27']"
    reason = files.reason(ValueError(message + appended))
    assert reason.startswith("OUT_OF_RANGE: Error writing")
    assert reason.endswith(": File too large")
    assert len(reason) < 420
    assert files.reason(ValueError("")) == "ValueError('')"


def test_digest_separates_its_parts():
    assert files.digest("ab", "c") != files.digest("a", "bc")


def test_matching_takes_the_directory_literally(tmp_path):
    for folder in ("net1", "net[1]"):
        (tmp_path / folder).mkdir()
        for name in ("a.npz", "b.npz", "c.txt", ".d.npz"):
            (tmp_path / folder / name).write_text(folder)
    directory = epath.Path(tmp_path / "net[1]")
    found = files.matching(directory, "*.npz")
    assert [path.name for path in found] == ["a.npz", "b.npz"]
    assert all(path.read_text() == "net[1]" for path in found)
    assert [p.name for p in files.matching(directory, ".*.npz")] == [".d.npz"]
    assert files.matching(directory / "absent", "*") == []


@pytest.mark.parametrize(
    ("pattern", "root", "found"),
    [
        ("net[1]/*.npz", "net[1]", ["net[1]/a.npz"]),
        ("net[1]/a.npz", "net[1]/a.npz", ["net[1]/a.npz"]),
        ("net?/a.npz", ".", ["net1/a.npz"]),
        ("net[0-9]*/*", ".", ["net1/a.npz"]),
        ("**/*.npz", ".", ["net1/a.npz", "net[1]/a.npz", "net[1]/in/b.npz"]),
        ("net[1]/**/b.npz", "net[1]", ["net[1]/in/b.npz"]),
        ("absent/*", "absent", []),
    ],
)
@pytest.mark.parametrize("place", ["local", "bucket"])
def test_expand_takes_existing_parts_literally(
    tmp_path, pattern, root, found, place, request
):
    top = request.getfixturevalue("bucket") if place == "bucket" else tmp_path / "[x]"
    for name in ("net1/a.npz", "net[1]/a.npz", "net[1]/in/b.npz"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(name)
    base = epath.Path("gs://bucket" if place == "bucket" else top)
    directory, paths = files.expand(base / pattern)
    assert directory == base / root
    assert paths == [base / name for name in found]


def test_size_and_time_needs_no_name_of_the_owner(tmp_path, monkeypatch):
    def unknown(number):
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr("pwd.getpwuid", unknown)
    path = epath.Path(tmp_path) / "file"
    path.write_text("four")
    size, changed = files.size_and_time(path)
    assert size == 4 and abs(changed - time.time()) < 60
    with pytest.raises(FileNotFoundError):
        files.size_and_time(path.with_name("absent"))


@pytest.mark.parametrize("text", ["file:///data", "hdfs://host/data", "s3://bucket/a"])
def test_to_path_raises_for_other_schemes(text):
    with pytest.raises(InputError, match=f"scheme {text.partition(':')[0]}://") as e:
        files.to_path(text)
    assert "gs://BUCKET" in str(e.value) and "https://" in str(e.value)
