import dataclasses

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rankckpt_jax import checkpoints, finetune
from rankckpt_jax.checkpoints.graphs import recognize
from rankckpt_jax.data import pipeline, tasks
from rankckpt_jax.errors import InputError
from rankckpt_jax.features import extract
from tests.checkpoints import modules

# Of the largest feature: float32 convolutions add in another order.
TOLERANCE = 1e-4

SIGNATURES = {
    "default": {"default": "pooled"},
    "representation": {"pre_logits": "pooled", "logits": "logits", "block": "map"},
}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    directory = tmp_path_factory.mktemp("small") / "module"
    modules.export_tf1(directory, modules.small, 24, signatures=SIGNATURES)
    return directory


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(size=(6, 24, 24, 3)).astype(np.float32)


def _close(actual, expected, tolerance=TOLERANCE):
    expected = np.asarray(expected)
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(
        actual, expected, atol=tolerance * np.abs(expected).max()
    )


def _check_training(backbone, images, expected_features, expected_statistics):
    """Features, statistics and gradients of a step of training."""

    def loss(params):
        variables = {**backbone.variables, "params": params}
        output, stats = backbone.apply(variables, images, train=True)
        weights = jnp.arange(output.features.size).reshape(output.features.shape)
        value = jnp.mean(jnp.sin(weights) * jnp.square(output.features))
        if output.logits is not None:
            value += jnp.mean(jnp.square(output.logits))
        return value, (output, stats)

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, (output, stats)), gradients = step(backbone.variables["params"])
    _close(output.features, expected_features)
    stats = flax.traverse_util.flatten_dict(stats, sep="/")
    old = flax.traverse_util.flatten_dict(backbone.variables["batch_stats"], sep="/")
    assert stats.keys() == old.keys() == expected_statistics.keys()
    for name, value in stats.items():
        _close(value, expected_statistics[name])
        assert (np.abs(value - old[name]) > 0).any(), name
    for path, gradient in flax.traverse_util.flatten_dict(gradients).items():
        assert np.abs(gradient).max() > 0, path


def _statistics(variables):
    return {
        name.removeprefix("module/"): value
        for name, value in variables.items()
        if name.endswith(("moving_mean", "moving_variance"))
    }


def test_a_tf1_module_is_what_tensorflow_computes(small, images):
    backbone = checkpoints.load_hub(small)
    outputs, _ = modules.run_tf1(small, "representation", images, training=False)
    output = jax.jit(backbone.apply)(backbone.variables, images)
    _close(output.features, outputs["pre_logits"][:, 0, 0])
    _close(output.logits, outputs["logits"])
    assert backbone.image_size == 24
    assert backbone.input_range == (0.0, 1.0)
    assert backbone.feature_dim == 12
    assert backbone.num_source_classes == 5
    assert set(backbone.variables["params"]) == {"net", "logits"}
    assert "weights" in backbone.variables["params"]["net"]["conv1"]


@pytest.mark.parametrize("resource", [True, False])
def test_its_training_graph_moves_the_statistics(tmp_path, images, resource):
    directory = tmp_path / "module"
    modules.export_tf1(
        directory, modules.small, 24, signatures=SIGNATURES, resource=resource
    )
    backbone = checkpoints.load_hub(directory)
    outputs, variables = modules.run_tf1(
        directory, "representation", images, training=True
    )
    features = outputs["pre_logits"][:, 0, 0]
    _check_training(backbone, images, features, _statistics(variables))


def test_another_decay_moves_the_statistics_by_it(small, images):
    backbone = checkpoints.load_hub(small)
    apply = dataclasses.replace(backbone.apply, decay=0.5)
    _, stats = jax.jit(lambda v, x: apply(v, x, train=True))(backbone.variables, images)
    _, moved = modules.run_tf1(small, "default", images, training=True)
    old = flax.traverse_util.flatten_dict(backbone.variables["batch_stats"], sep="/")
    for name, value in flax.traverse_util.flatten_dict(stats, sep="/").items():
        moment = (moved[name] - modules.DECAY * old[name]) / (1 - modules.DECAY)
        assert np.abs(moment).max() > 0
        _close(value, 0.5 * old[name] + 0.5 * moment)


