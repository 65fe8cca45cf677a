"""NeuCRaB's data and configs agree with the publication."""

import collections

import pytest

from rankckpt_jax import models
from rankckpt_jax.benchmark import neucrab, published
from rankckpt_jax.configs import caltech, camelyon, flowers, neucrab_task, sun
from rankckpt_jax.errors import InputError

CONFIGS = {"caltech": caltech, "flowers": flowers, "camelyon": camelyon, "sun": sun}


def test_checkpoints_are_40_files_in_three_groups():
    counts = collections.Counter(entry.group for entry in neucrab.CHECKPOINTS)
    assert counts == {"group_i": 16, "group_ii": 12, "group_iii": 13}
    assert len({entry.path for entry in neucrab.CHECKPOINTS}) == 40
    # One name per file, also for a file in two groups.
    assert len({(entry.path, entry.name) for entry in neucrab.CHECKPOINTS}) == 40
    assert neucrab.groups_of("inat_res50-300000") == ("group_i", "group_ii")
    assert neucrab.groups_of("mine") == ()


def test_checkpoints_have_a_source_and_a_known_architecture():
    for entry in neucrab.CHECKPOINTS:
        assert entry.group in neucrab.GROUPS
        if entry.source == "hub":
            assert entry.path == f"https://tfhub.dev/vtab/{entry.name}/1"
            assert entry.image_size in (128, 224)
            assert entry.input_range == (0.0, 1.0)
        else:
            assert entry.source == "slim"
            assert entry.path.endswith(f"-{entry.steps}")
        if entry.group == "group_iii":
            assert entry.image_size == models.get(entry.architecture).image_size


def test_places_checkpoints_have_a_note():
    noted = [e.name for e in neucrab.CHECKPOINTS if "README" in e.note]
    assert noted == ["places_res50-300000", "places_res50-200000"]


def test_tasks_have_the_published_counts():
    for task in neucrab.TASKS.values():
        assert task.splits.keys() == task.counts.keys() == task.few.keys()
    assert neucrab.TASKS["caltech"].counts == {"train": 2754, "val": 306, "test": 6084}
    totals = {
        name: task.counts["train"] + task.counts["val"]
        for name, task in neucrab.TASKS.items()
    }
    expected = {"caltech": 3060, "flowers": 2040, "camelyon": 294_912, "sun": 87_003}
    assert totals == expected


def test_accuracies_are_fractions_of_known_checkpoints():
    assert set(published.ACCURACIES) == {
        name for task in neucrab.TASKS for name in (task, f"{task}_1k")
    }
    names = {entry.name for entry in neucrab.CHECKPOINTS} | {published.SCRATCH}
    for accuracies in published.ACCURACIES.values():
        assert accuracies.keys() <= names and len(accuracies) == 15
        assert all(0 < value < 1 for value in accuracies.values())
    assert published.ACCURACIES["caltech"]["sup-100"] == pytest.approx(0.9411)
    assert published.ACCURACIES["sun_1k"]["vae"] == pytest.approx(0.0449)


@pytest.mark.parametrize("name", CONFIGS)
def test_get_config_covers_the_benchmark(name):
    config = CONFIGS[name].get_config()
    assert config.neucrab == "group_i,group_ii,group_iii"
    assert config.task.tfds == neucrab.TASKS[name].tfds
    assert {role: config.task[role] for role in ("train", "val", "test")} == dict(
        neucrab.TASKS[name].splits
    )
    assert config.finetune.recipe == "neucrab"
    few = CONFIGS[name].get_config("group_iii,1k")
    assert few.neucrab == "group_iii" and few.task.name == f"{name}_1k"
    assert few.task.train == "train[:800]" and few.finetune.recipe == "vtab_1k"
    assert CONFIGS[name].get_config("smoke").task.limit == 64


def test_docstrings_name_command_cost_and_result():
    for name, config in CONFIGS.items():
        text = config.__doc__
        assert f"--config=configs/{name}.py" in text
        assert "Expected cost" in text and "Result:" in text
        best = 100 * max(published.ACCURACIES[name].values())
        assert f"{best:.2f} % at best" in text


def test_get_config_raises_for_unknown_argument():
    with pytest.raises(InputError, match="group_iv"):
        neucrab_task.get_config("sun", "group_iv")
