import json
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from etils import epath

from rankckpt_jax import checkpoints
from rankckpt_jax.checkpoints import backbone as backbone_lib
from rankckpt_jax.checkpoints.sources import slim
from rankckpt_jax.checkpoints.tensorflow_files import checkpoint_files, table
from rankckpt_jax.errors import InputError
from rankckpt_jax.models import layers
from tests import slim_golden

NAME = "mobilenet_v1_025"
ROOT = "MobilenetV1/"


def _head(classes, width=256):
    weights, biases = (f"{ROOT}Logits/Conv2d_1c_1x1/{n}" for n in ("weights", "biases"))
    return {
        weights: slim_golden.draw(weights, (1, 1, width, classes)),
        biases: slim_golden.draw(biases, (classes,)),
    }


@pytest.mark.shared
@pytest.mark.parametrize(
    "name",
    [
        "mobilenet_v1_0.25_128",
        "mobilenet_v1_0.25_224",
        "mobilenet_v1_0.50_160",
        "mobilenet_v1_0.75_128",
    ],
)
def test_load_matches_tensorflow_on_real_checkpoints(shared, name):
    folder = shared / "real" / "checkpoints" / name
    reference = np.load(folder / "reference_tf_outputs.npz")
    kind = json.loads((folder / "PROVENANCE.json").read_text())["kind"]
    backbone = checkpoints.load(folder)
    assert backbone.name == name
    assert backbone.image_size == int(name[-3:])
    assert backbone.num_source_classes == 1001
    output = jax.jit(backbone.apply)(backbone.variables, reference["input"])
    limit = 2e-4 if kind == "float_exact" else 2e-3
    scale = np.abs(reference["logits"]).max()
    for found, expected in (
        (output.features, reference["features"]),
        (output.logits, reference["logits"]),
    ):
        assert np.abs(found - expected).max() <= limit * scale


def test_save_slim_inverts_load(tmp_path):
    first = checkpoints.load(slim_golden.write(NAME, tmp_path / "a", _head(10)))
    checkpoints.save_slim(NAME, first.variables, tmp_path / "b" / "model.ckpt")
    again = checkpoints.load(tmp_path / "b")
    assert jax.tree.structure(first.variables) == jax.tree.structure(again.variables)
    jax.tree.map(np.testing.assert_array_equal, first.variables, again.variables)
    assert (again.num_source_classes, again.feature_dim) == (10, 256)
    assert checkpoint_files.shapes(again.source) == checkpoint_files.shapes(
        first.source
    )


def test_save_slim_refuses_variables_of_another_network(tmp_path):
    variables = checkpoints.load(slim_golden.write(NAME, tmp_path)).variables
    with pytest.raises(InputError, match="mobilenet_v1_050"):
        checkpoints.save_slim("mobilenet_v1_050", variables, tmp_path / "model.ckpt")


def test_fingerprint_depends_on_the_bytes_alone(tmp_path):
    a = checkpoints.load(slim_golden.write(NAME, tmp_path / "a"))
    b = checkpoints.load(slim_golden.write(NAME, tmp_path / "b"))
    other = {f"{ROOT}Conv2d_0/BatchNorm/beta": np.ones(8, np.float32)}
    c = checkpoints.load(slim_golden.write(NAME, tmp_path / "c", other))
    assert a.fingerprint == b.fingerprint != c.fingerprint


def test_fingerprint_takes_the_path_literally(tmp_path):
    plain, brackets = (
        tmp_path / "net1" / "model.ckpt",
        tmp_path / "net[1]" / "a[b].ckpt",
    )
    other = {f"{ROOT}Conv2d_0/BatchNorm/beta": np.ones(8, np.float32)}
    expected = checkpoints.load(slim_golden.write(NAME, tmp_path / "c", other))
    slim_golden.write(NAME, plain.parent)
    slim_golden.write(NAME, brackets.parent, other)
    for file in list(brackets.parent.iterdir()):
        file.rename(file.with_name(file.name.replace("model", "a[b]")))
    assert checkpoints.load(brackets).fingerprint == expected.fingerprint
    assert checkpoints.load(brackets.parent).fingerprint == expected.fingerprint
    assert checkpoints.load(plain).fingerprint != expected.fingerprint
    for pattern in (brackets, brackets.parent, f"{brackets}.index"):
        [(_, path)] = checkpoints.find(pattern)
        assert path == str(brackets)
    found = dict(checkpoints.find(tmp_path))
    assert {str(plain), str(brackets)} < set(found.values())


def test_load_skips_variables_of_training(tmp_path):
    kernel = f"{ROOT}Conv2d_0/weights"
    value = np.zeros((3, 3, 3, 8), np.float32)
    leftovers = {
        "global_step": np.array(7),
        "beta1_power": np.float32(1),
        **{
            f"{kernel}/{slot}": value
            for slot in ("Momentum", "RMSProp", "RMSProp_1", "Adam", "Adam_1")
        },
        f"{kernel}/ExponentialMovingAverage": value,
        f"{ROOT}AuxLogits/Conv2d_1b_1x1/weights": value,
    }
    prefix = slim_golden.write(NAME, tmp_path, leftovers)
    assert checkpoints.recognize(prefix) == checkpoints.CheckpointInfo(NAME, 0, None)
    plain = checkpoints.load_slim(NAME, prefix)
    assert plain.variables["params"]["Conv2d_0"]["kernel"].any()
    moving = checkpoints.load_slim(NAME, prefix, use_moving_averages=True)
    assert not moving.variables["params"]["Conv2d_0"]["kernel"].any()
    assert moving.variables["params"]["Conv2d_1_pointwise"]["kernel"].any()


