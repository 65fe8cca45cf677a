import json

import jax.numpy as jnp
import numpy as np
import pytest

from rankckpt_jax import checkpoints, measures, rank
from rankckpt_jax.errors import InputError
from rankckpt_jax.features import extract
from rankckpt_jax.results.row import Row
from rankckpt_jax.run import layers
from rankckpt_jax.run import run as run_lib
from tests.run.test_run import make_config

BLOCKS = ("Conv2d_5_pointwise", "Conv2d_11_pointwise", "Conv2d_13_pointwise")


def run(image_folder, pool, workdir, features_from, **changes):
    changes = {"measures": "h_score,leep,knn", **changes}
    config = make_config(image_folder, pool, workdir, **changes)
    config.features_from = features_from
    return {row.checkpoint: row for row in run_lib.run(config).rows}


def test_layers_are_extracted_once_and_scored_by_setting(
    image_folder, pool, tmp_path, monkeypatch, caplog
):
    extract._forward.cache_clear()
    extract.NUM_TRACES.clear()
    with caplog.at_level("INFO"):
        best = run(image_folder, pool, tmp_path, "last,blocks")["first"]
    # Two checkpoints and all layers share one program.
    assert list(extract.NUM_TRACES.values()) == [1]
    assert "Conv2d_5_pointwise (64), Conv2d_11_pointwise (128)" in caplog.text
    assert best.blocks == BLOCKS and best.feature_dim == 256

    directory = tmp_path / "images" / "first"
    arrays = [np.load(directory / "blocks/train" / f"block_{i}.npy") for i in (1, 2, 3)]
    features = np.load(directory / "features/train/features.npy")
    labels = np.load(directory / "features/train/labels.npy")
    assert [a.shape for a in arrays] == [(24, 64), (24, 128), (24, 256)]
    # No layer lies between the last block and the features, so it is not scored twice.
    np.testing.assert_allclose(arrays[2], features, rtol=1e-6)
    for measure in ("h_score", "knn"):
        sets = {"last": features, BLOCKS[0]: arrays[0], BLOCKS[1]: arrays[1]}
        results = {n: measures.compute(measure, x, labels) for n, x in sets.items()}
        expected = {
            name: None if "saturated" in result.details else result.score
            for name, result in results.items()
        }
        known = [score for score in expected.values() if score is not None]
        found = best.layer_scores.get(measure, dict.fromkeys(sets))
        assert found == pytest.approx(expected)
        assert best.score(measure) == pytest.approx(
            max(known, default=results["last"].score)
        )
    assert "leep" in best.scores and "leep" not in best.layers

    monkeypatch.setattr(extract, "extract", lambda *_, **__: pytest.fail("extracted"))
    last = run(image_folder, pool, tmp_path, "last")["first"]
    assert not last.layers and not last.blocks
    assert last.scores["leep"] == best.scores["leep"]
    joined = run(image_folder, pool, tmp_path, "blocks")["first"]
    together = np.concatenate(arrays, axis=1)
    assert joined.feature_dim == 448 and joined.layers["knn"] == "blocks"
    expected = measures.compute("knn", together, labels).score
    assert joined.scores["knn"] == pytest.approx(expected)
    assert joined.scores["leep"] == best.scores["leep"]

    rows = json.loads((tmp_path / "images/ranking.json").read_text())["rows"]
    assert rows[0]["blocks"] == ", ".join(BLOCKS) and rows[0]["knn_layer"] == "blocks"


def test_features_that_are_stored_stay_when_blocks_are_added(
    image_folder, pool, tmp_path
):
    run(image_folder, pool, tmp_path, "last", measures="h_score")
    path = tmp_path / "images/first/features/train/manifest.json"
    before = path.read_bytes()
    row = run(image_folder, pool, tmp_path, "blocks", measures="h_score")["first"]
    assert path.read_bytes() == before and row.layers == {"h_score": "blocks"}


def test_networks_without_known_blocks_use_their_last_features(image_folder, tmp_path):
    import flax.linen as nn
    import jax

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.relu(nn.Conv(6, (3, 3), strides=2)(x)).mean((1, 2))

    variables = Net().init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    net = checkpoints.from_flax(Net(), variables, image_size=32, name="net")
    options = {"measures": "h_score", "workdir": tmp_path}
    fields = {"features_from": "last, blocks"}
    # The second run loads the stored answer.
    for _ in range(2):
        [row] = rank(image_folder, net, fields=fields, **options).rows
        assert (
            "last blocks of this network are not known"
            in (row.warnings["features_from"])
        )
        assert not row.layers and not row.blocks and row.score("h_score") is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features_from": "first"}, r"config\.features_from"),
        ({"features_from": "blocks", "race": True}, "A race compares"),
        (
            {"features_from": "last,blocks", "stages": "score,ablate"},
            "one set of features",
        ),
    ],
)
def test_settings_that_cannot_be_used_are_refused(
    image_folder, pool, tmp_path, changes, message
):
    config = make_config(image_folder, pool, tmp_path, **changes)
    config.measures = "nleep"
    with pytest.raises(InputError, match=message):
        run_lib.run(config)


def test_take_best_skips_saturated_scores_and_keeps_their_warnings_apart():
    rows = {
        "last": Row(
            "net",
            scores={"knn": 0.5, "nleep": -1.0, "leep": -2.0},
            warnings={"knn": "at chance", "leep": "no logits"},
            score_seconds={"knn": 1.0},
        ),
        "a": Row(
            "net",
            scores={"knn": 0.7, "nleep": -0.5},
            spreads={"knn": 0.1},
            score_seconds={"knn": 2.0},
        ),
        "b": Row(
            "net",
            scores={"knn": 1.0},
            saturated={"knn": "maximum"},
            warnings={"knn": "saturated"},
            score_seconds={"knn": 4.0},
        ),
    }
    row = layers.take_best(rows, ("knn", "nleep"))
    assert row.scores == {"knn": 0.7, "nleep": -0.5, "leep": -2.0}
    assert row.layers == {"knn": "a", "nleep": "a"}
    assert row.spreads == {"knn": 0.1} and row.warnings == {"leep": "no logits"}
    assert row.score_seconds == {"knn": 7.0} and row.saturated == {}
    assert row.layer_scores["knn"] == {"last": 0.5, "a": 0.7, "b": None}
    # All saturated: the last features stay.
    saturated = {name: rows["b"] for name in ("last", "a")}
    row = layers.take_best(saturated, ("knn",))
    assert row.scores == {"knn": 1.0} and row.saturated and not row.layers