def test_moments_are_of_all_devices(small, images):
    """Two devices with half of the images each are one device with all of them."""
    backbone = checkpoints.load_hub(small)
    apply = dataclasses.replace(backbone.apply, axis_name="batch")
    halves = images.reshape(2, 3, *images.shape[1:])
    mapped = jax.vmap(
        lambda x: apply(backbone.variables, x, train=True), axis_name="batch"
    )
    output, stats = jax.jit(mapped)(halves)
    whole, whole_stats = backbone.apply(backbone.variables, images, train=True)
    _close(output.features.reshape(6, -1), whole.features, 1e-5)
    jax.tree.map(lambda a, b: _close(a[1], b, 1e-5), stats, whole_stats)


def test_any_batch_size(small, images):
    backbone = checkpoints.load_hub(small)
    whole = backbone.apply(backbone.variables, images).features
    for size in (1, 5):
        part = backbone.apply(backbone.variables, images[:size]).features
        _close(part, whole[:size], 1e-6)


def test_equal_graphs_are_equal_whatever_the_weights(small, tmp_path):
    directory = tmp_path / "another"
    modules.export_tf1(directory, modules.small, 24, signatures=SIGNATURES)
    first, second = checkpoints.load_hub(small), checkpoints.load_hub(directory)
    assert first.apply == second.apply
    assert hash(first.apply) == hash(second.apply)
    assert first.apply != checkpoints.load_hub(small, output="block").apply


def test_dtypes(small, images):
    backbone = checkpoints.load_hub(small)
    half = dataclasses.replace(backbone.apply, dtype="bfloat16")
    features = half(backbone.variables, images).features
    assert features.dtype == jnp.float32
    _close(features, backbone.apply(backbone.variables, images).features, 0.02)
    with pytest.raises(InputError, match="float16"):
        dataclasses.replace(backbone.apply, dtype="float16")


def test_a_signature_and_an_output_can_be_named(small, images):
    outputs, _ = modules.run_tf1(small, "representation", images, training=False)
    default = checkpoints.load_hub(small, signature="default")
    _close(
        default.apply(default.variables, images).features,
        outputs["pre_logits"][:, 0, 0],
    )
    block = checkpoints.load_hub(small, "representation", "block")
    features = block.apply(block.variables, images).features
    _close(features, outputs["block"].mean((1, 2)))
    assert len({default.fingerprint, block.fingerprint}) == 2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"signature": "absent"}, "default, representation"),
        ({"output": "absent"}, r"pre_logits \[\?, 1, 1, 12\]"),
    ],
)
def test_wrong_names_are_answered_with_those_there_are(small, options, says):
    with pytest.raises(InputError, match=says):
        checkpoints.load_hub(small, **options)


def test_an_ambiguous_output_lists_what_there_is(tmp_path):
    signatures = {"default": {"one": "pooled", "two": "map", "three": "pooled"}}
    modules.export_tf1(tmp_path / "m", modules.small, 24, signatures=signatures)
    with pytest.raises(InputError, match=r"two \[\?, 12, 12, 12\]"):
        checkpoints.load_hub(tmp_path / "m")


def test_the_size_is_that_of_the_attached_info(tmp_path):
    directory = tmp_path / "module"
    modules.export_tf1(
        directory,
        lambda images, training: modules.small(images, training),
        None,
        signatures=SIGNATURES,
        info_size=160,
    )
    assert checkpoints.load_hub(directory).image_size == 160
    assert checkpoints.load_hub(directory, image_size=32).image_size == 32


def test_a_fixed_size_refuses_another(small):
    with pytest.raises(InputError, match="24 x 24 pixels only"):
        checkpoints.load_hub(small, image_size=32)


