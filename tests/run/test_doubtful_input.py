"""Input that can be used in part or with a warning."""

import shutil

import numpy as np
import pytest

from rankckpt_jax import api, checkpoints
from rankckpt_jax.data import tasks
from rankckpt_jax.results import comparison
from tests import slim_golden
from tests.scene import Scene

NAME = "mobilenet_v1_025"
FIRST = "MobilenetV1/Conv2d_0/weights"


def test_run_continues_after_failed_checkpoints(scene):
    scene.data.write_bytes(scene.data.read_bytes()[:100_000])
    (scene.pool / "third").mkdir()
    (scene.pool / "third" / "model.ckpt.index").write_bytes(b"not an index")
    ranking = scene.run()
    assert {row.checkpoint for row in ranking.failed} == {"first", "third"}
    assert all("to fix: " in row.failure for row in ranking.failed)
    assert [row.checkpoint for row in ranking.scored_rows] == ["second"]
    assert "second is the only checkpoint ranked" in str(ranking)


def test_load_reads_v1_checkpoints(scene):
    """The oldest TF-Slim checkpoints have TensorFlow's format V1."""
    from rankckpt_jax.data.lazy_tensorflow import tensorflow

    tf = tensorflow().compat.v1
    folder = scene.folder / NAME
    folder.mkdir()
    prefix = str(folder / "mobilenet.ckpt")
    with tf.Graph().as_default(), tf.Session() as session:
        values = slim_golden.values(NAME).items()
        variables = {name: tf.Variable(value, name=name) for name, value in values}
        session.run(tf.global_variables_initializer())
        saver = tf.train.Saver(variables, write_version=tf.train.SaverDef.V1)
        saver.save(session, prefix, write_meta_graph=False)
    assert checkpoints.find(folder) == [("mobilenet", prefix)]
    loaded = checkpoints.load(prefix).variables["params"]["Conv2d_0"]["kernel"]
    np.testing.assert_array_equal(loaded, slim_golden.values(NAME)[FIRST])


def test_find_ignores_circular_links(scene):
    """Each checkpoint or image would be found forty times."""
    (scene.pool / "first" / "again").symlink_to(scene.pool)
    (scene.images / "train" / "red" / "again").symlink_to(scene.images)
    names = [name for name, _ in checkpoints.find(scene.pool)]
    assert names == ["first", "second"]
    assert tasks.from_folder(str(scene.images)).splits["train"].num_examples == 24


def single_image(scene: Scene) -> None:
    for file in (scene.images / "train" / "red").glob("[1-9].jpg"):
        file.unlink()


def copied(scene: Scene) -> None:
    for name in ("blue/0.jpg", "red/3.jpg"):
        shutil.copy(
            scene.images / "train" / name, scene.images / "test/green" / name[-5:]
        )


def untested(scene: Scene) -> None:
    shutil.rmtree(scene.images / "test" / "red")


def other_formats(scene: Scene) -> None:
    for name in ("a.avif", "b.heic", "c.HEIC"):
        (scene.images / "train" / "red" / name).write_bytes(b"")


DOUBTFUL = {
    "a class with one image": (
        single_image,
        "classes",
        "1 of 3 classes have a single training image",
    ),
    "train and test share files": (
        copied,
        "splits",
        "2 of 12 test images are byte-for-byte copies of training images",
    ),
    "a class without test images": (
        untested,
        "classes",
        "1 of 3 classes have no image in test, so accuracies ignore them",
    ),
    "files of other formats": (other_formats, "images", "1 .avif, 2 .heic"),
}
"""Usable input with a warning: topic and text."""


@pytest.mark.parametrize("case", DOUBTFUL)
def test_run_warns_about(case, scene, caplog):
    make, topic, text = DOUBTFUL[case]
    make(scene)
    ranking = scene.run()
    assert text in caplog.text
    assert len(ranking.scored_rows) == 2
    for row in ranking.rows:
        assert text in row.warnings[topic]


def test_run_recomputes_results_of_another_config(scene, caplog):
    first = scene.run()
    caplog.clear()
    with caplog.at_level("INFO"):
        second = scene.run(image_size=48)
    assert "image_size 32 -> 48" in caplog.text
    assert {r.image_size for r in second.rows} == {48}
    assert [r.scores for r in first.rows] != [r.scores for r in second.rows]


@pytest.mark.filterwarnings("ignore:__array__ implementation")
def test_run_states_what_it_assumed_of_a_keras_network(scene):
    from rankckpt_jax.data.lazy_tensorflow import tensorflow

    tensorflow()
    import keras

    inputs = keras.Input((40, 40, 3))
    x = keras.layers.Conv2D(8, 3, strides=2, activation="relu")(inputs)
    # This pool needs the size.
    x = keras.layers.Flatten()(keras.layers.AveragePooling2D(19)(x))
    model = keras.Model(inputs, keras.layers.Dense(10, name="last")(x))
    (scene.pool / "third").mkdir()
    model.save(scene.pool / "third" / "third.keras")
    # The size is a wish for the pool, and this network has one of its own.
    ranking = scene.run(image_size=32)
    [row] = [row for row in ranking.rows if row.checkpoint == "third"]
    assert not row.failure
    assert (row.image_size, row.feature_dim) == (40, 8)
    assert "last" in row.feature_tensor
    assert "40 x 40 pixels only, not 32" in row.warnings["image_size"]
    assert "assuming [0, 1]" in row.warnings["input_range"]
    for text in (str(ranking), ranking.to_csv()):
        assert "assuming [0, 1]" in text
        assert "not 32" in text


def test_run_warns_about_more_components_than_images(scene):
    ranking = scene.run(
        measures="h_score,nleep", measure_options={"nleep": {"components_per_class": 9}}
    )
    for row in ranking.rows:
        assert row.scores.keys() == {"h_score"}
        assert "more mixture components than images" in row.warnings["nleep"]


def test_rank_features_warns_about_other_images_and_duplicates():
    random = np.random.default_rng(0)
    pool = {
        name: (random.normal(size=(n, 4)), np.arange(n) % 3)
        for name, n in (("a", 60), ("b", 60), ("c", 57))
    }
    rows = {r.checkpoint: r for r in api.rank_features(pool, measures="lda").rows}
    assert "57 images of 3 classes" in rows["c"].warnings["images"]
    assert "images" not in rows["a"].warnings
    duplicates = {**pool, "d": pool["a"]}
    rows = {r.checkpoint: r for r in api.rank_features(duplicates, measures="lda").rows}
    assert "equal those of a" in rows["d"].warnings["features"]
    assert comparison.compare_rows([rows["a"]], ["lda"]) == [rows["a"]]
