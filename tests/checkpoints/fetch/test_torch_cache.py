import hashlib

import pytest

pytest.importorskip("torch", reason="needs the extra torch")

from rankckpt_jax.checkpoints.fetch import torch_cache  # noqa: E402
from tests.checkpoints.fetch import test_download  # noqa: E402

pytestmark = pytest.mark.torch

server = test_download.server


def test_get_downloads_into_the_cache_of_torch_hub(server, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    content = b"weights"
    name = f"net-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    server.files[name] = content
    url = server.url(name)
    expected = tmp_path / "hub" / "checkpoints" / name
    assert torch_cache.get(url, "torchvision:net") == expected
    assert expected.read_bytes() == content
    del server.files[name]
    assert torch_cache.get(url, "torchvision:net") == expected
