import numpy as np
import pytest

from rankckpt_jax import evaluation, measures
from rankckpt_jax.configs import features as features_config
from rankckpt_jax.run import ablation
from rankckpt_jax.run import run as run_lib

FEW = {"energy": (0.5, 0.8), "components_per_class": (1, 2)}


@pytest.fixture
def nets(tmp_path):
    """Features of three checkpoints with increasing separation of the classes.

    They have the shapes of `tests.measures.data`, to share compiled programs.
    """
    rng = np.random.default_rng(0)
    labels = np.arange(240) % 4
    means = rng.normal(size=(4, 12))
    nets = {}
    (tmp_path / "mine").mkdir()
    for i, separation in enumerate((0.3, 1.5, 3.0)):
        features = separation * means[labels] + rng.normal(size=(240, 12))
        nets[f"net{i}"] = features.astype(np.float32), labels
        np.savez(
            tmp_path / "mine" / f"net{i}.npz",
            features=nets[f"net{i}"][0],
            labels=labels,
            accuracy=(0.5, 0.4, 0.9)[i],
        )
    return nets


def test_grid_is_the_papers():
    assert ablation.GRID["energy"] == (0.5, 0.6, 0.7, 0.8, 0.9)
    assert ablation.GRID["components_per_class"] == tuple(range(1, 8))


def test_run_evaluates_each_value_against_accuracies(nets, tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "GRID", FEW)
    config = features_config.get_config()
    config.features = str(tmp_path / "mine")
    config.workdir = str(tmp_path / "runs")
    config.measures = "nleep"
    config.measure_options.nleep.components_per_class = 2
    config.stages = "score,ablate,report"
    ranking = run_lib.run(config)
    assert [found.option for found in ranking.ablations] == list(FEW)
    accuracies = {row.checkpoint: row.accuracy for row in ranking.rows}
    for found in ranking.ablations:
        assert found.values == FEW[found.option] and found.against_accuracy
        for value, scores, evaluated in zip(
            found.values, found.scores, found.evaluations, strict=True
        ):
            options = {"components_per_class": 2, found.option: value}
            alone = measures.compute("nleep", *nets["net1"], **options)
            assert scores["net1"] == pytest.approx(alone.score, rel=1e-5)
            assert scores.keys() == nets.keys()
            expected = evaluation.score_ranking(scores, accuracies)
            assert evaluated == pytest.approx(expected)
    page = (tmp_path / "runs/mine/report.html").read_text()
    assert "Options of NLEEP" in page
    for option in FEW:
        assert ablation.TITLES[option] in page
    # The stage `report` alone reads stored scores.
    monkeypatch.setattr(measures, "compute_prepared", lambda *a, **k: pytest.fail())
    config.stages = "report"
    assert run_lib.run(config).ablations == ranking.ablations


def test_evaluate_compares_with_default_without_accuracies():
    from rankckpt_jax.results.row import Row
    from rankckpt_jax.run.scoring import Settings

    points = {
        ("energy", 0.5): {"a": 1.0, "b": 2.0, "c": 3.0},
        ("energy", 0.8): {"a": 3.0, "b": 2.0, "c": 1.0},
    }
    rows = [Row(name) for name in "abc"]
    (found,) = ablation.evaluate(points, rows, Settings(("nleep",)))
    assert not found.against_accuracy
    assert [e["kendall"] for e in found.evaluations] == pytest.approx([-1, 1])
