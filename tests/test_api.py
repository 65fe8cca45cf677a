import dataclasses
import shutil

import flax.linen as nn
import jax
import numpy as np
import pytest
import scipy.sparse

import rankckpt_jax
from rankckpt_jax import checkpoints, rank, rank_features
from rankckpt_jax.configs import default
from rankckpt_jax.errors import InputError
from rankckpt_jax.features import extract
from rankckpt_jax.measures import registry
from rankckpt_jax.run import run as run_lib
from tests.command_line import parse


@pytest.fixture
def nets():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    means = rng.normal(size=(3, 6))
    return {
        f"net{i}": (s * means[labels] + rng.normal(size=(60, 6)), labels)
        for i, s in enumerate((0.1, 1.0, 4.0))
    }


def test_rank_ranks_a_folder_of_images(image_folder, pool, tmp_path):
    ranking = rank(
        data=image_folder,
        checkpoints=pool,
        measures=["h_score", "num_parameters"],
        image_size=32,
        workdir=tmp_path,
        fields={"batch_size": 8},
    )
    assert ranking.best.checkpoint in ("first", "second")
    assert "h_score" in str(ranking)
    assert ranking.provenance["config"]["batch_size"] == 8
    assert (tmp_path / "images" / "report.html").exists()
    with pytest.raises(InputError, match="fields"):
        rank(image_folder, pool, fields={"no.such": 1})


def test_rank_translates_its_arguments_as_the_command_does(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_lib, "run", lambda config, objects: config.to_dict())
    expected = parse("caltech101:3.*.*", "a", "b*", "--finetune=2", "--image-size=96")
    given = rank("caltech101:3.*.*", ["a", "b*"], finetune=2, image_size=96)
    assert given == expected.config.to_dict()
    every = rank("photos", "nets", finetune=True, fields={"stages": "finetune"})
    assert (every["finetune"]["top"], every["stages"]) == (0, "finetune")
    with pytest.raises(InputError, match="fields"):
        rank("photos", "nets", image_size="96")


