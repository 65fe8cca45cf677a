import csv

import numpy as np
import pytest
import scipy.sparse

from rankckpt_jax import measures
from rankckpt_jax.configs import features as features_config
from rankckpt_jax.errors import InputError
from rankckpt_jax.features import precomputed
from rankckpt_jax.run import run as run_lib
from rankckpt_jax.storage import store


@pytest.fixture
def folder(tmp_path):
    """Features of three checkpoints, whose classes are ever further apart.

    They have the shapes of `tests.measures.data`, to share compiled programs.
    """
    rng = np.random.default_rng(0)
    labels = np.arange(240) % 4
    means = rng.normal(size=(4, 12))
    directory = tmp_path / "mine"
    directory.mkdir()
    for i, separation in enumerate((0.2, 1.0, 3.0)):
        features = separation * means[labels] + rng.normal(size=(240, 12))
        np.savez(
            directory / f"net{i}.npz",
            features=features.astype(np.float32),
            labels=labels,
            accuracy=np.float64(0.4 + 0.2 * i),
            num_parameters=1000 * (i + 1),
            **({} if i == 1 else {"logits": features[:, :6]}),
        )
    return directory


def run(folder, workdir, measures="h_score,leep,num_parameters,etran"):
    config = features_config.get_config()
    config.features = str(folder)
    config.workdir = str(workdir)
    config.measures = measures
    return run_lib.run(config)


def test_run_ranks_npz_files_and_stores_scores(folder, tmp_path, monkeypatch):
    ranking = run(folder, tmp_path / "runs")
    assert ranking.task == "mine"
    assert [row.checkpoint for row in ranking.rows] == ["net2", "net1", "net0"]
    assert ranking.evaluation["h_score"]["kendall"] == pytest.approx(1)
    rows = {row.checkpoint: row for row in ranking.rows}
    assert "leep" not in rows["net1"].scores
    assert "classifier" in rows["net1"].warnings["leep"]
    assert rows["net2"].accuracy_source == "net2.npz"
    # Etran is relative to the pool: its terms come from the two with a classifier.
    assert set(rows["net0"].terms) == {"etran"}
    assert (tmp_path / "runs/mine/report.html").exists()

    monkeypatch.setattr(measures, "compute_prepared", lambda *a, **k: pytest.fail())
    again = run(folder, tmp_path / "runs")
    assert [r.scores for r in again.rows] == [r.scores for r in ranking.rows]


def test_run_continues_after_bad_file(folder, tmp_path):
    (folder / "broken.npz").write_bytes(b"PK nothing")
    np.savez(folder / "half.npz", features=np.zeros((4, 2)))
    ranking = run(folder, tmp_path / "runs", "h_score")
    failures = {row.checkpoint: row.failure for row in ranking.failed}
    assert failures.keys() == {"broken", "half"}
    assert "no array labels" in failures["half"]


def test_run_keeps_bad_files_as_failed_rows(folder, tmp_path):
    with np.load(folder / "net2.npz") as file:
        good = {name: file[name] for name in ("features", "labels", "accuracy")}
    bad = {
        "strings": ({"features": good["features"].astype(str)}, "real numbers"),
        "objects": ({"features": good["features"].astype(object)}, "pickle"),
        "one-hot": ({"labels": np.eye(4)[good["labels"]]}, "argmax"),
        "multi-hot": ({"labels": np.ones((240, 3), int)}, "multi-label"),
        "percent": ({"accuracy": 87.5}, "divide percentages by 100"),
        "infinite": ({"num_parameters": np.inf}, "num_parameters is not a count"),
        "negative": ({"num_parameters": -3}, "num_parameters is not a count"),
        "several": ({"num_parameters": [1, 2]}, "single number"),
        "text": ({"accuracy": "0.9"}, "accuracy must be real numbers"),
    }
    fine = {
        "big-endian": {"features": good["features"].astype(">f4")},
        "names": {"labels": np.array(["w", "x", "y", "z"])[good["labels"]]},
        "floats": {"labels": good["labels"].astype(np.float64)},
        "column": {"labels": good["labels"][:, None]},
        "rounded": {"accuracy": 1.0000001},
    }
    for name, changes in {**{n: c for n, (c, _) in bad.items()}, **fine}.items():
        np.savez(folder / f"{name}.npz", **{**good, **changes})
    scipy.sparse.save_npz(
        folder / "sparse.npz", scipy.sparse.csr_array(good["features"])
    )
    ranking = run(folder, tmp_path / "runs", "h_score")
    failures = {row.checkpoint: row.failure for row in ranking.failed}
    assert failures.keys() == {*bad, "sparse"}
    for name, (_, reason) in bad.items():
        assert reason in failures[name], name
    assert "no array features" in failures["sparse"]
    scores = {row.checkpoint: row.scores["h_score"] for row in ranking.scored_rows}
    assert all(scores[name] == scores["net2"] for name in fine)
    accuracies = {row.checkpoint: row.accuracy for row in ranking.rows}
    assert accuracies["rounded"] == 1 and accuracies["percent"] is None


def test_load_features_rejects_pickles(tmp_path):
    class Malicious:
        def __reduce__(self):
            return (print, ("run",))

    objects = np.array([Malicious()], object)
    np.savez(tmp_path / "e.npz", features=objects, labels=[0])
    [(_, path)] = precomputed.find_features(str(tmp_path))
    with pytest.raises(InputError, match=r"cannot be read[\s\S]*pickle"):
        precomputed.load_features(path)


