"""Mistakes of users: each raises one `InputError` before any network is applied.

test_doubtful_input.py has input that can be used, and tests/data/test_corrupt_images.py
images that cannot be decoded.
"""

import dataclasses
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rankckpt_jax import api, checkpoints
from rankckpt_jax.checkpoints.tensorflow_files import checkpoint_files
from rankckpt_jax.configs import features as features_config
from rankckpt_jax.errors import InputError
from rankckpt_jax.features import extract
from rankckpt_jax.run import run as run_lib
from tests import slim_golden
from tests.scene import Scene

NAME = "mobilenet_v1_025"
FIRST = "MobilenetV1/Conv2d_0/weights"


@dataclasses.dataclass(frozen=True)
class Refused:
    """One mistake.

    Attributes:
      name: Name of the case.
      texts: Texts in the message.
      attempt: Breaks the scene, and does what a user would do.
    """

    name: str
    texts: tuple[str, ...]
    attempt: Callable[[Scene], Any]


def written(scene: Scene, **changes: Any) -> Any:
    """Load a checkpoint after changing some variables."""
    prefix = str(scene.pool / "first" / "model.ckpt")
    names = checkpoint_files.shapes(prefix)
    values = {**checkpoint_files.read(prefix, names), **changes}
    for file in (scene.pool / "first").iterdir():
        file.unlink()
    checkpoint_files.write(prefix, values)
    return scene.load()


def with_value(scene: Scene, value: float) -> Any:
    weights = slim_golden.values(NAME)[FIRST]
    weights[0, 0, 0, 0] = value
    return written(scene, **{FIRST: weights})


def index_of_another(scene: Scene) -> Any:
    other = slim_golden.write("mobilenet_v1_050", scene.folder / "other")
    shutil.copy(f"{other}.index", scene.index)
    return scene.load()


def saved_model(scene: Scene) -> pathlib.Path:
    from rankckpt_jax.data.lazy_tensorflow import tensorflow

    tf = tensorflow()
    module = tf.Module()
    module.w = tf.Variable(np.ones((3, 4), np.float32), name="w")
    signature = [tf.TensorSpec([None, 8, 8, 3], tf.float32)]
    module.__call__ = tf.function(
        lambda images: tf.reduce_mean(images, [1, 2]) @ module.w,
        input_signature=signature,
    )
    tf.saved_model.save(module, str(scene.folder / "module"))
    return scene.folder / "module"


def without_variables(scene: Scene) -> Any:
    module = saved_model(scene)
    shutil.rmtree(module / "variables")
    return checkpoints.load(str(module))


def nothing(scene: Scene) -> Any:
    for folder in scene.pool.iterdir():
        shutil.rmtree(folder)
    return scene.run()


CHECKPOINTS = [
    Refused(
        "a truncated .data file",
        ("first/model.ckpt", "truncated"),
        lambda s: (s.data.write_bytes(s.data.read_bytes()[:100_000]), s.load()),
    ),
    Refused(
        "a truncated .index",
        ("first/model.ckpt", "truncated"),
        lambda s: (s.index.write_bytes(s.index.read_bytes()[:100]), s.load()),
    ),
    Refused(
        "an image size of 3",
        ("first/model.ckpt", "expected: 8 to 1024", "found: 3"),
        lambda s: checkpoints.load(f"{s.pool}/first/model.ckpt#image_size=3"),
    ),
    Refused("no .index", ("model.ckpt.index",), lambda s: (s.index.unlink(), s.load())),
    Refused("no .data", (".data-",), lambda s: (s.data.unlink(), s.load())),
    Refused("the index of another network", ("first/model.ckpt",), index_of_another),
    Refused(
        "one variable of a wrong type",
        (FIRST, "int32"),
        lambda s: written(s, **{FIRST: np.ones((3, 3, 3, 8), np.int32)}),
    ),
    Refused(
        "one variable of a wrong shape",
        (f"misshapen: {FIRST} [3, 3, 3, 9] instead of [3, 3, 3, 8]",),
        lambda s: written(s, **{FIRST: np.ones((3, 3, 3, 9), np.float32)}),
    ),
    Refused("NaN weights", (FIRST, "NaN"), lambda s: with_value(s, np.nan)),
    Refused("infinite weights", (FIRST, "infinite"), lambda s: with_value(s, np.inf)),
    Refused("a directory of nothing", ("No checkpoints", ".index"), nothing),
    Refused("a SavedModel without variables", ("module",), without_variables),
]


