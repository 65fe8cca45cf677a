import json
import logging
import os
import pathlib
import tempfile

import numpy as np
import pytest
from etils import epath

from rankckpt_jax.errors import StorageError
from rankckpt_jax.storage import store

KEY = {"size": 64, "range": (0, 1)}
ARRAYS = {"a": np.arange(6.0).reshape(2, 3), "b": np.arange(4)}
VARIABLES = {
    "params": {
        "conv/1": {"kernel": np.arange(6, dtype=np.float32).reshape(1, 2, 3)},
        "scale": np.asarray(1.5, "bfloat16"),
    },
    "batch_stats": {"count": np.asarray([7], np.int32)},
}


@pytest.fixture
def directory(tmp_path):
    return epath.Path(tmp_path) / "entry"


def damage(path, kind):
    data = bytearray(path.read_bytes())
    if kind == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(bytes(data))
    elif kind == "truncate":
        path.write_bytes(bytes(data[:-3]))
    else:
        path.unlink()


def test_load_returns_what_save_stored(directory):
    assert store.load(directory, KEY) is None and store.read(directory) is None
    store.save(directory, KEY, {"seconds": 1.5}, ARRAYS)
    entry = store.load(directory, {"range": [0, 1], "size": 64})
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(entry.arrays[name], array)
    assert entry.result == {"seconds": 1.5}
    assert store.read(directory)[0] == {"range": [0, 1], "size": 64}


def test_load_logs_the_field_that_differs(directory, caplog):
    store.save(directory, KEY, {}, ARRAYS)
    with caplog.at_level(logging.INFO):
        assert store.load(directory, {**KEY, "size": 128}) is None
    assert "does not match (size 64 -> 128); recomputing" in caplog.text


@pytest.mark.parametrize("name", ["a.npy", "b.npy", store.MANIFEST])
@pytest.mark.parametrize("kind", ["flip", "truncate", "remove"])
def test_load_rejects_damaged_files(directory, name, kind, caplog):
    store.save(directory, KEY, {}, ARRAYS)
    damage(directory / name, kind)
    with caplog.at_level(logging.INFO):
        assert store.load(directory, KEY) is None
    assert str(directory) in caplog.text and "recomputing" in caplog.text


def test_checksum_depends_on_the_arrays_alone(directory):
    first = store.save(directory, KEY, {}, ARRAYS).checksum
    assert store.load(directory, KEY).checksum == first
    assert store.save(directory, {"size": 1}, {}, ARRAYS).checksum == first
    changed = store.save(directory, KEY, {}, {**ARRAYS, "b": np.arange(1, 5)})
    assert changed.checksum != first


def test_load_result_returns_what_save_result_stored(tmp_path):
    path = epath.Path(tmp_path) / "deep" / "score.json"
    assert store.load_result(path, {"seed": 0}) is None
    store.save_result(path, {"seed": 0}, {"score": -0.1})
    assert store.load_result(path, {"seed": 0}).result == {"score": -0.1}
    assert store.load_result(path, {"seed": 1}) is None
    # The fields of files that earlier versions wrote.
    assert set(json.loads(path.read_text())) == {"request", "result", "checksum"}


def test_load_variables_returns_what_save_variables_stored(directory):
    assert store.load_variables(directory, KEY) is None
    for result in ({"old": 1}, {"new": 2}):
        store.save_variables(directory, KEY, result, VARIABLES, {"a.pb": b"graph"})
    variables, result = store.load_variables(directory, KEY)
    assert result == {"new": 2} and (directory / "a.pb").read_bytes() == b"graph"
    assert variables.keys() == VARIABLES.keys()
    assert variables["params"].keys() == VARIABLES["params"].keys()
    for one, other in (
        (variables["params"]["conv/1"]["kernel"], ARRAYS["a"].reshape(1, 2, 3)),
        (variables["params"]["scale"], VARIABLES["params"]["scale"]),
        (variables["batch_stats"]["count"], VARIABLES["batch_stats"]["count"]),
    ):
        np.testing.assert_array_equal(one, other)
    assert variables["params"]["scale"].dtype == VARIABLES["params"]["scale"].dtype
    assert store.load_variables(directory, {**KEY, "size": 1}) is None


def test_load_variables_rejects_any_damaged_file(directory, caplog):
    store.save_variables(directory, KEY, {}, VARIABLES, {"a.pb": b"graph"})
    paths = [path for path in pathlib.Path(directory).rglob("*") if path.is_file()]
    assert len(paths) > 5
    for path in paths:
        data = path.read_bytes()
        if data:
            damage(path, "flip")
            assert store.load_variables(directory, KEY) is None
            assert path.name in caplog.text
            path.write_bytes(data)
            caplog.clear()
    assert store.load_variables(directory, KEY) is not None


def test_remove_stale_removes_old_probes_only(tmp_path, monkeypatch):
    for name in (".probe-1", "result"):
        (tmp_path / name).write_text("")
    store.remove_stale(epath.Path(tmp_path))
    assert (tmp_path / ".probe-1").exists()
    monkeypatch.setattr(store, "_STALE_AFTER", -1.0)
    store.remove_stale(epath.Path(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def test_load_variables_takes_the_directory_literally(tmp_path):
    directory = epath.Path(tmp_path) / "runs[x], *" / "entry"
    store.save_variables(directory, KEY, {"seconds": 1}, VARIABLES)
    variables, result = store.load_variables(directory, KEY)
    np.testing.assert_array_equal(variables["batch_stats"]["count"], [7])
    assert result == {"seconds": 1}


def test_load_recomputes_what_another_user_made_unreadable(caplog):
    if os.geteuid():
        pytest.skip("needs root, to act as two users")
    with tempfile.TemporaryDirectory() as name:
        place = epath.Path(name)
        store.save(place / "arrays", KEY, {}, ARRAYS)
        store.save(place / "manifest", KEY, {}, ARRAYS)
        store.save_result(place / "score.json", KEY, {"score": 1})
        for path in ("", "arrays", "manifest"):
            os.chmod(place / path, 0o755)
        for path in ("arrays/a.npy", "manifest/manifest.json", "score.json"):
            os.chmod(place / path, 0o600)
        os.seteuid(12345)
        try:
            assert store.load(place / "arrays", KEY) is None
            assert store.load(place / "manifest", KEY) is None
            assert store.load_result(place / "score.json", KEY) is None
            with pytest.raises(StorageError, match="Permission denied"):
                store.save(place / "arrays", KEY, {}, ARRAYS)
        finally:
            os.seteuid(0)
    assert caplog.text.count("Permission denied: ") == 3