class Net(nn.Module):
    """A small classifier; compiles in a moment."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (4, 4), strides=4)(x))
        return nn.Dense(3)(x.mean((1, 2)))


def test_rank_ranks_models_in_memory_beside_files(image_folder, pool, tmp_path, caplog):
    images = np.zeros((1, 32, 32, 3), np.float32)
    net, other = (
        checkpoints.from_flax(
            Net(), Net().init(jax.random.key(seed), images), name="first", image_size=32
        )
        for seed in (0, 1)
    )

    def run(*given):
        options = {"measures": "h_score", "image_size": 32, "workdir": tmp_path}
        with caplog.at_level("INFO"):
            caplog.clear()
            ranking = rank(image_folder, list(given), **options)
        assert not ranking.failed
        return {row.checkpoint: row.scores for row in ranking.rows}, ranking

    forward = hash(dataclasses.replace(net.apply, dtype="float32"))
    traces = extract.NUM_TRACES[forward]
    scores, ranking = run(pool / "first", net, other)
    assert scores.keys() == {"first", "first~2", "first~3"}
    assert scores["first~2"] != scores["first~3"]
    # The two of the same architecture share a program.
    assert extract.NUM_TRACES[forward] == traces + 1
    config = ranking.provenance["config"]
    assert config["models in memory"] == ["first", "first"]
    assert "Not verified" in str(ranking) and "rankckpt" not in str(ranking)
    assert run(pool / "first", net, other)[0] == scores
    assert "computed" not in caplog.text
    trained = dataclasses.replace(net, variables=other.variables)
    changed, _ = run(pool / "first", trained, other)
    assert caplog.text.count("computed features") == 1
    assert changed["first~2"] == scores["first~3"]
    alone = rank(image_folder, net, measures="h_score", workdir=tmp_path)
    assert [row.checkpoint for row in alone.rows] == ["first"]


def test_rank_finetunes_a_flax_module(image_folder, tmp_path):
    variables = Net().init(jax.random.key(0), np.zeros((1, 32, 32, 3)))
    net = checkpoints.from_flax(Net(), variables, name="net", image_size=32)
    fields = {
        "finetune.learning_rate": 0.1,
        "finetune.num_steps": 20,
        "finetune.batch_size": 8,
    }
    ranking = rank(
        image_folder,
        net,
        measures="h_score",
        finetune=True,
        workdir=tmp_path,
        fields=fields,
    )
    # The classes differ by their color.
    assert ranking.rows[0].accuracy > 0.6


def test_rank_refuses_a_bare_module_before_it_reads_images(tmp_path):
    with pytest.raises(InputError, match=r"checkpoints\[1\][\s\S]*from_flax\("):
        rank(tmp_path / "none", [tmp_path, Net()])


def test_rank_features_ranks_and_evaluates(nets, tmp_path):
    accuracies = {"net0": 0.3, "net1": 0.6, "net2": 0.9}
    ranking = rank_features(nets, measures="h_score,etran", accuracies=accuracies)
    assert [row.checkpoint for row in ranking.rows] == ["net2", "net1", "net0"]
    assert ranking.evaluation["h_score"]["kendall"] == pytest.approx(1)
    assert "classifier" in ranking.rows[0].warnings["etran"]
    for write, name, start in (
        (ranking.to_csv, "r.csv", "rank,"),
        (ranking.to_json, "r.json", "{"),
        (ranking.to_html, "r.html", "<!doctype html>"),
    ):
        assert write(tmp_path / name) is None
        text = write()
        assert (tmp_path / name).read_text() == text and text.startswith(start)
    assert repr(ranking).startswith("features: 3 checkpoints\n")
    assert repr(ranking.rows[0]).startswith("Row('net2', h_score=")
    assert "\n" not in repr(ranking.rows[0])


class _Tensor:
    """The part of the interface of PyTorch tensors that NumPy uses."""

    dtype = "torch.float32"

    def __init__(self, values):
        self.values = values

    def detach(self):
        return self

    def cpu(self):
        return self

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.values, dtype)


def test_rank_features_uses_the_default_options_of_rank(nets):
    options = {"nleep": {"components_per_class": 2}}
    ranking = rank_features(nets, measures="nleep", options=options)
    assert ranking.provenance["options"]["nleep"] == {
        **default.get_config().measure_options.nleep,
        "components_per_class": 2,
    }
    # Several starts, so that the noise of the score is known.
    assert all(row.spread("nleep") is not None for row in ranking.scored_rows)


def test_rank_features_accepts_tensors_and_mappings(nets):
    features, labels = nets["net2"]
    logits = features[:, :4]
    ranking = rank_features(
        {
            "tuple": (features, labels, logits),
            "tensors": {"features": _Tensor(features), "labels": labels.tolist()},
        },
        measures="h_score,leep",
    )
    first, second = ranking.rows
    assert first.scores["h_score"] == pytest.approx(second.scores["h_score"])
    assert [row.checkpoint for row in ranking.rows if "leep" in row.scores] == ["tuple"]


def test_rank_features_continues_after_bad_features(nets):
    nets["nan"] = (np.full((60, 6), np.nan), nets["net0"][1])
    nets["short"] = (np.zeros((5, 2)), np.arange(4))
    nets["alone"] = (np.zeros((5, 2)),)
    ranking = rank_features(nets, measures="h_score")
    assert {row.checkpoint for row in ranking.failed} == {"nan", "short", "alone"}
    with pytest.raises(InputError, match="h_scores"):
        rank_features(nets, measures="h_scores")


def test_rank_features_turns_any_exception_of_a_measure_into_a_warning(
    nets, monkeypatch, caplog
):
    def broken(inputs):
        raise np.linalg.LinAlgError("Singular matrix")

    record = registry.Measure("broken", broken)
    monkeypatch.setitem(registry._REGISTRY, "broken", record)
    ranking = rank_features(nets, measures="lda,broken")
    assert ranking.ranks == (1, 2, 3) and not ranking.failed
    for row in ranking.rows:
        assert row.score("broken") is None
        assert "LinAlgError: Singular matrix. " in row.warnings["broken"]
    assert caplog.text.count("Traceback") == 3


def test_rank_features_keeps_bad_entries_as_failed_rows(nets, caplog):
    features, labels = nets["net0"]
    ragged = features.tolist()
    ragged[3] = ragged[3][:2]
    bad = {
        "ragged": ((ragged, labels), "cannot be converted to an array"),
        "objects": ((features.astype(object), labels), "must be real numbers"),
        "strings": ((features.astype(str), labels), "must be real numbers"),
        "none": (None, "both needed"),
        "nones": ((None, None), "both needed"),
        "bare": (features, "both needed"),
        "four": ((features, labels, None, None), "both needed"),
        "one-hot": ((features, np.eye(3)[labels]), "argmax"),
        "multi-hot": ((features, np.ones((60, 3))), "multi-label"),
        "percent": ((features, labels), "divide percentages by 100"),
        "negative": ((features, labels), "not a fraction"),
        "text": ((features, labels), "accuracy must be real numbers"),
    }
    given = {**nets, **{name: entry for name, (entry, _) in bad.items()}}
    accuracies = {"net0": 0.3, "net1": 1.0000001, "net2": np.float32(0.5)}
    wrong = {"percent": 87.5, "negative": -0.1, "text": "0.9", "nett2": 0.5}
    ranking = rank_features(
        given, measures="h_score", accuracies={**accuracies, **wrong}
    )
    failures = {row.checkpoint: row.failure for row in ranking.failed}
    assert failures.keys() == bad.keys()
    for name, (_, reason) in bad.items():
        assert reason in failures[name], name
    assert {row.checkpoint: row.accuracy for row in ranking.scored_rows} == {
        **accuracies,
        "net1": 1,
    }
    text = "1 of 7 accuracies match no checkpoint: 'nett2' (did you mean 'net2'?)"
    assert ranking.provenance["accuracies"] == text and text in caplog.text
    assert "divide percentages" in ranking.to_html()


def test_rank_features_converts_what_it_can(nets):
    features, labels = nets["net2"]
    expected = rank_features({"a": nets["net2"]}, measures="lda").best.scores
    for given in (
        (features.astype(">f8"), labels.astype(">i4")),
        (scipy.sparse.csr_array(features), labels),
        (features, np.array(["x", "y", "z"])[labels]),
        (features, labels.astype(float)),
        (features, labels[:, None]),
    ):
        ranking = rank_features({"a": given}, measures="lda")
        assert ranking.best.scores == expected
        assert "a" in ranking.to_html()


def test_append_combines_relative_measures_again(nets):
    given = {name: (*value, value[0][:, :4]) for name, value in nets.items()}
    whole = rank_features(given, measures="etran,h_score")
    parts = [
        rank_features({name: given[name]}, measures=measures)
        for name, measures in (
            ("net0", "etran"),
            ("net1", "etran,h_score"),
            ("net2", "etran,h_score"),
        )
    ]
    joined = parts[0].append(parts[1]).append(parts[2])
    assert joined.measures == ("etran", "h_score")
    assert [r.scores["etran"] for r in joined.rows] == pytest.approx(
        [r.scores["etran"] for r in whole.rows]
    )
    replaced = joined.append(rank_features({"net0": given["net2"]}, measures="etran"))
    assert len(replaced.rows) == 3
    with pytest.raises(InputError, match="different tasks"):
        joined.append(rank_features(nets, measures="etran", task="other"))


def test_repr_html_escapes_names(nets):
    nets["<b>"] = nets.pop("net0")
    nets["bad"] = (np.zeros((5, 2)), np.arange(4))
    shown = rank_features(nets, measures="h_score")._repr_html_()
    assert "<b>" not in shown and "&lt;b&gt;" in shown
    assert "failed:" in shown and shown.count("<tr>") == 5


def test_package_exports_names_lazily():
    names = {"InputError", "Ranking", "rank", "rank_features"}
    assert names <= set(dir(rankckpt_jax))
    assert all(getattr(rankckpt_jax, name).__name__ == name for name in names)
    with pytest.raises(AttributeError):
        rankckpt_jax.no_such_thing  # noqa: B018


def test_rank_features_warns_about_shuffled_images():
    random = np.random.default_rng(0)
    labels = np.arange(60) % 3
    features = random.normal(size=(60, 4)) + np.eye(4)[labels]
    order = random.permutation(60)
    pool = {
        "first": (features, labels),
        # Other names of the classes are the same order.
        "second": (features[:, :3], np.array([7, 2, 5])[labels]),
        "shuffled": (2 * features[order], labels[order]),
    }
    ranking = rank_features(pool, measures="linear")
    assert {row.checkpoint: "order" in row.warnings for row in ranking.rows} == {
        "first": False,
        "second": False,
        "shuffled": True,
    }


def test_rank_features_warns_about_equal_features(nets):
    features, labels = nets["net1"]
    nets["net3"] = features.copy(), labels
    nets["net4"] = features * 1.01, labels
    ranking = rank_features(nets, measures="h_score")
    warnings = {
        row.checkpoint: row.warnings.get("features", "") for row in ranking.rows
    }
    assert "equal those of net1" in warnings.pop("net3")
    assert not any(warnings.values())
    assert "features of net3" in str(ranking)


@pytest.mark.shared
def test_rank_of_few_real_images_by_h_score_ranks_nothing(shared, tmp_path):
    # 54 images of 6 classes; all networks have at least 256 features.
    source = shared / "real" / "images" / "caltech101"
    for split, count in ("train", 9), ("test", 1):
        for folder in sorted((source / split).iterdir())[1:7]:
            few = tmp_path / "few" / split / folder.name
            few.mkdir(parents=True)
            for file in sorted(folder.iterdir())[:count]:
                shutil.copy(file, few)

    def run(measures):
        pool = shared / "real" / "checkpoints"
        return rank(tmp_path / "few", pool, measures=measures, workdir=tmp_path / "out")

    ranking = run("h_score")
    assert [row.scores["h_score"] for row in ranking.rows] == pytest.approx([5] * 4)
    assert ranking.ranks == (1, 1, 1, 1) and ranking.ranks_nothing
    shown = " ".join(str(ranking).split())
    assert "h_score ranks nothing: the scores of all 4 checkpoints are sat" in shown
    assert "Rank by logme instead." in shown
    for name in "ranking.json", "report.html":
        assert "h_score ranks nothing" in (tmp_path / "out" / "few" / name).read_text()
    by_default = run("nleep,leep,h_score")
    assert by_default.ranks[-1] > 1 and not by_default.ranks_nothing
    both = run("h_score,nleep")
    assert "nleep still ranks these checkpoints" in " ".join(str(both).split())