def scatter(scene: Scene, count: int, data: bytes) -> Any:
    """Write files into a class's folder, which has eight images."""
    for i in range(count):
        (scene.images / "train" / "red" / f"more{i}.jpg").write_bytes(data)
    return scene.run()


def empty_class(scene: Scene, *files: str) -> Any:
    (scene.images / "train" / "yellow").mkdir()
    for file in files:
        (scene.images / "train" / "yellow" / file).write_bytes(b"")
    return scene.run()


def one_class(scene: Scene) -> Any:
    for name in ("red", "green"):
        shutil.rmtree(scene.images / "train" / name)
    return scene.run()


def other_labels(scene: Scene) -> Any:
    (scene.images / "test" / "red").rename(scene.images / "test" / "Red")
    return scene.run()


IMAGES = [
    Refused(
        "no folder",
        ("No training images", "/images/train", "no such folder"),
        lambda s: (shutil.rmtree(s.images), s.run()),
    ),
    Refused(
        "no folder `train`",
        ("No training images", "test"),
        lambda s: (shutil.rmtree(s.images / "train"), s.run()),
    ),
    Refused("an empty class folder", ("'yellow': an empty folder",), empty_class),
    Refused(
        "a class folder of other files",
        ("'yellow'", "2 .heic"),
        lambda s: empty_class(s, "a.heic", "b.heic"),
    ),
    Refused(
        "a class of which no image can be read",
        ("'yellow': files 1 .jpg",),
        lambda s: empty_class(s, "a.jpg"),
    ),
    Refused("one class", ("at least two classes", "blue"), one_class),
    Refused("labels that differ between splits", ("Red", "'test'"), other_labels),
    Refused(
        "text files named .jpg",
        ("Too many images of train", "3 of 27", "red/more0.jpg", "not a JPEG"),
        lambda s: scatter(s, 3, b"once upon a time"),
    ),
    Refused(
        "more than the stated share, where it is smaller",
        ("1 of 25", "at most 1%"),
        lambda s: (
            (s.images / "train/red/x.jpg").write_bytes(b""),
            s.run(task={"max_unreadable": 0.01}),
        ),
    ),
    Refused(
        "a share that is none",
        ("config.task.max_unreadable", "1.5"),
        lambda s: s.run(task={"max_unreadable": 1.5}),
    ),
    Refused(
        "a negative number of images",
        ("config.task.limit",),
        lambda s: s.run(task={"limit": -1}),
    ),
    Refused(
        "an unknown TFDS data set",
        ("config.task.tfds", "'no_such'"),
        lambda s: s.run(task={"path": "", "tfds": "no_such"}),
    ),
    Refused("no images", ("config.task.path",), lambda s: s.run(task={"path": ""})),
    Refused(
        "digits that are none",
        ("config.task.digits", "(3, 12)"),
        lambda s: s.run(task={"path": "", "digits": (3, 12)}),
    ),
]


def rank(scene: Scene, **options: Any) -> Any:
    return api.rank(scene.images, scene.pool, workdir=scene.folder / "runs", **options)


def under_a_file(scene: Scene) -> Any:
    """Use a path below a file, because root can write every directory."""
    (scene.folder / "file").write_text("")
    return scene.run(workdir=str(scene.folder / "file" / "runs"))


