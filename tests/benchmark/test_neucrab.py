"""The benchmark's data against what is published of it, and its configs."""

import collections

import pytest

from rankckpt_jax import models
from rankckpt_jax.benchmark import neucrab
from rankckpt_jax.configs import caltech, camelyon, flowers, neucrab_task, sun
from rankckpt_jax.errors import InputError

CONFIGS = {"caltech": caltech, "flowers": flowers, "camelyon": camelyon, "sun": sun}


def test_forty_one_entries_are_forty_files_in_three_groups():
    counts = collections.Counter(entry.group for entry in neucrab.CHECKPOINTS)
    assert counts == {"group_i": 16, "group_ii": 12, "group_iii": 13}
    assert len({entry.path for entry in neucrab.CHECKPOINTS}) == 40
    # One file, one name, whatever the group.
    assert len({(entry.path, entry.name) for entry in neucrab.CHECKPOINTS}) == 40
    assert neucrab.groups_of("inat_res50-300000") == ("group_i", "group_ii")
    assert neucrab.groups_of("mine") == ()


def test_every_entry_can_be_read_by_something():
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
            known = models.get(entry.architecture)
            assert entry.image_size == known.image_size


def test_the_places_checkpoint_is_named_as_doubtful():
    doubtful = [e.name for e in neucrab.CHECKPOINTS if "README" in e.note]
    assert doubtful == ["places_res50-300000", "places_res50-200000"]


def test_splits_count_as_published():
    for task in neucrab.TASKS.values():
        assert task.splits.keys() == task.counts.keys() == task.few.keys()
    assert neucrab.TASKS["caltech"].counts == {"train": 2754, "val": 306, "test": 6084}
    totals = {
        name: task.counts["train"] + task.counts["val"]
        for name, task in neucrab.TASKS.items()
    }
    expected = {"caltech": 3060, "flowers": 2040, "camelyon": 294_912, "sun": 87_003}
    assert totals == expected


def test_published_accuracies_are_fractions_of_known_checkpoints():
    assert set(neucrab.PUBLISHED) == {
        name for task in neucrab.TASKS for name in (task, f"{task}_1k")
    }
    names = {entry.name for entry in neucrab.CHECKPOINTS} | {neucrab.SCRATCH}
    for accuracies in neucrab.PUBLISHED.values():
        assert accuracies.keys() <= names and len(accuracies) == 15
        assert all(0 < value < 1 for value in accuracies.values())
    assert neucrab.PUBLISHED["caltech"]["sup-100"] == pytest.approx(0.9411)
    assert neucrab.PUBLISHED["sun_1k"]["vae"] == pytest.approx(0.0449)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_is_the_whole_benchmark_on_its_task(name):
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


def test_the_docstring_says_what_to_run_and_what_it_costs():
    for name, config in CONFIGS.items():
        told = config.__doc__
        assert f"--config=configs/{name}.py" in told
        assert "Expected cost" in told and "Published" in told
        best = 100 * max(neucrab.PUBLISHED[name].values())
        assert f"{best:.2f} % at best" in told


def test_an_unknown_argument_is_refused():
    with pytest.raises(InputError, match="group_iv"):
        neucrab_task.get_config("sun", "group_iv")