def test_run_reads_features_of_earlier_run(folder, tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        store.save(
            tmp_path / f"runs/flowers/{name}/features/train",
            {"architecture": "resnet_v1_50", "image_size": 224},
            {"seconds": 3.0},
            {
                "features": rng.normal(size=(30, 4)).astype(np.float32),
                "labels": np.arange(30, dtype=np.int32) % 2,
            },
        )
    pattern = tmp_path / "runs/flowers/*/features/train"
    ranking = run(pattern, tmp_path / "again", "h_score")
    assert ranking.task == "flowers"
    assert {row.checkpoint for row in ranking.rows} == {"a", "b"}
    assert all(row.architecture == "resnet_v1_50" for row in ranking.rows)
    assert all(row.extract_seconds == 3.0 for row in ranking.rows)
    # The store of an older version does not have the time spent on compiling.
    assert all(set(row.compile_seconds) == {"h_score"} for row in ranking.rows)

    (tmp_path / "runs/flowers/a/features/train/labels.npy").write_bytes(b"")
    ranking = run(pattern, tmp_path / "other", "h_score")
    assert [row.checkpoint for row in ranking.failed] == ["a"]


def test_find_features_rejects_duplicate_names(folder, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "net0.npz").write_bytes((folder / "net0.npz").read_bytes())
    with pytest.raises(InputError, match="net0"):
        precomputed.find_features(f"{folder},{tmp_path / 'other'}")


def test_run_shows_all_measures_in_every_output(folder, tmp_path):
    ranking = run(folder, tmp_path / "runs", "all")
    # The measure `static` needs a file of scores.
    assert set(ranking.measures) == set(measures.names()) - {"static"}
    [row] = [row for row in ranking.rows if row.checkpoint == "net2"]
    of_weights = {name for name in measures.names() if measures.get(name).needs_weights}
    unknown = {"source_accuracy", "early_stopping", *of_weights}
    assert set(row.scores) == set(ranking.measures) - unknown
    text = (tmp_path / "runs/mine/ranking.csv").read_text()
    header, *lines = csv.reader(text.splitlines())
    page = (tmp_path / "runs/mine/report.html").read_text()
    # The terminal shows those that fit its width, and says where the others are.
    assert ranking.measures[0] in str(ranking)
    assert "more; see ranking.csv or to_csv()" in str(ranking)
    _, _, rank_map = page.partition('<table class="ranks">')
    for measure in ranking.measures:
        assert f"<span>{measure}</span>" in rank_map
        assert measure in header
        if measure not in unknown:
            [line] = [line for line in lines if line[1] == "net2"]
            assert float(line[header.index(f"{measure}_seconds")]) >= 0


def test_run_scores_again_after_file_of_static_changes(folder, tmp_path, caplog):
    file = tmp_path / "scores.csv"
    config = features_config.get_config()
    config.features = str(folder)
    config.workdir = str(tmp_path / "runs")
    config.measures = "static"
    config.measure_options.static = {"csv_file": str(file)}

    def scores():
        return [row.scores.get("static") for row in run_lib.run(config).rows]

    assert scores() == [None, None, None]
    file.write_text("net0,1\nnet1,2\nnet2,3\n")
    assert scores() == [3, 2, 1]
    file.write_text("net0,4\nnet1,2\nnet2,3\n")
    with caplog.at_level("INFO"):
        assert scores() == [4, 3, 2]
    assert "Cached result does not match (files " in caplog.text


def test_run_names_accuracies_without_a_checkpoint(folder, tmp_path, caplog):
    for path in folder.iterdir():
        with np.load(path) as arrays:
            np.savez(path, features=arrays["features"], labels=arrays["labels"])
    file = tmp_path / "mine.csv"
    file.write_text("\ufeffnet0;40,5\nnet_1;60,25\nnet2;80\n", encoding="utf-8")
    config = features_config.get_config()
    config.features = str(folder)
    config.workdir = str(tmp_path / "runs")
    config.measures = "h_score"
    config.accuracies = str(file)
    ranking = run_lib.run(config)
    accuracies = {row.checkpoint: row.accuracy for row in ranking.rows}
    assert accuracies == {"net0": 0.405, "net1": None, "net2": 0.8}
    text = "1 of 3 accuracies match no checkpoint: 'net_1' (did you mean 'net1'?)"
    assert ranking.provenance["accuracies"] == text
    assert f"mine.csv: {text}" in caplog.text
    page = (tmp_path / "runs/mine/report.html").read_text()
    assert "1 of 3 accuracies match no checkpoint" in page


@pytest.mark.parametrize("name", ["mine[1]", "mine, too", "mine#output=x"])
def test_find_features_takes_existing_paths_literally(folder, name):
    place = folder.rename(folder.with_name(name))
    names = ["net0", "net1", "net2"]
    for pattern in (f"{place}", f"{place}/*.npz", f"{place}/**/*.npz"):
        assert [n for n, _ in precomputed.find_features(pattern)] == names
    pair = f"{place}/net0.npz,{place}/net1.npz"
    assert [n for n, _ in precomputed.find_features(pair)] == names[:2]
