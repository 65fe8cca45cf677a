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


def test_get_lists_what_a_directory_holds(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=r"a directory with notes\.txt"):
        checkpoints.load(tmp_path)
