import contextlib
import shutil

import jax
import numpy as np
import pytest
from etils import epath

from rankckpt_jax.errors import StorageError
from rankckpt_jax.finetune import saves, step
from rankckpt_jax.storage import store

KEY = {"images": "abc"}


def state(value):
    params = {"kernel": np.full((40, 30), value, np.float32)}
    return step.State(
        params, {"mean": np.float32(value)}, ({"trace": np.ones(5, np.float32)},)
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Saves after steps 1, 2 and 4."""
    directory = epath.Path(tmp_path_factory.mktemp("saves")) / "state"
    with contextlib.closing(saves.Saves(directory, KEY)) as writer:
        for number in (1, 2, 4):
            current = state(number)
            writer.save(number, current, {"a": 0.1})
            # As a training step does, which reuses the memory.
            current.params["kernel"][:] = -1
    return directory


@pytest.fixture
def directory(saved, tmp_path):
    return epath.Path(shutil.copytree(saved, tmp_path / "state"))


def restored_step(directory, key=KEY):
    with contextlib.closing(saves.Saves(directory, key)) as reader:
        restored, number, facts = reader.restore(state(0))
    expected = jax.tree.leaves(state(number))
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(restored), expected)
    assert facts == ({"a": 0.1} if number else {})
    return number


def test_restore_returns_the_latest_save(directory):
    assert sorted(path.name for path in directory.iterdir()) == ["2", "4"]
    assert restored_step(directory) == 4


def test_restore_skips_damaged_saves(directory, caplog):
    for number, expected in ((4, 2), (2, 0)):
        path = directory / str(number) / store.MANIFEST
        path.write_bytes(path.read_bytes()[:-1] + b"?")
        assert restored_step(directory) == expected
        assert f"{directory / str(number)}: save is not usable" in caplog.text
    assert not list(directory.iterdir())


def test_restore_removes_saves_with_another_key(directory):
    assert restored_step(directory, {"images": "other"}) == 0
    assert not list(directory.iterdir())
    saves.remove(directory)
    assert not directory.exists()


def test_save_raises_storage_error_when_disk_is_full(directory, monkeypatch):
    def full():
        raise ValueError("RESOURCE_EXHAUSTED: No space left on device\nmore")

    monkeypatch.setattr(store, "_checkpointer", full)
    writer = saves.Saves(directory, KEY)
    writer.save(6, state(6), {})
    with pytest.raises(StorageError, match="No space left") as error:
        writer.close()
    assert str(directory) in str(error.value)
    # The saves before it are still there.
    monkeypatch.undo()
    assert restored_step(directory) == 4


def test_restore_takes_the_directory_literally(saved, tmp_path):
    directory = epath.Path(tmp_path) / "runs[x]" / "state"
    with contextlib.closing(saves.Saves(directory, KEY)) as writer:
        writer.save(4, state(4), {"a": 0.1})
    assert restored_step(directory) == 4
