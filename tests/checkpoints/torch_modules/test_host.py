import importlib.metadata
import pathlib
import sys
import tomllib
import types

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra torch")

from rankckpt_jax import InputError, checkpoints, rank  # noqa: E402
from rankckpt_jax.checkpoints.torch_modules import environment  # noqa: E402
from rankckpt_jax.features import extract  # noqa: E402
from rankckpt_jax.run import pool  # noqa: E402
from tests.checkpoints.torch_modules import networks  # noqa: E402

pytestmark = pytest.mark.torch


class Colors(torch.nn.Module):
    """A small network whose features are the means of three filters."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 6, 3)
        self.head = torch.nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.conv(x).relu().mean((2, 3)))


def from_torch(name="colors", engine="torch", seed=0):
    torch.manual_seed(seed)
    return checkpoints.from_torch(
        Colors().eval(),
        image_size=24,
        mean=networks.MEAN,
        std=networks.STD,
        name=name,
        engine=engine,
    )


def test_rank_by_both_engines(image_folder, tmp_path):
    pytest.importorskip("torchax", reason="needs the extra torch")
    models = [from_torch("host", "torch"), from_torch("device", "jax")]
    ranking = rank(
        image_folder, models, measures="h_score,leep", workdir=tmp_path / "runs"
    )
    rows = {row.checkpoint: row for row in ranking.rows}
    assert [rows[name].engine for name in ("host", "device")] == ["torch", "jax"]
    host, device = rows["host"], rows["device"]
    # The scores are continuous in the features, which agree to 1e-4.
    assert host.score("h_score") == pytest.approx(device.score("h_score"), rel=1e-2)
    assert host.score("leep") == pytest.approx(device.score("leep"), abs=1e-3)
    ranking.to_csv(tmp_path / "ranking.csv")
    assert ",torch," in (tmp_path / "ranking.csv").read_text()
    report = tmp_path / "report.html"
    ranking.to_html(report)
    assert "Features by" in report.read_text() and "PyTorch" in report.read_text()


def test_fine_tuning_learns(image_folder, tmp_path):
    pytest.importorskip("torchax", reason="needs the extra torch")
    fields = {
        "finetune.num_steps": 30,
        "finetune.learning_rate": 0.1,
        "finetune.batch_size": 8,
    }
    ranking = rank(
        image_folder,
        from_torch(engine="jax"),
        measures="h_score",
        finetune=True,
        workdir=tmp_path / "runs",
        fields=fields,
    )
    # Three classes of different colors.
    assert ranking.best.accuracy > 0.9
    assert ranking.best.engine == "jax"


def test_auto_takes_the_features_of_either_engine():
    pytest.importorskip("torchax", reason="needs the extra torch")
    split = types.SimpleNamespace(
        name="train",
        fingerprint="",
        num_examples=1,
        orientation="",
        target="classes",
    )

    def key(engine, setting):
        return extract.make_key(from_torch(engine=engine), split, "vtab", "x", setting)

    assert key("jax", "auto") == key("torch", "auto")
    assert len({key("jax", s)["torch_engine"] for s in ("auto", "jax", "torch")}) == 3


def test_resolve_engine_takes_jax_for_fine_tuning_and_accelerators(monkeypatch):
    assert pool.resolve_engine("auto", ("extract",)) == "torch"
    assert pool.resolve_engine("auto", ("extract", "finetune")) == "jax"
    assert pool.resolve_engine("jax", ("extract",)) == "jax"
    monkeypatch.setattr(pool.target, "platform", lambda: "tpu")
    assert pool.resolve_engine("auto", ("extract",)) == "jax"
    assert pool.resolve_engine("torch", ("extract",)) == "torch"


def test_fine_tuning_by_pytorch_is_refused(image_folder, tmp_path):
    fields = {"torch_engine": "torch"}
    with pytest.raises(InputError, match="extracts features only"):
        rank(
            image_folder,
            from_torch(),
            finetune=True,
            workdir=tmp_path / "runs",
            fields=fields,
        )
    ranking = rank(
        image_folder,
        from_torch(),
        measures="h_score",
        finetune=True,
        workdir=tmp_path / "runs",
    )
    assert "only extracts features" in ranking.rows[0].failure
    backbone = from_torch()
    images = np.zeros((1, 24, 24, 3), np.float32)
    with pytest.raises(InputError, match="cannot be fine-tuned"):
        backbone.apply(backbone.variables, images, train=True)


def test_torch_engine_needs_no_torchax(monkeypatch):
    # Then importing it raises ModuleNotFoundError.
    monkeypatch.setitem(sys.modules, "torchax", None)
    from_torch()
    with pytest.raises(InputError) as caught:
        environment.require_torchax()
    message = str(caught.value)
    versions = [
        f"{name} {importlib.metadata.version(name)}" for name in ("torch", "torchax")
    ]
    assert " and ".join(versions) in message
    assert 'pip install "torch>=2.13,<2.15" "torchax>=0.0.14.dev20260912"' in message
    assert "config.torch_engine=torch" in message
    requirements = tomllib.loads(
        pathlib.Path("pyproject.toml").read_text(encoding="utf-8")
    )["project"]["optional-dependencies"]["torch"]
    assert set(environment.REQUIREMENTS) <= set(requirements)
