import argparse
import os
import pickle
import types

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

from rankckpt_jax.checkpoints.sources import state_dict  # noqa: E402
from rankckpt_jax.errors import InputError  # noqa: E402

pytestmark = pytest.mark.torch

WEIGHTS = {"conv.weight": torch.ones(2, 3), "conv.bias": torch.zeros(2)}
AVERAGES = {name: 2 * value for name, value in WEIGHTS.items()}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    "contents",
    [
        WEIGHTS,
        {"state_dict": WEIGHTS, "epoch": 3},
        {"model": WEIGHTS, "optimizer": {"lr": 0.1}, "args": argparse.Namespace(a=1)},
        {"model_state_dict": WEIGHTS},
        {"state_dict": {"model": WEIGHTS}},
        {"state_dict": WEIGHTS, "state_dict_ema": AVERAGES},
        {"model_ema": WEIGHTS},
    ],
)
@pytest.mark.parametrize("is_archive", [True, False])
def test_read_removes_wrappers(tmp_path, contents, is_archive):
    path = tmp_path / "net.pth"
    torch.save(contents, path, _use_new_zipfile_serialization=is_archive)
    assert_equal(state_dict.read(path), WEIGHTS)


def test_read_takes_moving_averages_on_request(tmp_path):
    path = tmp_path / "net.pth"
    torch.save({"model": WEIGHTS, "model_ema": AVERAGES}, path)
    assert_equal(state_dict.read(path, use_moving_averages=True), AVERAGES)


def test_read_reads_safetensors_in_bfloat16(tmp_path):
    weights = {name: value.bfloat16() for name, value in WEIGHTS.items()}
    safetensors_torch.save_file(weights, tmp_path / "net.safetensors")
    assert_equal(state_dict.read(tmp_path / "net.safetensors"), weights)


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("kind", ["torch.save", "pickle"])
def test_read_refuses_code_without_running_it(tmp_path, kind):
    path, mark = tmp_path / "net.pth", tmp_path / "mark"
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"a": Hostile(mark)}))
    else:
        torch.save({"state_dict": WEIGHTS, "a": Hostile(mark)}, path)
    with pytest.raises(InputError, match="could run code") as raised:
        state_dict.read(path)
    assert not mark.exists()
    # PyTorch's own message explains how to run the code.
    assert "weights_only" not in str(raised.value)
    assert raised.value.__cause__ is None


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (np.float64(0.5), "numpy._core.multiarray.scalar"),
        (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
    ],
)
def test_read_names_objects_that_are_not_weights(tmp_path, value, found):
    torch.save({"state_dict": WEIGHTS, "value": value}, tmp_path / "net.ckpt")
    with pytest.raises(InputError, match=f"found: {found}") as raised:
        state_dict.read(tmp_path / "net.ckpt")
    assert "torch.save(model.state_dict(), FILE)" in str(raised.value)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_read_refuses_torch_script(tmp_path):
    module = torch.jit.script(torch.nn.Linear(2, 2))
    torch.jit.save(module, tmp_path / "net.pt")
    with pytest.raises(InputError, match="TorchScript") as raised:
        state_dict.read(tmp_path / "net.pt")
    assert "torch.jit.load(FILE).state_dict()" in str(raised.value)


@pytest.mark.parametrize("name", ["net.pth", "net.safetensors"])
@pytest.mark.parametrize("share", [0, 0.5, 0.95])
def test_read_refuses_a_cut_file(tmp_path, name, share):
    path = tmp_path / name
    save = safetensors_torch.save_file if "safe" in name else torch.save
    save(WEIGHTS, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(InputError, match="damaged or incomplete"):
        state_dict.read(path)


def test_read_refuses_text(tmp_path):
    (tmp_path / "net.pth").write_text("hello")
    with pytest.raises(InputError, match=r"not a file of torch\.save"):
        state_dict.read(tmp_path / "net.pth")


@pytest.mark.parametrize(
    ("contents", "found"),
    [
        ({"epoch": 3, "optimizer": {"lr": 0.1}}, "the keys epoch, optimizer"),
        ({}, "nothing"),
        ([1, 2], "a value of the type list"),
    ],
)
def test_read_describes_a_file_without_weights(tmp_path, contents, found):
    torch.save(contents, tmp_path / "net.pth")
    with pytest.raises(InputError, match=f"found: {found}"):
        state_dict.read(tmp_path / "net.pth")


NAMES = {"stem.weight", "block.weight", "block.bias", "head.weight"}


@pytest.mark.parametrize(
    "prefix", ["", "module.", "model.", "_orig_mod.", "module._orig_mod.net."]
)
def test_select_removes_the_prefix(prefix):
    weights = dict.fromkeys((prefix + name for name in NAMES), 1)
    others = {"loss.scale": 1} if prefix else {}
    assert state_dict.select(weights | others, NAMES, "f") == dict.fromkeys(NAMES, 1)


def test_select_keeps_the_names_of_another_network():
    weights = {"a.b": 1, "c": 2}
    assert state_dict.select(weights, NAMES, "f") == weights


def test_select_raises_for_two_networks_in_a_file():
    weights = {f"{part}.{name}": 1 for part in ("student", "teacher") for name in NAMES}
    with pytest.raises(InputError, match=r"student\., teacher\."):
        state_dict.select(weights, NAMES, "f")


def test_mismatch_lists_names_and_shapes():
    def tensor(*shape):
        return types.SimpleNamespace(shape=shape)

    weights = {"a": tensor(2), "x": tensor(1)}
    error = state_dict.mismatch(weights, {"a": tensor(3), "b": tensor(1)}, "f", "net")
    assert (
        "1 missing (b); 1 unexpected (x); 1 other shapes (a (2,) instead of (3,))"
        in (str(error))
    )
