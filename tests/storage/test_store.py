import logging
import pathlib

import numpy as np
import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st

from rankckpt_jax.storage import files, store


@pytest.fixture
def place(tmp_path):
    directory = epath.Path(tmp_path) / "entry"
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.arange(4)}
    store.save(directory, {"size": 64, "range": (0, 1)}, {"seconds": 1.5}, arrays)
    return directory


def test_what_was_saved_is_loaded(place):
    entry = store.load(place, {"range": [0, 1], "size": 64})
    np.testing.assert_array_equal(entry.arrays["a"], np.arange(6.0).reshape(2, 3))
    np.testing.assert_array_equal(entry.arrays["b"], np.arange(4))
    assert entry.result == {"seconds": 1.5}


def test_another_request_is_told_by_the_field_that_differs(place, caplog):
    with caplog.at_level(logging.INFO):
        assert store.load(place, {"range": [0, 1], "size": 128}) is None
    assert "size was 64, is 128" in caplog.text


@pytest.mark.parametrize("name", ["a.npy", "b.npy", store.MANIFEST])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_file_is_never_loaded(place, name, damage):
    path = place / name
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(bytes(data))
    elif damage == "truncate":
        path.write_bytes(bytes(data[:-3]))
    else:
        path.unlink()
    assert store.load(place, {"range": [0, 1], "size": 64}) is None


def test_a_killed_write_leaves_the_old_file_and_the_next_one_cleans_up(tmp_path):
    path = epath.Path(tmp_path) / "file"
    files.write_text_atomically(path, "old")
    (path.parent / ".file.partial").write_text("half of the n")
    assert path.read_text() == "old"
    files.write_text_atomically(path, "new")
    assert [p.name for p in path.parent.iterdir()] == ["file"]
    assert path.read_text() == "new"


def test_arrays_without_a_manifest_are_not_a_result(place):
    (place / store.MANIFEST).unlink()
    assert store.load(place, {"range": [0, 1], "size": 64}) is None
    assert store.read(place) is None


def test_the_checksum_names_the_arrays_and_not_the_request(place, tmp_path):
    other = epath.Path(tmp_path) / "other"
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.arange(4)}
    expected = store.load(place, {"range": [0, 1], "size": 64}).checksum
    assert store.save(other, {"size": 1}, {}, arrays).checksum == expected
    assert store.load(other, {"size": 1}).checksum == expected
    changed = store.save(other, {"size": 1}, {}, {**arrays, "b": np.arange(1, 5)})
    assert changed.checksum != expected


def test_a_json_result_round_trips(tmp_path):
    path = epath.Path(tmp_path) / "deep" / "score.json"
    assert store.load_result(path, {"seed": 0}) is None
    store.save_result(path, {"seed": 0}, {"score": -0.1})
    assert store.load_result(path, {"seed": 0}).result == {"score": -0.1}
    assert store.load_result(path, {"seed": 1}) is None


@given(
    name=st.text()
    | st.text("./\\\0~a \n", max_size=9)
    | st.sampled_from(["..", ".", "", "/", "a" * 400, "\u00e9" * 200, "Report.HTML"])
)
@settings(max_examples=200, deadline=None)
def test_any_name_is_that_of_one_directory(name):
    found = files.directory_name(name)
    assert found not in ("", ".", "..") and len(found.encode()) <= 130
    assert not set(found) & set("/\\\0~:") and found.isprintable()
    assert not found.startswith((".", "-"))
    assert found.casefold() not in ("report.html", "ranking.csv", "converted")
    assert pathlib.PurePath("a", found).parent == pathlib.PurePath("a")
    assert files.directory_name(found) == found


def test_long_names_stay_apart():
    names = {files.directory_name("a" * 300 + end) for end in "bc"}
    assert len(names) == 2


def test_the_reason_of_a_failed_write_survives_all_that_a_library_adds():
    told = f'OUT_OF_RANGE: Error writing "{"a/" * 300}": File too large'
    settings_of_it = f" [tensorstore_spec='{{{'x' * 900}}}'] [os_error_code='27']"
    found = files.reason(ValueError(told + settings_of_it))
    assert found.startswith("OUT_OF_RANGE: Error writing")
    assert found.endswith(": File too large")
    assert len(found) < 420
    assert files.reason(ValueError("")) == "ValueError('')"


def test_digest_separates_its_parts():
    assert files.digest("ab", "c") != files.digest("a", "bc")
