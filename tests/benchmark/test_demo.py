"""The demo's pool: its checkpoints, their groups, and what they are trained on."""

import collections

import numpy as np
import pytest
from etils import epath

from rankckpt_jax import checkpoints
from rankckpt_jax.benchmark import demo, neucrab
from rankckpt_jax.configs import demo as demo_config
from rankckpt_jax.data import tasks
from rankckpt_jax.data.image_cache import open_cache
from rankckpt_jax.errors import InputError
from rankckpt_jax.run import pool
from tests import faults


def settings(**fields):
    changed = demo_config.get_config().pretrain
    changed.update(fields)
    return changed


def images(split):
    return np.stack([example.read() for example in split.examples(None, 0, 1, 0)])


@pytest.fixture(scope="module")
def train():
    return tasks.from_digits((5, 6, 7, 8, 9)).splits["train"]


def test_checkpoints_are_neucrab_in_miniature():
    made = demo.checkpoints(settings())
    assert 8 <= len(made) <= 12
    assert len({checkpoint.name for checkpoint in made}) == len(made)
    groups = {group: [c for c in made if group in c.groups] for group in neucrab.GROUPS}
    # A rank correlation within a group needs three checkpoints.
    assert all(len(members) >= 3 for members in groups.values())
    mixed, stages, networks = groups.values()
    assert {(c.supervision, c.steps > 0) for c in mixed} == {
        (demo.LABELS, False),
        (demo.LABELS, True),
        (demo.ROTATION, True),
        (demo.RANDOM_LABELS, True),
    }
    assert len({c.architecture for c in mixed + stages}) == 1
    assert [c.steps for c in stages] == sorted({c.steps for c in stages})
    assert len({c.architecture for c in networks}) >= 2
    assert {c.supervision for c in networks} == {demo.LABELS}
    assert [c.steps for c in networks] == 2 * [c.steps for c in stages if c.steps]


def test_members_of_the_demo_have_its_groups(tmp_path):
    config = demo_config.get_config()
    config.workdir = str(tmp_path)
    members = pool.members(config, ("pretrain",))
    made = demo.checkpoints(config.pretrain)
    assert [m.name for m in members] == [c.name for c in made]
    assert [m.group for m in members] == [", ".join(c.groups) for c in made]
    assert members[0].spec == f"{tmp_path}/pretrained/random_weights/model.ckpt"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"other_supervision": ("rotations",)}, "config.pretrain.other_supervision"),
        ({"other_architectures": ("mobilenet_v9",)}, "mobilenet_v9"),
        ({"stages": ()}, "config.pretrain.stages"),
        ({"stages": (0,)}, "config.pretrain.stages"),
        ({"stages": (-1, 5)}, "config.pretrain.stages"),
    ],
)
def test_checkpoints_raises_on_unusable_settings(fields, message):
    with pytest.raises(InputError, match=message):
        demo.checkpoints(settings(**fields))


def test_supervise_keeps_images_and_labels(train):
    assert demo.supervise(train, demo.LABELS, 5, seed=0) is train


def test_supervise_rotates_by_the_label(train):
    rotated = demo.supervise(train, demo.ROTATION, 5, seed=0)
    undone = [
        np.rot90(image, -label)
        for image, label in zip(images(rotated), rotated.labels, strict=True)
    ]
    assert np.array_equal(undone, images(train))
    counts = collections.Counter(rotated.labels.tolist())
    # Each with probability 1/4; 40 is four standard deviations of the count.
    assert sorted(counts) == [0, 1, 2, 3]
    assert all(abs(n - train.num_examples / 4) < 40 for n in counts.values())


def test_supervise_draws_random_labels(train):
    drawn = demo.supervise(train, demo.RANDOM_LABELS, 5, seed=0)
    assert np.array_equal(images(drawn), images(train))
    counts = np.bincount(drawn.labels, minlength=5)
    assert len(counts) == 5 and np.abs(counts - train.num_examples / 5).max() < 40
    # They equal the labels as often as chance: a fifth, with deviation 0.02.
    assert abs(np.mean(drawn.labels == train.labels) - 0.2) < 0.08
    again = demo.supervise(train, demo.RANDOM_LABELS, 5, seed=0)
    other = demo.supervise(train, demo.RANDOM_LABELS, 5, seed=1)
    assert drawn.fingerprint == again.fingerprint != other.fingerprint


def test_pretrain_trains_each_supervision_and_caches_it(tmp_path, caplog):
    # The programs of the small demo.
    config = faults.config(tmp_path, faults.SMALL)
    config.pretrain.stages = (0, 2)
    config.pretrain.other_supervision = (demo.RANDOM_LABELS,)
    directory = epath.Path(config.checkpoints)

    def pretrain():
        demo.pretrain(
            directory,
            config.pretrain,
            image_size=config.image_size,
            seed=config.seed,
            preprocess=config.preprocess,
            cache=open_cache(config.image_cache, None),
        )

    pretrain()
    made = demo.checkpoints(config.pretrain)
    assert {path.name for path in directory.iterdir()} == {c.name for c in made}
    params = {
        c.name: checkpoints.load(demo.path(directory, c)).variables["params"]
        for c in made
    }
    # Random weights have no classifier, and the two runs differ.
    assert "logits" not in params["random_weights"]
    trained, randomly = (
        np.asarray(params[name]["logits"]["kernel"])
        for name in ("labels_2", "random_labels_2")
    )
    assert np.isfinite(trained).all() and trained.any()
    assert (trained != randomly).any()
    caplog.clear()
    with caplog.at_level("INFO"):
        pretrain()
    assert caplog.text.count("loaded cached checkpoints") == 2
    assert "saved" not in caplog.text
