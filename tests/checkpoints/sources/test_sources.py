import flax.traverse_util
import numpy as np
import pytest

from rankckpt_jax import checkpoints
from rankckpt_jax.checkpoints import sources
from rankckpt_jax.errors import InputError

SOURCE = '''
"""Weights of MobileNet v1 0.25 in NumPy's format."""

import flax.traverse_util
import numpy as np

from rankckpt_jax.checkpoints import backbone


def matches(path):
    return path.suffix == ".npz"


def load(path, options):
    with np.load(path, allow_pickle=False) as arrays:
        variables = flax.traverse_util.unflatten_dict(dict(arrays), sep="/")
    return backbone.create(
        "mobilenet_v1_025", variables, name="", fingerprint="0", source=str(path),
        image_size=options.image_size,
    )
'''


def test_load_uses_a_source_added_as_one_file(pool, tmp_path, monkeypatch):
    slim = checkpoints.load(pool / "second", image_size=32)
    (tmp_path / "numpy_weights.py").write_text(SOURCE)
    arrays = flax.traverse_util.flatten_dict(slim.variables, sep="/")
    np.savez(tmp_path / "net.npz", **arrays)
    with pytest.raises(InputError, match="No checkpoint of a known kind"):
        checkpoints.load(tmp_path / "net.npz")

    monkeypatch.setattr(sources, "__path__", [*sources.__path__, str(tmp_path)])
    sources.all_sources.cache_clear()
    try:
        backbone = checkpoints.load(tmp_path / "net.npz", image_size=32)
        assert checkpoints.find(tmp_path) == [("net.npz", str(tmp_path / "net.npz"))]
    finally:
        sources.all_sources.cache_clear()

    assert (backbone.name, backbone.image_size) == ("net.npz", 32)
    images = np.ones((1, 32, 32, 3), np.float32)
    np.testing.assert_array_equal(
        backbone.apply(backbone.variables, images).features,
        slim.apply(slim.variables, images).features,
    )


NAMED = '''
"""Networks in memory by name."""

import fnmatch

from rankckpt_jax.benchmark import demo

SCHEME = "zoo"


def names(pattern=""):
    found = fnmatch.filter(["small.v1", "small.v2"], pattern or "*")
    return tuple(found or [f"{pattern}.v1"])


def identify(name):
    return f"digest of {name}"


def load_named(name, options):
    return demo.from_scratch("mobilenet_v1_025", options.image_size, seed=0)
'''


def test_a_scheme_is_added_as_one_file(tmp_path, monkeypatch):
    (tmp_path / "zoo.py").write_text(NAMED)
    monkeypatch.setattr(sources, "__path__", [*sources.__path__, str(tmp_path)])
    sources.schemes.cache_clear()
    try:
        assert checkpoints.find("zoo:*#image_size=32, zoo:tiny") == [
            ("small.v1", "zoo:small.v1#image_size=32"),
            ("small.v2", "zoo:small.v2#image_size=32"),
            ("tiny.v1", "zoo:tiny.v1"),
        ]
        assert checkpoints.identify("zoo:tiny") == "digest of tiny.v1"
        backbone = checkpoints.load("zoo:tiny#image_size=32")
        assert (backbone.name, backbone.source) == ("tiny.v1", "zoo:tiny")
        assert backbone.image_size == 32
        with pytest.raises(InputError, match="found: small.v1, small.v2"):
            checkpoints.load("zoo:*")
        with pytest.raises(InputError, match="nothing after the colon"):
            checkpoints.find("zoo:")
    finally:
        sources.schemes.cache_clear()


@pytest.mark.parametrize("act", [checkpoints.find, checkpoints.load])
def test_an_unknown_scheme_suggests_the_nearest(act):
    with pytest.raises(InputError, match="did you mean 'timm'?"):
        act("tim:resnet50")


def test_get_lists_what_a_directory_holds(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=r"a directory with notes\.txt"):
        checkpoints.load(tmp_path)
