import dataclasses
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from rankckpt_jax import checkpoints
from rankckpt_jax.checkpoints.sources import hub
from tests.checkpoints import modules


def _assert_equal(first, second):
    jax.tree.map(np.testing.assert_array_equal, first.variables, second.variables)
    rest = [dataclasses.replace(b, name="", variables={}) for b in (first, second)]
    assert rest[0] == rest[1]


@pytest.mark.parametrize("is_native", [True, False])
def test_load_hub_converts_a_module_once(
    is_native, mobilenet, small, tmp_path, monkeypatch
):
    module = mobilenet if is_native else small.directory
    first = checkpoints.load_hub(module, name="a", cache=tmp_path)
    (manifest,) = tmp_path.glob("*/manifest.json")
    provenance = json.loads(manifest.read_text())["result"]["provenance"]
    assert provenance["handle"] == str(module)
    assert {"tensorflow", "tf2jax", "jax", "rankckpt_jax"} <= set(
        provenance["versions"]
    )
    monkeypatch.setattr(hub, "load", lambda *_: pytest.fail("again"))
    second = checkpoints.load_hub(module, name="b", cache=tmp_path)
    _assert_equal(first, second)
    assert (first.name, second.name) == ("a", "b")


def test_load_hub_keeps_conversions_with_different_options(small, tmp_path, caplog):
    caplog.set_level("INFO")
    for output in ("pre_logits", "", "pre_logits", ""):
        for input_range in ((0.0, 255.0), None):
            checkpoints.load_hub(
                small.directory,
                output=output,
                input_range=input_range,
                cache=tmp_path,
            )
    assert caplog.text.count("; converting ...") == 4


def test_load_hub_converts_a_damaged_conversion_again(small, tmp_path, caplog):
    graph = small.directory
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


def test_load_of_a_converted_network_does_not_import_tensorflow(mobilenet, tmp_path):
    checkpoints.load_hub(mobilenet, cache=tmp_path)
    program = f"""
import sys
import numpy as np
from rankckpt_jax import checkpoints
from rankckpt_jax.checkpoints.sources import hub
backbone = checkpoints.load({str(mobilenet)!r}, cache={str(tmp_path)!r})
out = backbone.apply(backbone.variables, np.zeros((1, 32, 32, 3), np.float32))
assert out.features.shape == (1, 256)
assert "tensorflow" not in sys.modules and "tf2jax" not in sys.modules
"""
    root = pathlib.Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", program], check=True, cwd=root, timeout=120)
