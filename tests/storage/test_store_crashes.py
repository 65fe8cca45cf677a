"""The store under crashes at any write, rename or removal: intact results or none."""

import contextlib
import tempfile

import numpy as np
import pytest
from etils import epath
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rankckpt_jax.storage import store

_PATH = type(epath.Path("/anywhere"))


class Crash(BaseException):
    """A crash of the machine; not an `Exception`, so that no handler catches it."""


@contextlib.contextmanager
def crashing(at, share):
    """Crash at change number `at` to the disk, after `share` of that change.

    A write may be partial; a rename or removal is done or not.
    """
    changes = 0
    originals = {
        name: getattr(_PATH, name) for name in ("write_bytes", "replace", "unlink")
    }

    def changed(name):
        def change(path, *arguments, **options):
            nonlocal changes
            changes += 1
            if changes - 1 != at:
                return originals[name](path, *arguments, **options)
            if name == "write_bytes":
                (data,) = arguments
                originals[name](path, data[: int(share * len(data))])
            elif share >= 0.5:
                originals[name](path, *arguments, **options)
            raise Crash

        return change

    with pytest.MonkeyPatch.context() as patch:
        for name in originals:
            patch.setattr(_PATH, name, changed(name))
        try:
            yield
        except Crash:
            return


# Different numbers of arrays and rows, so that mixtures are detected.
CONTENTS = [
    {"a": np.arange(4.0), "b": np.arange(6).reshape(2, 3)},
    {"a": np.arange(4.0) + 1},
    {"b": np.ones((2, 3)), "c": np.zeros(5, np.int32), "d": np.arange(2.0)},
]
KEYS = [{"size": 64}, {"size": 128}]
_steps = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.integers(0, 2),
        st.none() | st.integers(0, 9),
        st.floats(0, 1),
    ),
    min_size=1,
    max_size=6,
)


def _content(entry):
    """Return the number of the entry in CONTENTS; fail if it is a mixture."""
    number = entry.result["content"]
    assert entry.arrays.keys() == CONTENTS[number].keys()
    for name, array in CONTENTS[number].items():
        np.testing.assert_array_equal(entry.arrays[name], array)
    return number


def _check_arrays(steps):
    with tempfile.TemporaryDirectory() as folder:
        place = epath.Path(folder) / "entry"
        # Contents that may be loaded for each key: of the last save, or a crashed one.
        possible = [set(), set()]
        for request, content, at, share in steps:
            finished = False
            with crashing(at, share):
                store.save(
                    place, KEYS[request], {"content": content}, CONTENTS[content]
                )
                finished = True
            if finished:
                possible = [set(), set()]
            possible[request].add(content)
            for number, wanted in enumerate(KEYS):
                entry = store.load(place, wanted)
                if entry is not None:
                    assert _content(entry) in possible[number]
                assert entry is not None or not (finished and number == request)
            if finished:
                names = {f"{name}.npy" for name in CONTENTS[content]}
                assert {p.name for p in place.iterdir()} == {*names, store.MANIFEST}


def _check_result(steps):
    with tempfile.TemporaryDirectory() as folder:
        path = epath.Path(folder) / "scores" / "score.json"
        written = [None]
        for request, content, at, share in steps:
            finished = False
            with crashing(at, share):
                store.save_result(path, KEYS[request], {"content": content})
                finished = True
            written = (
                [(request, content)] if finished else [*written, (request, content)]
            )
            found = [
                (number, entry.result["content"])
                for number, wanted in enumerate(KEYS)
                if (entry := store.load_result(path, wanted)) is not None
            ]
            # One file: either the old result or the new one, and never neither.
            assert (found or [None])[0] in written and len(found) <= 1
        leftovers = [p.name for p in path.parent.glob(".*")] if path.exists() else []
        assert not finished or leftovers == []


@settings(max_examples=60, deadline=None)
@given(steps=_steps)
@example(steps=[(0, 0, None, 0.0), (0, 2, 4, 0.5), (0, 1, None, 0.0)])
def test_load_returns_intact_arrays_or_none(steps):
    _check_arrays(steps)


@settings(max_examples=60, deadline=None)
@given(steps=_steps)
def test_load_result_returns_the_old_or_the_new(steps):
    _check_result(steps)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_load_after_a_crash_at_every_change(share):
    for at in range(10):
        for old in range(3):
            for new in range(3):
                _check_arrays([(0, old, None, 0), (0, new, at, share)])
                _check_arrays([(0, old, None, 0), (1, new, at, share)])


@pytest.mark.slow
@settings(max_examples=5000, deadline=None)
@given(steps=_steps)
def test_load_after_many_histories(steps):
    _check_arrays(steps)
    _check_result(steps)
