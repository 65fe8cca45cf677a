import contextlib
import gc
import logging
import shutil

import jax
import numpy as np
import pytest
from etils import epath

from rankckpt_jax.errors import StorageError
from rankckpt_jax.finetune import saves, step

REQUEST = {"images": "abc"}


def state(value):
    params = {"kernel": np.full((40, 30), value, np.float32)}
    return step.State(
        params, {"mean": np.float32(value)}, ({"trace": np.ones(5, np.float32)},)
    )


@pytest.fixture
def place(tmp_path):
    """Saves after steps 2 and 4."""
    directory = epath.Path(tmp_path) / "state"
    with contextlib.closing(saves.Saves(directory, REQUEST)) as kept:
        for number in (2, 4):
            kept.save(
                number, jax.tree.map(jax.numpy.asarray, state(number)), {"a": 0.1}
            )
    return directory


def restored(directory):
    with contextlib.closing(saves.Saves(directory, REQUEST)) as kept:
        found, number, facts = kept.restore(state(0))
    expected = jax.tree.leaves(state(number))
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(found), expected)
    assert facts == ({"a": 0.1} if number else {})
    return number


def test_the_last_save_is_restored(place):
    assert restored(place) == 4


# Where Orbax fails to read, coroutines of its own are never awaited.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_no_bit_of_a_save_can_be_flipped_unnoticed(place, tmp_path, caplog):
    """Of Orbax's files some bytes say nothing; then what is read is what was saved."""
    whole = tmp_path / "whole"
    shutil.copytree(place, whole)
    random = np.random.default_rng(0)
    refused = set()
    for path in sorted(path for path in (whole / "4").rglob("*") if path.is_file()):
        place.rmtree()
        shutil.copytree(whole, place)
        damaged = bytearray(path.read_bytes())
        if not damaged:
            continue
        damaged[random.integers(len(damaged))] ^= 1 << random.integers(8)
        (place / path.relative_to(whole)).write_bytes(damaged)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            number = restored(place)
        if number != 4:
            assert number == 2 and str(place / "4") in caplog.text
            refused.add(path.name)
    assert "manifest.ocdbt" in refused and len(refused) > 2
    # They are told of here, not in whichever test comes next.
    gc.collect()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_where_no_save_is_whole_training_starts_anew(place):
    for path in (p for p in place.glob("*/*/*") if not p.is_dir()):
        path.write_bytes(path.read_bytes()[:10])
    assert restored(place) == 0
    gc.collect()


def test_saves_of_another_request_are_thrown_away(place):
    with contextlib.closing(saves.Saves(place, {"images": "other"})) as kept:
        assert kept.restore(state(0))[1] == 0
    saves.remove(place)
    assert not list(place.parent.glob("*"))


def test_a_save_that_cannot_be_written_is_one_error(place, monkeypatch):
    def full(*args, **kwargs):
        raise ValueError("RESOURCE_EXHAUSTED: No space left on device\nmore")

    with contextlib.closing(saves.Saves(place, REQUEST)) as kept:
        monkeypatch.setattr(kept._manager, "save", full)
        with pytest.raises(StorageError, match="No space left") as error:
            kept.save(6, state(6), {})
    assert str(place) in str(error.value)