def test_load_slim_raises_without_moving_averages(tmp_path):
    prefix = slim_golden.write(NAME, tmp_path)
    with pytest.raises(InputError, match="no moving averages"):
        checkpoints.load_slim(NAME, prefix, use_moving_averages=True)


def test_load_names_unknown_and_missing_variables(tmp_path):
    extra = {f"{ROOT}Conv2d_99/weights": np.zeros((1, 1), np.float32)}
    prefix = slim_golden.write(NAME, tmp_path / "a", extra)
    with pytest.raises(InputError, match="unknown: MobilenetV1/Conv2d_99/weights"):
        checkpoints.load(prefix)
    values = slim_golden.values(NAME)
    del values[f"{ROOT}Conv2d_5_depthwise/BatchNorm/gamma"]
    prefix = str(tmp_path / "b" / "model.ckpt")
    checkpoint_files.write(prefix, values)
    match = "missing: MobilenetV1/Conv2d_5_depthwise/BatchNorm/gamma"
    for call in (checkpoints.load, lambda path: checkpoints.load_slim(NAME, path)):
        with pytest.raises(InputError, match=match):
            call(prefix)


def test_load_refuses_variables_of_another_network(tmp_path):
    prefix = slim_golden.write(NAME, tmp_path)
    with pytest.raises(InputError, match="misshapen"):
        checkpoints.load_slim("mobilenet_v1_050", prefix)
    prefix = str(tmp_path / "other" / "model.ckpt")
    checkpoint_files.write(prefix, {"w": np.zeros(3, np.float32)})
    with pytest.raises(InputError, match="No known network"):
        checkpoints.recognize(prefix)


def test_features_do_not_depend_on_the_head(tmp_path):
    backbone = checkpoints.load(slim_golden.write(NAME, tmp_path, _head(10)))
    apply = jax.jit(backbone.apply)
    output = apply(backbone.variables, slim_golden.images(32))
    stripped, head = backbone_lib.split_head(backbone.variables)
    alone = apply(stripped, slim_golden.images(32))
    assert alone.logits is None
    np.testing.assert_allclose(alone.features, output.features, rtol=1e-5)
    np.testing.assert_array_equal(layers.classify(head, alone.features), output.logits)


@pytest.mark.parametrize(
    ("folder", "size"),
    [
        ("mobilenet_v1_0.25_128", 128),
        ("inception_v3_299", 299),
        ("mobilenet_v1_025", None),
        ("mobilenet_v2_140", None),
        ("imagenet_resnet_v1_50", None),
        ("resnet_v1_101", None),
        ("resnet_v2_152", None),
        ("run-90000", None),
    ],
)
def test_recognize_reads_the_image_size_from_the_folders_name(tmp_path, folder, size):
    prefix = slim_golden.write(NAME, tmp_path / folder)
    assert checkpoints.recognize(prefix).image_size == size
    assert checkpoints.load(prefix).image_size == (size or 224)
    resized = checkpoints.load(prefix, image_size=64)
    assert (resized.image_size, resized.own_image_size) == (64, size or 224)


def test_load_accepts_other_types_of_floating_point(tmp_path):
    values = slim_golden.values(NAME)
    halves = {name: value.astype(ml_dtypes.bfloat16) for name, value in values.items()}
    checkpoint_files.write(tmp_path / "model.ckpt", halves)
    kernel = checkpoints.load(tmp_path).variables["params"]["Conv2d_0"]["kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_allclose(kernel, values[f"{ROOT}Conv2d_0/weights"], rtol=0.01)


WITHOUT_TENSORFLOW = """
import sys
from rankckpt_jax import checkpoints

(_, first), (_, second) = checkpoints.find(sys.argv[1])
info = checkpoints.recognize(second)
backbone = checkpoints.load_slim(info.architecture, second, image_size=32)
checkpoints.save_slim(info.architecture, backbone.variables, sys.argv[2])
assert checkpoints.load(first).architecture == info.architecture
unwanted = {"tensorflow", "tf2jax", "keras", "h5py"} & sys.modules.keys()
assert not unwanted, unwanted
"""


@pytest.mark.multiprocess
def test_tensorflow_is_not_imported_for_slim_checkpoints(pool, tmp_path):
    command = [sys.executable, "-c", WITHOUT_TENSORFLOW, pool, tmp_path / "model.ckpt"]
    subprocess.run(command, check=True, timeout=300)


@pytest.mark.parametrize(
    ("content", "expected"),
    [(table.write([(b"key", b"value")]), True), (b"x" * 99, False), (b"", False)],
)
def test_matches_a_v1_checkpoint_of_any_name(tmp_path, content, expected):
    path = epath.Path(tmp_path / "weights")
    path.write_bytes(content)
    assert slim.matches(path) is expected


def test_own_transform_is_that_of_the_training_of_tf_slim():
    assert slim.own_transform("resnet_v1_50") == "slim_vgg"
    assert slim.own_transform("resnet_v2_50") == "slim_inception"
    assert slim.own_transform("mobilenet_v2") == "slim_inception"
