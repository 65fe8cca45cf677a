"""PyTorch modules in memory are ranked beside files, and cached by their weights."""

import pytest

from rankckpt_jax import checkpoints, rank
from rankckpt_jax.checkpoints import in_memory
from rankckpt_jax.errors import InputError

torch = pytest.importorskip("torch", reason="needs the extra torch")
pytest.importorskip("torchax", reason="needs the extra torch")
networks = pytest.importorskip("tests.checkpoints.torch_modules.networks")

pytestmark = pytest.mark.torch


def convert(module, engine="jax"):
    return checkpoints.from_torch(
        module,
        image_size=32,
        mean=networks.MEAN,
        std=networks.STD,
        name="net",
        engine=engine,
    )


def test_read_refuses_a_bare_module_with_the_call_to_write():
    module, *_ = networks.make("resnet")
    with pytest.raises(InputError, match=r"write checkpoints\.from_torch\(module, im"):
        in_memory.read(module, "checkpoints[0]")


@pytest.mark.parametrize("engine", ["jax", "torch"])
def test_rank_caches_the_features_of_a_module(
    image_folder, pool, tmp_path, caplog, engine
):
    module, *_ = networks.make("resnet")

    def run():
        caplog.clear()
        with caplog.at_level("INFO"):
            ranking = rank(
                image_folder,
                [pool / "first", convert(module, engine)],
                measures="h_score",
                image_size=32,
                workdir=tmp_path,
            )
        assert not ranking.failed
        return {row.checkpoint: row for row in ranking.rows}

    first = run()
    assert first["net"].engine == engine and first["first"].engine == ""
    assert run()["net"].scores == first["net"].scores
    assert "computed" not in caplog.text
    with torch.no_grad():
        module.layer1[0].conv1.weight *= 1.5
    changed = run()
    assert caplog.text.count("computed features") == 1
    assert changed["net"].scores != first["net"].scores