CONFIGS = [
    Refused(
        "an unknown field",
        ("mesures", "'measures'"),
        lambda s: rank(s, fields={"mesures": "nleep"}),
    ),
    Refused(
        "an unknown field of a section",
        ("task.limt", "'limit'"),
        lambda s: rank(s, fields={"task.limt": 3}),
    ),
    Refused(
        "a field of a wrong type",
        ("batch_size", "<class 'int'>", "<class 'str'>"),
        lambda s: rank(s, fields={"batch_size": "many"}),
    ),
    Refused(
        "an unknown measure",
        ("config.measures", "nlepp", "'nleep'"),
        lambda s: s.run(measures="nlepp"),
    ),
    Refused("no measure", ("config.measures",), lambda s: s.run(measures=" , ")),
    Refused(
        "an unknown option of a measure",
        ("measure_options.nleep", "energi", "'energy'"),
        lambda s: s.run(measure_options={"nleep": {"energi": 0.9}}),
    ),
    Refused(
        "options of an unknown measure",
        ("nlepp", "'nleep'"),
        lambda s: s.run(measure_options={"nlepp": {"energy": 0.9}}),
    ),
    Refused(
        "an option that cannot be",
        ("measure_options.nleep.energy", "(0, 1]", "2"),
        lambda s: s.run(measure_options={"nleep": {"energy": 2.0}}),
    ),
    Refused(
        "an unknown stage",
        ("config.stages", "sore", "'score'"),
        lambda s: s.run(stages="extract,sore"),
    ),
    Refused(
        "an unknown preprocessing",
        ("config.preprocess", "vtag", "'vtab'"),
        lambda s: s.run(preprocess="vtag"),
    ),
    Refused("an unknown dtype", ("config.dtype",), lambda s: s.run(dtype="float16")),
    Refused(
        "no images a step",
        ("config.batch_size", "at least 1", "0"),
        lambda s: s.run(batch_size=0),
    ),
    *(
        Refused(
            f"images of {size} pixels",
            ("config.image_size", "8 to 1024", str(size)),
            lambda s, size=size: s.run(image_size=size),
        )
        for size in (-1, 1, 3_000, 100_000)
    ),
    Refused("a negative seed", ("seed", "at least 0", "-1"), lambda s: s.run(seed=-1)),
    Refused(
        "a negative size of the image cache",
        ("config.image_cache_gigabytes", "-1"),
        lambda s: s.run(image_cache_gigabytes=-1.0),
    ),
    Refused(
        "decoded images in a bucket",
        ("config.image_cache", "local", "gs://bucket/images"),
        lambda s: s.run(image_cache="gs://bucket/images"),
    ),
    Refused(
        "an unknown recipe",
        ("config.finetune.recipe", "quik", "'quick'"),
        lambda s: s.run(finetune={"recipe": "quik"}),
    ),
    Refused(
        "a learning rate that is no number",
        ("config.finetune.learning_rate", "fast"),
        lambda s: s.run(finetune={"learning_rate": (0.1, "fast")}),
    ),
    Refused(
        "a momentum that cannot be",
        ("config.finetune.momentum", "[0, 1)", "1.5"),
        lambda s: s.run(finetune={"momentum": 1.5}),
    ),
    Refused(
        "augmentation of a frozen network",
        ("config.finetune.frozen", "augmentation"),
        lambda s: s.run(finetune={"frozen": True, "random_flip": True}),
    ),
    Refused(
        "pre-training without its section",
        ("config.pretrain",),
        lambda s: s.run(stages="pretrain,extract"),
    ),
    Refused(
        "an ablation of a measure that is not asked for",
        ("`ablate`", "config.measures", "nleep"),
        lambda s: s.run(stages="extract,score,ablate"),
    ),
    Refused(
        "fine-tuning of features alone",
        ("config.stages", "finetune"),
        lambda s: s.run(features="x.npz", stages="score,finetune"),
    ),
    Refused(
        "fine-tuning without test images",
        ("no test images",),
        lambda s: (
            shutil.rmtree(s.images / "test"),
            [f.unlink() for f in s.images.glob("train/*/[1-9].jpg")],
            s.run(stages="finetune"),
        ),
    ),
    Refused(
        "features that are not there",
        ("No features", "/no/such"),
        lambda s: s.run(features="/no/such", stages="score"),
    ),
    Refused("no checkpoint", ("config.checkpoints",), lambda s: s.run(checkpoints="")),
    Refused(
        "an unknown architecture",
        ("mobilenet_v1_05x",),
        lambda s: s.run(from_scratch="mobilenet_v1_05x"),
    ),
    Refused(
        "an unknown group of NeuCRaB",
        ("config.neucrab", "group_iv"),
        lambda s: s.run(neucrab="group_iv"),
    ),
    Refused(
        "accuracies that are not there",
        ("none.csv",),
        lambda s: s.run(accuracies=str(s.folder / "none.csv")),
    ),
    Refused("a workdir below a file", ("cannot be written", "file/"), under_a_file),
    Refused(
        "a workdir that is read-only",
        ("cannot be written", "/proc/"),
        lambda s: s.run(workdir="/proc/runs"),
    ),
]


