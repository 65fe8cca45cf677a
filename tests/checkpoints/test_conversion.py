import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from rankckpt_jax import checkpoints
from tests.checkpoints import modules


@pytest.fixture
def native(mobilenet):
    return mobilenet


@pytest.fixture
def graph(small):
    return small.directory


def _assert_equal(first, second):
    assert first.apply == second.apply
    for name in (
        "architecture",
        "image_size",
        "input_range",
        "input_mean",
        "fingerprint",
    ):
        assert getattr(first, name) == getattr(second, name)
    jax.tree.map(np.testing.assert_array_equal, first.variables, second.variables)


@pytest.mark.parametrize("which", ["native", "graph"])
def test_load_hub_converts_a_module_once(which, request, tmp_path, monkeypatch):
    module = request.getfixturevalue(which)
    first = checkpoints.load_hub(module, name="a", cache=tmp_path)
    (manifest,) = tmp_path.glob("*/manifest.json")
    provenance = json.loads(manifest.read_text())["result"]["provenance"]
    assert provenance["handle"] == str(module)
    assert {"tensorflow", "tf2jax", "jax", "rankckpt_jax"} <= set(
        provenance["versions"]
    )
    monkeypatch.setattr(
        "rankckpt_jax.checkpoints.sources.hub.load",
        lambda *_, **__: pytest.fail("again"),
    )
    second = checkpoints.load_hub(module, name="b", cache=tmp_path)
    _assert_equal(first, second)
    assert (first.name, second.name) == ("a", "b")


def test_load_hub_converts_a_damaged_conversion_again(graph, tmp_path, caplog):
    first = checkpoints.load_hub(graph, cache=tmp_path)
    (definition,) = tmp_path.glob("*/evaluation.pb")
    definition.write_bytes(definition.read_bytes()[:-1])
    _assert_equal(first, checkpoints.load_hub(graph, cache=tmp_path))
    assert f"{definition}: checksum does not match" in caplog.text


def test_load_hub_converts_a_changed_module_again(tmp_path):
    module = tmp_path / "module"
    signatures = {"default": {"default": "pooled"}}
    modules.export_tf1(module, modules.small, 24, signatures=signatures)
    first = checkpoints.load_hub(module, cache=tmp_path / "cache")
    (module / "extra.txt").write_text("changed")
    second = checkpoints.load_hub(module, cache=tmp_path / "cache")
    assert first.fingerprint != second.fingerprint
    assert first.apply == second.apply


def test_load_of_a_converted_network_does_not_import_tensorflow(native, tmp_path):
    checkpoints.load_hub(native, cache=tmp_path)
    program = f"""
import sys
import numpy as np
from rankckpt_jax import checkpoints
backbone = checkpoints.load({str(native)!r}, cache={str(tmp_path)!r})
out = backbone.apply(backbone.variables, np.zeros((1, 32, 32, 3), np.float32))
assert out.features.shape == (1, 256)
assert "tensorflow" not in sys.modules and "tf2jax" not in sys.modules
"""
    root = pathlib.Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", program], check=True, cwd=root, timeout=120)
