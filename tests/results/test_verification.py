import shlex

import pytest

from rankckpt_jax import short_form
from rankckpt_jax.configs import default, demo, features, folder
from rankckpt_jax.errors import redact
from rankckpt_jax.results import verification
from tests.command_line import parse


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Folders of images, and of checkpoints."""
    for name in ("photos", "my photos", "pool", "other", "-strange", "demo"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)


def config(base=folder, images="photos", checkpoints="pool", **changes):
    made = base.get_config()
    given = {"task.path": images, "checkpoints": checkpoints}
    made.update_from_flattened_dict({**given, **changes})
    return made


SHORT = [
    (config(), "rankckpt photos pool --finetune=2"),
    (
        config(
            measures="logme,leep",
            image_size=96,
            workdir="gs://bucket/runs",
            seed=3,
            **{"task.limit": 100, "finetune.top": 5},
        ),
        "rankckpt photos pool --measures=logme,leep --image-size=96 "
        "--workdir=gs://bucket/runs --seed=3 --config.task.limit=100 --finetune=2",
    ),
    (
        config(default),
        "rankckpt photos pool --config.finetune.recipe=vtab_1k --finetune=2",
    ),
    (
        config(images="my photos", checkpoints="pool,other"),
        "rankckpt 'my photos' pool other --finetune=2",
    ),
    (
        config(checkpoints="pool,nets/*"),
        "rankckpt photos 'pool,nets/*' --finetune=2",
    ),
    (
        config(images="", **{"task.tfds": "caltech101:3.*.*"}),
        "rankckpt 'caltech101:3.*.*' pool --finetune=2",
    ),
    (
        config(checkpoints="", neucrab="group_i"),
        "rankckpt photos --config.neucrab=group_i --finetune=2",
    ),
    (
        config(stages="extract,score,ablate,report"),
        "rankckpt photos pool --config.stages=extract,score,ablate,report --finetune=2",
    ),
    # Scores that are cached cost nothing.
    (config(stages="report"), "rankckpt photos pool --finetune=2"),
]
# Only flags can express these.
LONG = [
    config(images="demo"),
    config(images="-strange"),
    config(default, checkpoints="-strange"),
    config(**{"task.tfds": "caltech101:3.*.*"}),
    config(images="", **{"task.digits": (0, 1)}),
]
VALUES = [
    ("nearest_step", True),
    ("download.limit_gigabytes", 0.1),
    ("download.mirrors", ("https://host/{path}.tar.gz",)),
    ("measure_options.nleep.energy", 0.7),
    ("finetune.learning_rate", (0.1, 0.01)),
    ("finetune.num_steps", 20),
    ("finetune.decay_at", (0.5,)),
    ("finetune.random_flip", False),
    ("finetune.schedule", "cosine"),
    ("task.train", "train[:90%]"),
    ("checkpoints", "a b;$(x)*'\"\\"),
]


def check(made):
    """Assert that the command runs the same config with fine-tuning."""
    command = verification.command(made.to_dict())
    program, *arguments = shlex.split(command)
    assert program == verification.PROGRAM
    expected = made.copy_and_resolve_references()
    stages = made.stages if "extract" in made.stages else default.get_config().stages
    expected.update_from_flattened_dict(short_form.to_fields(finetune=2, stages=stages))
    assert parse(*arguments).config.to_dict() == expected.to_dict()
    return command


@pytest.mark.parametrize(("made", "command"), SHORT)
def test_command_is_the_short_form_if_that_expresses_the_config(made, command):
    assert check(made) == command


@pytest.mark.parametrize("made", LONG)
def test_command_is_the_long_form_otherwise(made):
    command = check(made)
    assert command.startswith("rankckpt --config=configs/")
    assert "--config.finetune.top=2" in command


@pytest.mark.parametrize(("field", "value"), VALUES)
def test_command_sets_any_field(field, value):
    for base in (folder, default):
        check(config(base, **{field: value}))
        check(config(base, images="demo", **{field: value}))


def test_command_is_empty_if_no_command_verifies_the_ranking():
    secret = redact(config(checkpoints="https://user:key@host/a.zip").to_dict())
    assert verification.command(None) == ""
    assert verification.command(secret) == ""
    for made in (
        demo.get_config(),
        config(stages="extract,finetune"),
        config(shard="1/2"),
        config(measures="early_stopping,nleep"),
        config(features, images="", features="x"),
    ):
        assert verification.command(made.to_dict()) == ""
