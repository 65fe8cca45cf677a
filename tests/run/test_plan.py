import dataclasses
import pathlib

import numpy as np
import pytest

from rankckpt_jax import main, models
from rankckpt_jax.benchmark import neucrab
from rankckpt_jax.configs import caltech, camelyon, demo, features, flowers, sun
from rankckpt_jax.configs import folder as folder_config
from rankckpt_jax.devices import mapping, memory, topologies
from rankckpt_jax.devices.work import Analysis, Work
from rankckpt_jax.errors import InputError
from rankckpt_jax.features import extract
from rankckpt_jax.run import plan, plan_phases, plan_text
from rankckpt_jax.run import run as run_lib
from tests.command_line import parse

GB = 10**9


def folder(images, pool, **fields):
    config = folder_config.get_config()
    given = {"task.path": str(images), "checkpoints": str(pool), "image_size": 32}
    options = {"measure_options.nleep.components_per_class": 2}
    config.update_from_flattened_dict({**given, **options, **fields})
    return config


@pytest.fixture
def compiled(monkeypatch):
    """Count what is compiled instead of compiling it."""
    calls = []

    def analyze(function, *args):
        calls.append(getattr(function, "name", ""))
        return Analysis(Work({"bfloat16": 1e9}, 1e6), GB)

    monkeypatch.setattr(plan_phases, "analyze", analyze)
    monkeypatch.setattr(plan_phases, "_ANALYSES", {})
    return calls


def phases(made):
    return {phase.name: phase for phase in made.phases}


def test_make_plans_a_folder_here(image_folder, pool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    # No image and no weights are read.
    monkeypatch.setattr(extract, "extract", None)
    made = plan.make(folder(image_folder, pool), plan.HERE)
    assert sorted(tmp_path.rglob("*")) == before
    assert (made.topology, made.devices) == ("here", mapping.local_device_count())
    assert list(phases(made)) == ["Extraction", "Measures"]
    [row] = phases(made)["Extraction"].rows
    # Both checkpoints share a network.
    assert (row.name, row.size, row.checkpoints) == ("mobilenet_v1_025", 32, 2)
    assert row.verdict == "FITS" and row.largest is None
    # Weights and a batch of images, and not much more.
    assert 2e6 < row.peak_bytes < 1e8
    # 24 images are padded to a batch of 64.
    products = 2 * models.multiply_adds("mobilenet_v1_025", 32) * 64
    assert 0.8 * products < row.work.total_flop <= products
    assert row.seconds == made.peak.seconds(row.work * (1 / made.devices))
    # The training images, at one size.
    assert made.decoded == 24 and made.fits
    names = [row.name for row in phases(made)["Measures"].rows]
    assert names == ["nleep", "2 others", "nleep, 7 logits", "2 others, 7 logits"]
    assert all(row.verdict == "FITS" for row in phases(made)["Measures"].rows)


def test_make_compiles_each_network_once(image_folder, pool, compiled):
    config = folder(image_folder, pool)
    plan.make(config, plan.HERE)
    forward = "features.extract._forward.forward"
    assert compiled.count(forward) == 1
    plan.make(config, plan.HERE)
    assert compiled.count(forward) == 1
    plan.make(folder(image_folder, pool, image_size=64), plan.HERE)
    assert compiled.count(forward) == 2


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"race": True}, "A race extracts a part of the images"),
        ({"features_from": "last,blocks"}, "Every block counts in"),
    ],
)
def test_make_plans_a_subset_and_says_what_it_leaves_out(
    fields, text, image_folder, pool, compiled
):
    made = plan.make(folder(image_folder, pool, score_on=15, **fields), plan.HERE)
    assert phases(made)["Extraction"].about.startswith("15 images")
    assert made.decoded == 15
    assert text in " ".join(plan_text.to_text(made).split())


@pytest.mark.parametrize(
    ("features_from", "dimensions"),
    [("last", [256]), ("blocks", [448]), ("last,blocks", [64, 128, 256])],
)
def test_make_plans_the_features_of_blocks(
    features_from, dimensions, image_folder, pool, compiled
):
    config = folder(image_folder, pool, features_from=features_from, measures="knn")
    rows = phases(plan.make(config, plan.HERE))["Measures"].rows
    # Two checkpoints, one with a classifier. The last block has as many dimensions as
    # the last features.
    assert sorted({row.size for row in rows}) == dimensions
    layers = 4 if features_from == "last,blocks" else 1
    assert sum(row.checkpoints for row in rows) == 2 * layers


