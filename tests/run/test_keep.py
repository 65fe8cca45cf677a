"""`config.finetune.keep=best`, `predict`, and successive halving within a run."""

import csv
import json
import shutil

import numpy as np
import pytest

import rankckpt_jax
from rankckpt_jax import checkpoints, main
from rankckpt_jax.command_line import Command
from rankckpt_jax.devices import mapping
from rankckpt_jax.errors import InputError
from rankckpt_jax.finetune import loop
from rankckpt_jax.run import run as run_lib
from tests.run.test_run import make_config


@pytest.fixture
def config(image_folder, pool, tmp_path):
    """A config that ranks `first`, `second` and `third` by a file of scores."""
    shutil.copytree(pool, tmp_path / "pool")
    shutil.copytree(pool / "first", tmp_path / "pool" / "third")
    config = make_config(image_folder, tmp_path / "pool", tmp_path / "runs")
    config.stages = "extract,score,finetune,report"
    # Only the head, which compiles quickly.
    config.finetune.frozen = True
    config.finetune.batch_size = 8
    config.finetune.num_steps = None
    config.finetune.keep = "best"
    (tmp_path / "scores.csv").write_text("first,1\nsecond,3\nthird,2\n")
    config.measures = "static"
    config.measure_options.static = {"csv_file": str(tmp_path / "scores.csv")}
    return config


def forbid_training(monkeypatch):
    monkeypatch.setattr(loop, "train_trials", lambda *_, **__: pytest.fail("trained"))


def test_run_keeps_the_best_and_predict_reaches_its_accuracy(
    config, image_folder, tmp_path, monkeypatch, capsys
):
    config.finetune.top = 2
    config.finetune.num_steps = 5
    ranking = run_lib.run(config)
    assert ranking.kept is not None
    [best] = [row for row in ranking.rows if row.checkpoint == ranking.kept.checkpoint]
    assert best.accuracy == max(row.finite_accuracy() or 0 for row in ranking.rows)
    assert ranking.kept.checkpoint in ("second", "third")
    directory = tmp_path / "runs" / "images" / "model"
    card = json.loads((directory / "model.json").read_text())
    assert card["test"]["accuracy"] == best.accuracy
    assert card["finetuning"]["num_steps"] == 5
    assert card["checkpoint"]["name"] == best.checkpoint
    # The weights of the others are not kept.
    assert not list((tmp_path / "runs").glob("images/*/finetune/weights"))
    page = (tmp_path / "runs" / "images" / "report.html").read_text()
    assert "rankckpt" in page and "predict" in page and "serving.bin" in page

    # A second run computes nothing.
    forbid_training(monkeypatch)
    before = (directory / "manifest.json").stat().st_mtime_ns
    assert run_lib.run(config).kept == ranking.kept
    assert (directory / "manifest.json").stat().st_mtime_ns == before
    config.stages = "report"
    assert run_lib.run(config).kept == ranking.kept

    # The command line, with a file that is no image.
    test = tmp_path / "images" / "test"
    (test / "red" / "broken.jpg").write_bytes(b"nothing")
    output = tmp_path / "predictions.csv"
    command = Command(model=str(directory), images=str(test), output=str(output))
    # JAX has its devices already.
    monkeypatch.setattr(mapping, "split_cpu_devices", lambda: None)
    assert main.main(command) == 1
    printed = capsys.readouterr().out
    with output.open() as file:
        lines = list(csv.DictReader(file))
    right = [line["file"].split("/")[0] == line["predicted"] for line in lines]
    assert len(lines) == 12
    assert np.mean(right) == best.accuracy
    assert f"Accuracy {best.accuracy:.1%} ({sum(right)} of 12" in printed
    assert "1 file could not be read and is left out: red/broken.jpg" in printed
    for line in lines:
        shares = {n: float(line[f"p_{n}"]) for n in ("blue", "green", "red")}
        assert max(shares, key=shares.__getitem__) == line["predicted"]
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)

    # A folder, a list of files and an array give the same.
    files = [test / line["file"] for line in lines]
    model = rankckpt_jax.load_model(directory)
    folder = rankckpt_jax.predict(model, test, progress=False)
    listed = rankckpt_jax.predict(model, [*files, tmp_path / "absent.jpg"])
    assert list(folder.unreadable) == ["red/broken.jpg"]
    assert list(listed.unreadable) == [str(tmp_path / "absent.jpg")]
    np.testing.assert_array_equal(folder.probabilities, listed.probabilities)
    assert checkpoints.load(directory).num_source_classes == 3