def test_known_variables_become_the_native_network(tmp_path):
    directory = tmp_path / "module"
    signatures = {"default": {"default": "pooled"}}
    modules.export_tf1(directory, modules.mobilenet, 32, signatures=signatures)
    backbone = checkpoints.load_hub(directory)
    assert backbone.architecture == "mobilenet_v1_025"
    # The module scales pixels within its graph, the Flax network before it.
    assert backbone.input_range == (-1.0, 1.0)
    images = np.random.default_rng(0).uniform(size=(3, 32, 32, 3)).astype(np.float32)
    outputs, _ = modules.run_tf1(directory, "default", images, training=False)
    features = backbone.apply(backbone.variables, images * 2 - 1).features
    _close(features, outputs["default"])


def test_another_network_with_known_variables_stays_a_graph(tmp_path, caplog):
    def other(images, training):
        return modules.mobilenet(images * images, training)

    directory = tmp_path / "module"
    signatures = {"default": {"default": "pooled"}}
    modules.export_tf1(directory, other, 32, signatures=signatures)
    backbone = checkpoints.load_hub(directory)
    assert backbone.architecture.startswith("graph_")
    assert "computes something else" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "architecture"),
    [
        (modules.resnet_v2_50, "resnet_v2_50"),
        (modules.vtab_resnet_50, "vtab_resnet_v2_50"),
    ],
)
def test_resnet_50_v2_as_graph_and_as_native_network(
    tmp_path, network, architecture, monkeypatch
):
    directory = tmp_path / "module"
    signatures = {"default": {"default": "pre_logits"}}
    signatures["representation"] = {"pre_logits": "pre_logits", "logits": "logits"}
    if network is modules.vtab_resnet_50:
        signatures = {"default": {"default": "pooled"}}
    modules.export_tf1(directory, network, 64, signatures=signatures)
    images = np.random.default_rng(0).uniform(size=(8, 64, 64, 3)).astype(np.float32)
    key = sorted(signatures)[-1]
    native = checkpoints.load_hub(directory)
    assert native.architecture == architecture
    monkeypatch.setattr(recognize, "recognize", lambda *_: None)
    graph = checkpoints.load_hub(directory)
    low, high = native.input_range
    evaluated, _ = modules.run_tf1(directory, key, images, training=False)
    trained, variables = modules.run_tf1(directory, key, images, training=True)
    name = sorted(evaluated)[-1]
    expected = evaluated[name].reshape(8, -1)
    for backbone, scaled in (
        (graph, images),
        (native, images * (high - low) + low),
    ):
        output = jax.jit(backbone.apply)(backbone.variables, scaled)
        _close(output.features, expected)
        if "logits" in evaluated:
            _close(output.logits, evaluated["logits"])
    features = trained[name].reshape(8, -1)
    _check_training(graph, images, features, _statistics(variables))
    output, _ = jax.jit(lambda v, x: native.apply(v, x, train=True))(
        native.variables, images * (high - low) + low
    )
    _close(output.features, features, 1e-3)


def test_a_graph_is_extracted_from_and_fine_tuned(small, tmp_path):
    """What the other rooms do to a backbone, they do to one that is a graph."""
    random = np.random.default_rng(0)

    def split(name, count):
        labels = np.arange(count) % 2
        images = random.integers(0, 90, (count, 24, 24, 3))
        images[labels == 0, :12] += 160
        images[labels == 1, 12:, :, 0] += 160
        return tasks.array_split(name, images.astype(np.uint8), labels)

    splits = {"train": split("train", 32), "test": split("test", 21)}
    task = tasks.Task("halves", ("top", "bottom"), splits, "made up")
    settings = {"preprocess": "vtab", "cache": pipeline.ImageCache(1.0)}
    backbone = checkpoints.load_hub(small)
    found = extract.extract(backbone, splits["test"], batch_size=8, **settings)
    assert found["features"].shape == (21, 12)
    assert found["logits"].shape == (21, 5)
    recipe = finetune.Recipe(
        learning_rate=0.05, num_steps=30, batch_size=8, batch_norm_decay=0.8
    )
    result, _ = finetune.load_or_run(
        tmp_path / "finetune", backbone, task, recipe, **settings
    )
    assert result.accuracy > 0.9