def test_make_plans_finetuning(image_folder, pool, compiled):
    fields = {
        "stages": "extract,score,finetune,report",
        "finetune.recipe": "quick",
        "finetune.batch_size": 8,
        "finetune.num_steps": 10,
        "finetune.learning_rate": (0.1, 0.01, 0.001),
        "finetune.choose_after": 1.0,
    }
    made = plan.make(folder(image_folder, pool, **fields), plan.HERE)
    phase = phases(made)["Fine-tuning"]
    assert phase.about.startswith("3 trials, 30 steps of 8 images")
    [row] = phase.rows
    assert row.checkpoints == 2
    # Training images, and test images for the accuracy.
    assert made.decoded == 24 + 12
    # Steps, and 3 x 6 evaluations of the 3 images that are held out of 24.
    steps = 30 + 3 * 6 * 3 / 64
    assert row.work.total_flop == pytest.approx(steps * 1e9 * made.devices)
    best = plan.make(
        folder(image_folder, pool, **fields, **{"finetune.top": 1}), "here"
    )
    assert phases(best)["Fine-tuning"].rows[0].checkpoints == 1
    assert phases(best)["Fine-tuning"].seconds < phase.seconds
    early = plan.make(
        folder(image_folder, pool, **{**fields, "finetune.choose_after": 0.3}), "here"
    )
    # Three rates for 3 steps, and one for 7 more.
    assert phases(early)["Fine-tuning"].about.startswith("3 trials, 16 steps of 8")
    frozen = {**fields, "finetune.frozen": True}
    probe = phases(plan.make(folder(image_folder, pool, **frozen), "here"))
    assert probe["Fine-tuning"].seconds < phase.seconds / 10


@pytest.mark.parametrize(
    ("config", "images", "size", "classes"),
    [
        (caltech, 2754, 6084, 102),
        (camelyon, 262_144, 32_768, 2),
        (flowers, 1020, 6149, 102),
        (sun, 76_128, 21_750, 397),
    ],
)
def test_make_plans_neucrab_without_its_files(
    config, images, size, classes, compiled, tmp_path, monkeypatch
):
    monkeypatch.setenv("RANKCKPT_DOWNLOADS", str(tmp_path))
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path))
    made = plan.make(config.get_config(), plan.HERE)
    splits = made.task.splits
    assert splits["train"].num_examples == images
    assert (splits["test"].num_examples, made.task.num_classes) == (size, classes)
    # Six modules of VTAB have networks that only their graphs define.
    entries = {e.name: e for e in neucrab.CHECKPOINTS}
    assert len(entries) == 40 and len(made.pool.networks) == 34
    unknown = {e.architecture for e in entries.values() if "coder" in e.architecture}
    unknown.add("BigGAN discriminator")
    assert {entries[name].architecture for name in made.pool.unplanned} == unknown
    assert set(made.pool.unplanned.values()) == {"not on this machine"}
    rows = phases(made)["Extraction"].rows
    assert {row.name for row in rows} >= {"resnet_v1_50", "inception_v4"}
    assert sum(row.checkpoints for row in rows) == 34
    text = plan_text.to_text(made)
    assert "Not planned:" in text and "vae" in text


def test_make_plans_vtab_1k(compiled, tmp_path, monkeypatch):
    monkeypatch.setenv("RANKCKPT_DOWNLOADS", str(tmp_path))
    made = plan.make(sun.get_config("1k,group_iii"), plan.HERE)
    counts = {name: split.num_examples for name, split in made.task.splits.items()}
    assert counts == {"train": 800, "val": 200, "trainval": 1000, "test": 21_750}
    assert len(made.pool.networks) == 13 and not made.pool.unplanned


def test_make_names_networks_that_take_larger_images(compiled):
    config = caltech.get_config("group_iii")
    config.image_size = 32
    made = plan.make(config, plan.HERE)
    reason = made.pool.unplanned["imagenet_inception_v3-300000"]
    assert reason.startswith("inception_v3 takes images of at least")
    assert "imagenet_mobilenet_v1-300000" in made.pool.networks