def of_features(**changes: Any) -> Callable[[Scene], Any]:
    """Return a run on features of 30 images in 4 dimensions, after changes."""

    def attempt(scene: Scene) -> Any:
        random = np.random.default_rng(0)
        arrays = {
            "features": random.normal(size=(30, 4)).astype(np.float32),
            "labels": np.arange(30) % 3,
            "logits": random.normal(size=(30, 5)).astype(np.float32),
        }
        for name, change in changes.items():
            arrays[name] = change(arrays[name])
        path = scene.folder / "net.npz"
        np.savez(path, **arrays)
        config = features_config.get_config()
        config.features, config.workdir = str(path), str(scene.folder / "runs")
        config.measures = "h_score"
        [row] = run_lib.run(config).rows
        assert row.failure and not row.scores
        # The text of an `InputError`.
        raise InputError(row.failure)

    return attempt


def set_to(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[3, 2] = value
        return array

    return change


FEATURES = [
    Refused("features with NaN", ("1 NaN",), of_features(features=set_to(np.nan))),
    Refused("infinite features", ("infinite",), of_features(features=set_to(np.inf))),
    Refused(
        "constant features", ("30 equal rows",), of_features(features=np.ones_like)
    ),
    Refused(
        "features that are not pooled",
        ("[30, 2, 2]",),
        of_features(features=lambda x: x.reshape(30, 2, 2)),
    ),
    Refused(
        "logits of other images",
        ("30 rows", "29"),
        of_features(logits=lambda x: x[1:]),
    ),
    Refused(
        "logits of the wrong width",
        ("logits must be a matrix", "[30]"),
        of_features(logits=lambda x: x[:, 0]),
    ),
    Refused("logits with NaN", ("logits", "NaN"), of_features(logits=set_to(np.nan))),
    Refused("too few labels", ("[29]",), of_features(labels=lambda y: y[1:])),
    Refused(
        "labels that are no integers",
        ("float64",),
        of_features(labels=lambda y: y + 0.5),
    ),
    Refused("one label", ("two",), of_features(labels=np.zeros_like)),
]

TABLE = [*CHECKPOINTS, *IMAGES, *CONFIGS, *FEATURES]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_input_error_for(row, scene, monkeypatch):
    monkeypatch.setattr(extract, "extract", lambda *a, **k: pytest.fail("extracted"))
    with pytest.raises(InputError) as raised:
        row.attempt(scene)
    message = str(raised.value)
    for text in row.texts:
        assert text in message
    what, *parts = message.splitlines()
    assert 10 < len(what) < 120 and not what.endswith(".")
    named = [part.strip().partition(":")[0] for part in parts]
    for part in ("where", "expected", "found", "to fix"):
        assert named.count(part) == 1, message
    if row not in FEATURES:
        assert not (scene.folder / "runs").exists()
