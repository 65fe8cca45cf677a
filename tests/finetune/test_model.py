"""Fine-tuned models of every kind of checkpoint: kept, loaded, applied and exported."""

import dataclasses
import json
import shutil
import subprocess
import sys
import types

import jax
import jax.export
import numpy as np
import pytest
from etils import epath

from rankckpt_jax import checkpoints, finetune
from rankckpt_jax.checkpoints import model_directory, network_files
from rankckpt_jax.data import metrics, preprocess, targets, tasks
from rankckpt_jax.errors import InputError
from rankckpt_jax.finetune import predict, serving, weights
from tests.checkpoints import modules
from tests.finetune import RECIPE, settings

SHORT = dataclasses.replace(RECIPE, num_steps=3, evaluations=1)
PROBE = dataclasses.replace(SHORT, frozen=True)


def load_native(pool, folder):
    return checkpoints.load(pool / "first", image_size=32), PROBE


def load_graph(pool, folder):
    signatures = {"default": {"default": "pooled"}}
    modules.export_tf1(folder / "module", modules.small, 24, signatures=signatures)
    # All weights are trained, because this network compiles quickly.
    return checkpoints.load_hub(folder / "module", image_size=24), SHORT


def load_torch(pool, folder):
    timm = pytest.importorskip("timm", reason="needs the extra torch")
    torch = pytest.importorskip("torch", reason="needs the extra torch")
    torch.manual_seed(0)
    module = timm.create_model("test_resnet", num_classes=5)
    torch.save(module.state_dict(), folder / "net.pth")
    spec = f"{folder}/net.pth#model=test_resnet"
    return checkpoints.load(spec, image_size=32, torch_engine="jax"), PROBE


def tune(backbone, task, recipe, folder):
    """Fine-tune and save; return the paths, the result and the loaded model."""
    known = settings()
    arguments = epath.Path(folder / "finetune"), backbone, task, recipe
    result = finetune.run(*arguments, **known, keep_weights=True)
    prepared = finetune.prepare(*arguments, **known, keep_weights=True)
    made = finetune.make_model(
        backbone,
        finetune.load_weights(prepared, result, "small"),
        task,
        preprocess="vtab",
        dtype="float32",
        scale=(0.0, 1.0),
    )
    directory = epath.Path(folder / "model")
    facts = {"test": {"accuracy": result.accuracy}}
    finetune.save_model(directory, {"a": 1}, made, facts, serving.export(made))
    return types.SimpleNamespace(
        directory=directory,
        prepared=prepared,
        result=result,
        model=finetune.load_model(directory),
        backbone=backbone,
    )