def test_make_plans_the_demo_before_its_pool_exists(compiled, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = plan.make(demo.get_config(), plan.HERE)
    config = demo.get_config()
    others = config.pretrain.other_architectures
    own = len(config.pretrain.stages) + len(config.pretrain.other_supervision)
    trained = sum(step > 0 for step in config.pretrain.stages)
    counts = {config.pretrain.architecture: own, **dict.fromkeys(others, trained)}
    rows = phases(made)["Extraction"].rows
    assert {row.name: row.checkpoints for row in rows} == counts
    assert {row.size for row in rows} == {config.image_size}
    assert "Fine-tuning" in phases(made)
    assert not any(tmp_path.iterdir())


def test_make_plans_features_that_were_extracted_elsewhere(compiled, tmp_path):
    labels = np.arange(40) % 2
    for name in ("one", "two"):
        drawn = np.random.default_rng(0).normal(size=(40, 8))
        np.savez(tmp_path / f"{name}.npz", features=drawn, labels=labels)
    config = features.get_config()
    config.features = str(tmp_path)
    made = plan.make(config, plan.HERE)
    assert list(phases(made)) == ["Measures"] and made.decoded == 0
    assert {(row.size, row.checkpoints) for row in made.phases[0].rows} == {(8, 2)}


def test_make_plans_features_with_several_labels(compiled, tmp_path):
    random = np.random.default_rng(0)
    labels = random.random((40, 3)) < 0.5
    drawn = random.normal(size=(40, 8))
    np.savez(tmp_path / "one.npz", features=drawn, labels=labels)
    config = features.get_config()
    config.features, config.measures = str(tmp_path), "logme,lda"
    config.task.target = "multi_label"
    made = plan.make(config, plan.HERE)
    assert made.task.target == "multi_label"
    # LDA needs classes.
    assert made.phases[0].about == "logme"


def test_make_names_checkpoints_that_cannot_be_planned(image_folder, scene, compiled):
    (scene.pool / "first" / "model.ckpt.index").write_bytes(b"damaged")
    pools = f"{scene.pool},https://tfhub.dev/vtab/sup-100/1"
    made = plan.make(folder(image_folder, pools), plan.HERE)
    assert list(made.pool.networks) == ["second"]
    reasons = made.pool.unplanned
    assert len(reasons) == 2 and reasons["first"]
    [handle] = set(reasons) - {"first"}
    assert "sup-100" in handle and reasons[handle] == "not on this machine"
    text = plan_text.to_text(made)
    assert all(f"- {name}: " in text for name in reasons)


def test_make_finds_the_largest_batch(image_folder, pool, monkeypatch, compiled):
    small = mapping.local_device_count()

    def analyze(function, *args):
        images = args[-1]
        if not hasattr(images, "shape") or len(images.shape) != 5:
            return Analysis(Work(), 0)
        peak = 100.0 + images.shape[0] * images.shape[1]
        return Analysis(Work({"bfloat16": 1e9}), peak, peak > 150)

    monkeypatch.setattr(plan_phases, "analyze", analyze)
    made = plan.make(folder(image_folder, pool), plan.HERE)
    assert [row.verdict for row in phases(made)["Extraction"].rows] == ["OOM"]
    # 64 images do not fit, and nothing else is known of the memory.
    assert not made.fits
    limited = dataclasses.replace(made.peak, memory=150.0)
    monkeypatch.setattr(plan.peaks, "of_target", lambda: limited)
    monkeypatch.setattr(plan_phases, "_ANALYSES", {})
    made = plan.make(folder(image_folder, pool), plan.HERE)
    [row] = phases(made)["Extraction"].rows
    assert row.largest == memory.LargestBatch(50 // small * small, True)
    text = plan_text.to_text(made)
    assert "Extraction of mobilenet_v1_025 runs out of memory" in text
    assert f"--config.batch_size={row.largest.size}" in text


@pytest.mark.parametrize("name", ["v5e", "tpu", "v5litepod-8", "v9:2x2", "h100:8"])
def test_make_rejects_an_unknown_topology(image_folder, pool, name):
    if ":" in name:
        pytest.importorskip("libtpu")
    with pytest.raises(InputError) as caught:
        plan.make(folder(image_folder, pool), name)
    message = str(caught.value)
    assert f"Unknown topology {name!r}" in message
    assert "v5e:2x4" in message and "h200:8" in message and "--plan=here" in message


def test_make_names_the_missing_compiler(image_folder, pool, monkeypatch):
    monkeypatch.setattr(topologies.importlib.util, "find_spec", lambda name: None)
    for name, extra in (("v5e:2x4", "tpu"), ("h200:8", "cuda")):
        with pytest.raises(InputError, match="No compiler for") as caught:
            plan.make(folder(image_folder, pool), name)
        assert f"pip install 'rankckpt_jax[{extra}]'" in str(caught.value)


def test_make_names_a_data_set_of_unknown_size(pool, tmp_path):
    config = folder("", pool)
    config.task.path, config.task.tfds = "", "caltech101:3.*.*"
    config.task.train, config.task.data_dir = "train[:50%]", str(tmp_path)
    config.task.test = "no_such_split"
    with pytest.raises(InputError, match="number of images of 'caltech101"):
        plan.make(config, plan.HERE)


def test_make_rejects_a_bad_config(image_folder, pool):
    with pytest.raises(InputError, match="nleeep"):
        plan.make(folder(image_folder, pool, measures="nleeep"), "v5e:2x4")


def test_make_plans_for_absent_gpus(image_folder, pool):
    """The compiler counts no traffic for CUDA; that of products stands for it."""
    pytest.importorskip("jax_cuda12_plugin")
    made = plan.make(folder(image_folder, pool, measures="h_score"), "h200:8")
    assert made.devices == 8 and made.peak.flops["bfloat16"] == 989e12
    [row] = phases(made)["Extraction"].rows
    assert row.verdict == "FITS" and row.work.bytes > 0
    assert set(row.work.flop) == {"bfloat16"}


def test_make_plans_for_absent_devices(image_folder, pool):
    pytest.importorskip("libtpu")
    made = plan.make(folder(image_folder, pool, measures="h_score"), "v5e:2x4")
    assert (made.devices, made.peak.name) == (8, "TPU v5 lite")
    [row] = phases(made)["Extraction"].rows
    assert row.verdict == "FITS" and 1e6 < row.peak_bytes < GB
    # bfloat16 is the default of a TPU.
    assert set(row.work.flop) == {"bfloat16"}
    # The compiler counts traffic that the products alone do not have.
    assert row.work.bytes > 0 and row.seconds < 1
    assert "8 x TPU v5 lite" in plan_text.to_text(made)
    # Programs are made for this machine again.
    assert plan.target.absent_devices() == ()


def test_main_prints_a_plan(image_folder, pool, capsys, monkeypatch, compiled):
    monkeypatch.setattr(mapping, "split_cpu_devices", lambda: None)
    monkeypatch.setattr(main, "_configure_logging", lambda: None)
    monkeypatch.setattr(run_lib, "run", None)
    command = parse(str(image_folder), str(pool), "--plan=here", "--image-size=32")
    assert command.plan == "here"
    assert main.main(command) == 0
    text = capsys.readouterr().out
    for part in ("Plan of images for here", "Extraction", "Measures", "The pool:"):
        assert part in text
    assert max(map(len, text.splitlines())) <= 120
    # A program that does not fit gives exit code 1, and an unusable plan 2.
    refused = Analysis(Work(), float("inf"), is_refused=True)
    monkeypatch.setattr(plan_phases, "analyze", lambda *_: refused)
    monkeypatch.setattr(plan_phases, "_ANALYSES", {})
    assert main.main(command) == 1
    assert "runs out of memory at any batch" in capsys.readouterr().out
    assert main.main(dataclasses.replace(command, plan="v5e")) == 2
    assert "Error: Unknown topology 'v5e'" in capsys.readouterr().err


def test_plan_states_the_cost_of_decoding_in_the_docs():
    page = pathlib.Path(__file__).parents[2] / "docs" / "performance.md"
    milliseconds = 1e3 * plan_text.DECODING_SECONDS
    assert f"takes about {milliseconds:g} ms per image" in page.read_text().replace(
        "\n", " "
    )


def test_analyses_of_different_programs_are_not_mixed(image_folder, pool, compiled):
    plan.make(folder(image_folder, pool), plan.HERE)
    count = len(compiled)
    plan.make(folder(image_folder, pool, dtype="bfloat16"), plan.HERE)
    assert len(compiled) == count + 1
