"""Networks of PyTorch in the places where their files are looked for."""

import json
import pathlib

import pytest


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of huggingface_hub, without network."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


@pytest.fixture
def torch_home(tmp_path, monkeypatch):
    """An empty cache of torch.hub."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def put(hub: pathlib.Path, repository: str) -> pathlib.Path:
    """Make a repository in the cache, as by hand, and return its folder."""
    place = hub / f"models--{repository.replace('/', '--')}"
    snapshot = place / "snapshots" / "main"
    (place / "refs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (place / "refs" / "main").write_text("main")
    return snapshot


def save_folder(folder: pathlib.Path, module, **config) -> pathlib.Path:
    """Write config.json and model.safetensors, as on the hub."""
    import safetensors.torch

    folder.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(module.state_dict(), folder / "model.safetensors")
    described = {
        "architecture": module.pretrained_cfg["architecture"],
        "num_classes": module.num_classes,
        "pretrained_cfg": module.pretrained_cfg,
    }
    (folder / "config.json").write_text(json.dumps(described | config))
    return folder