@pytest.fixture(scope="module", params=[load_native, load_graph, load_torch])
def kept(request, pool, task, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    return tune(*_with_task(request.param(pool, folder), task), folder)


def _with_task(loaded, task):
    backbone, recipe = loaded
    return backbone, task, recipe


def resized(task, size):
    split = task.splits["test"]
    images = [example.read() for example in split.examples(None, 0, 1, 0)]
    return np.stack([preprocess.resize(image, size, "vtab") for image in images])


def test_predict_agrees_with_the_evaluation_of_fine_tuning(kept, task):
    split = task.splits["test"]
    images = resized(task, kept.model.backbone.image_size)
    predictions = predict.predict(kept.model, images)
    assert predictions.class_names == task.class_names
    np.testing.assert_allclose(predictions.probabilities.sum(axis=1), 1, rtol=1e-12)
    positions = [task.class_names.index(name) for name in predictions.classes]
    assert np.mean(positions == split.labels) == kept.result.accuracy
    # The logarithm orders images as the logits do, up to a constant per image.
    values = metrics.compute(
        np.log(predictions.probabilities).astype(np.float32), split.labels, "classes"
    )
    assert values == pytest.approx(dict(kept.result.values), abs=1e-6)


def test_load_returns_a_backbone_with_the_new_head(kept, task):
    backbone = checkpoints.load(kept.directory)
    assert backbone.num_source_classes == 2
    assert backbone.own_preprocess == "vtab"
    assert type(backbone.apply) is type(kept.backbone.apply)
    images = resized(task, backbone.image_size)[:4]
    scaled = preprocess.to_input_range(
        images, *preprocess.scaling(backbone.input_range, backbone.input_mean)
    )
    output = jax.jit(backbone.apply)(backbone.variables, scaled)
    expected = predict.predict(kept.model, images).probabilities
    # Another program, whose sums have another order.
    np.testing.assert_allclose(jax.nn.softmax(output.logits), expected, atol=1e-5)
    other = checkpoints.load(kept.directory, image_size=16)
    assert "keeps its images" in other.warnings["image_size"]
    # It can be trained again: its head is replaced.
    finetune.initial_state(backbone, 3)


def test_export_gives_the_same_probabilities_for_any_batch(kept, task):
    program = (kept.directory / model_directory.SERVING).read_bytes()
    exported = jax.export.deserialize(bytearray(program))
    assert exported.platforms == serving.PLATFORMS
    images = resized(task, kept.model.backbone.image_size)
    expected = predict.predict(kept.model, images).probabilities
    for count in (1, 5):
        probabilities = exported.call(images[:count])
        # float32 sums in another order.
        np.testing.assert_allclose(probabilities, expected[:count], atol=1e-5)


def test_load_weights_trains_again_without_stored_weights(kept, caplog):
    expected = finetune.load_weights(kept.prepared, kept.result, "net")
    weights.remove(kept.prepared.context.directory)
    with caplog.at_level("INFO"):
        again = finetune.load_weights(kept.prepared, kept.result, "net")
    assert "training it again (3 steps" in caplog.text
    jax.tree.map(np.testing.assert_array_equal, again, expected)


@pytest.fixture(scope="module")
def native(pool, task, tmp_path_factory):
    folder = tmp_path_factory.mktemp("native")
    return tune(*_with_task(load_native(pool, folder), task), folder)


@pytest.mark.multiprocess
def test_serving_program_needs_no_package(native, task, tmp_path):
    images = resized(task, 32)
    np.save(tmp_path / "images.npy", images)
    program = f"""
import sys
import jax.export
import numpy as np
with open({str(native.directory / "serving.bin")!r}, "rb") as file:
    model = jax.export.deserialize(bytearray(file.read()))
images = np.load({str(tmp_path / "images.npy")!r})
np.save({str(tmp_path / "out.npy")!r}, np.asarray(model.call(images)))
names = {{name.partition(".")[0] for name in sys.modules}}
assert not names & {{"rankckpt_jax", "flax", "tensorflow", "torch"}}, names
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)
    expected = predict.predict(native.model, images).probabilities
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["model.json", "serving.bin", "manifest.json"])
def test_load_model_refuses_a_damaged_file(native, tmp_path, name):
    copy = epath.Path(tmp_path / "copy")
    shutil.copytree(native.directory, copy)
    file = copy / name
    file.write_bytes(file.read_bytes().replace(b"1", b"2", 1)[:-1] + b"x")
    with pytest.raises(InputError, match="is damaged"):
        finetune.load_model(copy)


def test_load_model_refuses_other_directories(tmp_path, pool):
    with pytest.raises(InputError, match=r"No fine-tuned model(.|\n)*nothing"):
        finetune.load_model(tmp_path / "absent")
    with pytest.raises(InputError, match="No fine-tuned model"):
        finetune.load_model(pool / "first")


def test_load_refuses_a_description_that_loads_other_files(native, tmp_path):
    described = {
        "spec": {"library": "timm", "name": "hf-hub:someone/net", "arguments": []},
    }
    with pytest.raises(InputError, match="description of a PyTorch network"):
        network_files.rebuild(
            epath.Path(tmp_path),
            {"backbone": {"architecture": "net"}, "torch": described},
            {},
        )


def test_check_refuses_networks_in_memory(backbone):
    with pytest.raises(InputError, match="cannot be kept(.|\n)*FILE.pth#model=NAME"):
        network_files.check(backbone.apply, "net")


def test_model_json_describes_the_model(native, task):
    card = json.loads((native.directory / "model.json").read_text())
    assert card["classes"] == ["top", "bottom"]
    assert card["preprocessing"]["resize"] == "vtab"
    assert card["preprocessing"]["image_size"] == 32
    assert card["versions"]["jax"] == jax.__version__


def split_of(target):
    random = np.random.default_rng(1)

    def split(name, count):
        bright = random.integers(0, 2, (count, 2)).astype(bool)
        images = random.integers(0, 90, (count, 24, 24, 3))
        images[:, :12] += 150 * bright[:, 0, None, None, None]
        images[:, 12:] += 150 * bright[:, 1, None, None, None]
        labels = bright if target == "multi_label" else 7.0 + 3 * bright.sum(axis=1)
        return tasks.array_split(name, images.astype(np.uint8), labels, target)

    return {"train": split("train", 32), "test": split("test", 21)}


@pytest.mark.parametrize("target", ["multi_label", "regression"])
def test_predict_of_other_targets(pool, tmp_path, target):
    names = ("up", "down") if target == "multi_label" else ()
    task = tasks.Task("t", names, split_of(target), "made up", target=target)
    backbone, recipe = load_native(pool, tmp_path)
    recipe = dataclasses.replace(recipe, num_steps=30)
    known = settings()
    arguments = epath.Path(tmp_path / "finetune"), backbone, task, recipe
    result = finetune.run(*arguments, **known, keep_weights=True)
    prepared = finetune.prepare(*arguments, **known, keep_weights=True)
    train, test = task.splits["train"], task.splits["test"]
    scale = targets.scale(train.labels, target)
    made = finetune.make_model(
        backbone,
        finetune.load_weights(prepared, result, "net"),
        task,
        preprocess="vtab",
        dtype="float32",
        scale=scale,
    )
    images = resized(task, 32)
    predictions = predict.predict(made, images)
    exported = jax.export.deserialize(bytearray(serving.export(made)))
    if target == "regression":
        numbers = predictions.numbers
        assert metrics.compute(numbers, test.labels, target) == pytest.approx(
            dict(result.values), abs=1e-5
        )
        np.testing.assert_allclose(exported.call(images), numbers, rtol=1e-4)
    else:
        probabilities = predictions.probabilities
        values = metrics.compute(probabilities, test.labels, target)
        assert values == pytest.approx(dict(result.values), abs=1e-6)
        np.testing.assert_allclose(exported.call(images), probabilities, atol=1e-5)
        chosen = [
            tuple(n for n, p in zip(names, row, strict=True) if p >= 0.5)
            for row in probabilities
        ]
        assert predictions.labels == tuple(chosen) and not predictions.classes
