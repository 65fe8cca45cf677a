"""The pools of other benchmarks agree with the published figures."""

import collections
import csv

import numpy as np
import pytest

from rankckpt_jax.benchmark import published, standard
from rankckpt_jax.checkpoints.sources import keras_applications
from rankckpt_jax.configs import hf
from rankckpt_jax.configs import standard as config
from rankckpt_jax.errors import InputError
from rankckpt_jax.run import pool
from rankckpt_jax.run import run as run_lib


def count(name):
    return sum(len(entry.accuracies) for entry in standard.checkpoints(name))


def test_checkpoints_have_the_published_accuracies():
    sizes = {name: len(standard.checkpoints(name)) for name in standard.POOLS}
    assert sizes == {"sfda_group1": 11, "sfda_group2": 12, "keras19": 19, "hf": 43}
    counts = {name: count(name) for name in standard.POOLS}
    assert counts == {
        "sfda_group1": 121,
        "sfda_group2": 132,
        "keras19": 171,
        "hf": 41 + 24 + 41 + 43,
    }
    for name, of_pool in standard.POOLS.items():
        tasks = {f"{of_pool.family}_{task}" for task in standard.TASKS[of_pool.family]}
        for entry in standard.checkpoints(name):
            assert entry.accuracies.keys() <= tasks and entry.source and entry.weights
            assert all(0 < value < 1 for value in entry.accuracies.values())
        if name != "hf":
            assert count(name) == len(tasks) * len(standard.checkpoints(name))


def test_names_are_unique_within_a_task():
    families = collections.defaultdict(list)
    for name, of_pool in standard.POOLS.items():
        families[of_pool.family] += [e.name for e in standard.checkpoints(name)]
    assert len(families["sfda"]) == 23
    assert all(len(set(names)) == len(names) for names in families.values())
    loaded = [e.load for name in standard.POOLS for e in standard.checkpoints(name)]
    assert len(set(loaded)) == len(loaded)


def test_source_accuracies_are_those_of_torchvision_only():
    for name in standard.POOLS:
        for entry in standard.checkpoints(name):
            known = entry.source_accuracy is not None
            assert known == entry.load.startswith("torchvision:")


def test_networks_of_keras_exist():
    for entry in standard.checkpoints("keras19"):
        name = entry.load.removeprefix(f"{keras_applications.SCHEME}:")
        assert keras_applications.names(name) == (name,)
        assert name.lower().removesuffix("large") == entry.name


def test_file_is_empty_for_networks_of_a_hub():
    files = {e.name: e.file for e in standard.checkpoints("sfda_group2")}
    assert files["byol"] == "byol.pth"
    assert not any(e.file for e in standard.checkpoints("hf"))


@pytest.mark.shared
def test_accuracies_equal_the_collected_figures(shared):
    def read(name):
        with (shared / "data" / f"published_{name}.csv").open() as file:
            return list(csv.DictReader(file))

    found = {
        (entry.name, task): value
        for name in standard.POOLS
        for entry in standard.checkpoints(name)
        for task, value in entry.accuracies.items()
    }
    sfda = {
        (row["model"], f"sfda_{row['dataset']}"): float(row["accuracy"]) / 100
        for row in read("accuracies_sfda")
    }
    keras = {
        (row["checkpoint"], f"keras19_{row['task']}"): float(row["accuracy"])
        for row in read("scores_stable_transfer")
    }
    names = {"oxford_flowers102": "flowers102", "patch_camelyon": "camelyon"}
    hub = {
        (
            row["model"].replace("/", "_"),
            f"hf_{names.get(row['dataset'], row['dataset'])}",
        ): float(row["accuracy"])
        for row in read("accuracies_hf_vtab1k")
        if row["same_settings"] == "1"
    }
    of_hub = {key: value for key, value in found.items() if key[1].startswith("hf_")}
    loadable = {name for name, _ in of_hub}
    hub = {key: value for key, value in hub.items() if key[0] in loadable}
    expected = {**sfda, **keras, **hub}
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        # The hub's accuracies are float32 and kept to six digits.
        assert found[key] == pytest.approx(value, abs=1e-6)