def test_run_keeps_the_best_of_results_without_weights(config, tmp_path, caplog):
    config.finetune.num_steps = 2
    config.finetune.keep = ""
    assert run_lib.run(config).kept is None
    config.finetune.keep = "best"
    with caplog.at_level("INFO"):
        ranking = run_lib.run(config)
    assert caplog.text.count("training it again (2 steps") == 1
    assert ranking.kept is not None


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"finetune.keep": "last"}, "Unknown value 'last'"),
        ({"stages": "extract,score"}, "Only fine-tuning gives weights"),
        ({"shard": "1/2", "finetune.top": 0}, "run all shards first"),
        ({"finetune.budget": "30 m"}, "whole number of steps"),
        ({"finetune.budget": -3}, "whole number of steps"),
        ({"finetune.budget": 100, "finetune.num_steps": 9}, "leave one of the two"),
        ({"finetune.budget": 100, "shard": "1/2", "finetune.keep": ""}, "shard"),
        ({"finetune.budget": 5}, "at least 6 steps for 3 trials in 2 rounds"),
    ],
)
def test_run_refuses_settings(config, changes, text):
    config.update_from_flattened_dict(changes)
    with pytest.raises(InputError, match=text):
        run_lib.run(config)


def test_run_refuses_a_module_in_memory(image_folder, tmp_path):
    nn = pytest.importorskip("flax.linen")
    import jax

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(x.mean((1, 2)))

    variables = Net().init(jax.random.key(0), np.zeros((1, 32, 32, 3)))
    net = checkpoints.from_flax(Net(), variables, image_size=32, name="net")
    fields = {"finetune.keep": "best"}
    with pytest.raises(InputError, match="exists only in"):
        rankckpt_jax.rank(
            image_folder, net, finetune=True, workdir=tmp_path / "runs", fields=fields
        )
    assert not (tmp_path / "runs").exists()


def test_halving_continues_trials_and_resumes(config, tmp_path, monkeypatch, caplog):
    config.finetune.learning_rate = (0.1, 0.01)
    config.finetune.budget = 6 * 3 * 4
    trained = []
    original = loop.train_trials

    def record(*args, **kwargs):
        trained.append((kwargs["first_step"], kwargs["last_step"]))
        return original(*args, **kwargs)

    monkeypatch.setattr(loop, "train_trials", record)
    with caplog.at_level("INFO"):
        ranking = run_lib.run(config)
    # Six trials of 4 steps, three of 8 more, two of 12 more: 72 steps.
    assert trained == 6 * [(0, 4)] + 3 * [(4, 12)] + 2 * [(12, 24)]
    assert sum(last - first for first, last in trained) == 72
    assert caplog.text.count("dropped after 4 of 24 steps at") == 3
    [left] = [row for row in ranking.rows if row.accuracy is not None]
    assert left.tried.is_left and left.tried.steps == 24
    assert ranking.kept.checkpoint == left.checkpoint
    others = [row for row in ranking.rows if row is not left]
    assert all(row.tried is not None and not row.tried.is_left for row in others)
    text = str(ranking)
    assert f"Use {left.checkpoint}." in text
    assert "not compared" in text
    assert not list((tmp_path / "runs").glob("images/*/finetune/state/*"))

    # The trial that is left equals one that was trained in one go.
    complete = make_config(config.task.path, config.checkpoints, tmp_path / "other")
    complete.stages = "finetune"
    complete.task.val = ""
    complete.finetune.update(
        frozen=True,
        batch_size=8,
        learning_rate=(left.tried.learning_rate, left.tried.learning_rate * 1e-9),
        num_steps=24,
        select_by="val",
        train_on="train",
    )
    rows = {row.checkpoint: row for row in run_lib.run(complete).rows}
    assert rows[left.checkpoint].metrics == left.metrics

    # A second run trains nothing.
    forbid_training(monkeypatch)
    again = run_lib.run(config)
    assert [row.tried for row in again.rows] == [row.tried for row in ranking.rows]
    assert again.kept == ranking.kept


def test_halving_resumes_after_it_was_killed(config, tmp_path, monkeypatch):
    config.finetune.budget = 3 * 2 * 4
    config.finetune.keep = ""
    original = loop.train_trials
    calls = []

    class Killed(BaseException):
        pass

    def kill_in_round_two(*args, **kwargs):
        calls.append((kwargs["first_step"], kwargs["last_step"]))
        if len(calls) == 5:
            raise Killed
        return original(*args, **kwargs)

    monkeypatch.setattr(loop, "train_trials", kill_in_round_two)
    with pytest.raises(Killed):
        run_lib.run(config)
    resumed = run_lib.run(config)
    # Three trials of 4 steps, two of 6 more; the second of these was killed.
    assert calls == 3 * [(0, 4)] + 2 * [(4, 10)] + [(4, 10)]
    config.workdir = str(tmp_path / "clean")
    expected = run_lib.run(config)
    assert [row.tried for row in resumed.rows] == [row.tried for row in expected.rows]
    assert [row.accuracy for row in resumed.rows] == [r.accuracy for r in expected.rows]