def test_load_accuracies_selects_the_pool_by_the_task():
    found, source = published.load_accuracies("published", "sfda_pets")
    assert len(found) == 23 and found["resnet50"] == 0.9388
    assert "SFDA@3b7edf76 tw_group1.py" in source and "tw_group2.py" in source
    found, source = published.load_accuracies("published", "keras19_dtd")
    assert len(found) == 19 and "stable_transfer" in source
    # VTAB's accuracies of NeuCRaB stay.
    assert published.load_accuracies("published", "caltech")[1] == published.SOURCE


def test_configs_name_pool_task_and_images():
    for name, of_pool in standard.POOLS.items():
        for task, data in standard.TASKS[of_pool.family].items():
            made = (
                hf.get_config(task)
                if name == "hf"
                else config.get_config(f"{name},{task}")
            )
            assert made.pool == name and made.task.tfds == data.tfds
            assert standard.accuracies(made.task.name)[0]
            assert made.accuracies == "published" and "finetune" not in made.stages
            assert made.image_size == (0 if name == "hf" else 224)
    assert config.get_config().task.name == "sfda_pets"
    assert hf.get_config().task.train == "train[:800]"
    both = config.get_config("sfda_group1, sfda_group2, dtd")
    assert both.pool == "sfda_group1,sfda_group2"
    assert both.task.train == "train+validation"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("sfda_group1,pet", "did you mean 'pets'"),
        ("sfda_group3,pets", "sfda_group1"),
        ("sfda_group1,keras19", "cannot be ranked together"),
        ("keras19,dtd,sun397", "at most one data set"),
        ("pets", "for example sfda_group1,pets"),
    ],
)
def test_config_refuses_other_arguments(argument, message):
    with pytest.raises(InputError, match=message):
        config.get_config(argument)


def test_members_look_for_files_of_the_self_supervised_networks(tmp_path, caplog):
    made = config.get_config("sfda_group2")
    with pytest.raises(InputError, match=r"moco-v2.pth: weights of https://dl.fb"):
        pool.members(made)
    (tmp_path / "byol.pth").write_bytes(b"")
    made.checkpoints = str(tmp_path)
    members = {member.name: member for member in pool.members(made)}
    assert len(members) == 12 and "11 files of the pool are missing" in caplog.text
    assert members["byol"].spec == f"{tmp_path}/byol.pth#model=resnet50"
    with pytest.raises(InputError, match="swav.pth: weights of https"):
        members["swav"].load()


def test_members_are_named_and_described_by_the_data():
    members = {m.name: m for m in pool.members(config.get_config("sfda_group1"))}
    assert members["resnet34"].spec == "torchvision:resnet34.IMAGENET1K_V1"
    assert members["resnet34"].facts == {"source_accuracy": 73.314}
    assert members["resnet34"].group == "sfda_group1"
    with pytest.raises(InputError, match="did you mean 'keras19'"):
        made = config.get_config("keras19")
        made.pool = "keras"
        pool.check(made)


def test_run_evaluates_scores_on_published_accuracies(tmp_path):
    """Features whose classes lie apart by the published accuracy rank perfectly."""
    published_accuracies, _ = standard.accuracies("sfda_pets")
    random = np.random.default_rng(0)
    labels = np.arange(60) % 3
    noise = random.normal(size=(60, 4))
    means = np.eye(3, 4)[labels]
    for entry in standard.checkpoints("sfda_group1"):
        separation = 10 * published_accuracies[entry.name] - 7
        np.savez(
            tmp_path / f"{entry.name}.npz",
            features=(noise + separation * means).astype(np.float32),
            labels=labels,
        )
    made = config.get_config("sfda_group1,pets")
    made.features = str(tmp_path / "*.npz")
    made.measures, made.stages = "h_score", "score,report"
    made.workdir = str(tmp_path / "runs")
    ranking = run_lib.run(made)
    assert len(ranking.evaluated_rows("h_score")) == 11
    assert ranking.evaluation["h_score"]["kendall"] == pytest.approx(1)
    row = ranking.best
    assert row.checkpoint == max(
        (e.name for e in standard.checkpoints("sfda_group1")),
        key=published_accuracies.get,
    )
    assert "SFDA@3b7edf76" in row.accuracy_source
