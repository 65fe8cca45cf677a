import dataclasses

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rankckpt_jax import checkpoints, finetune
from rankckpt_jax.checkpoints.graphs import recognize
from rankckpt_jax.data import image_cache, tasks
from rankckpt_jax.errors import InputError
from rankckpt_jax.features import extract
from tests.checkpoints import modules
from tests.checkpoints.modules import assert_close


def test_load_hub_of_a_tf1_module_matches_tensorflow(small):
    backbone = small.backbone
    output = jax.jit(backbone.apply)(backbone.variables, small.images)
    assert_close(output.features, small.evaluated["pre_logits"][:, 0, 0])
    assert_close(output.logits, small.evaluated["logits"])
    assert backbone.image_size == 24
    assert backbone.input_range == (0.0, 1.0)
    assert backbone.feature_dim == 12
    assert backbone.num_source_classes == 5
    assert set(backbone.variables["params"]) == {"net", "logits"}
    assert "weights" in backbone.variables["params"]["net"]["conv1"]
    # Any batch size is accepted.
    part = jax.jit(backbone.apply)(backbone.variables, small.images[:5]).features
    assert_close(part, small.evaluated["pre_logits"][:5, 0, 0])


@pytest.mark.parametrize("name", ["small", "any_size"])
def test_apply_in_training_matches_tensorflow(name, request):
    module = request.getfixturevalue(name)
    modules.assert_training_step(
        module.backbone,
        module.images,
        module.trained["pre_logits"][:, 0, 0],
        modules.statistics(module.updated),
    )


def test_apply_with_another_decay_uses_it(small):
    backbone = small.backbone
    apply = dataclasses.replace(backbone.apply, decay=0.5)
    step = jax.jit(lambda v, x: apply(v, x, train=True))
    _, stats = step(backbone.variables, small.images)
    old = flax.traverse_util.flatten_dict(backbone.variables["batch_stats"], sep="/")
    for name, value in flax.traverse_util.flatten_dict(stats, sep="/").items():
        moment = small.updated[name] - modules.DECAY * old[name]
        moment /= 1 - modules.DECAY
        assert np.abs(moment).max() > 0
        assert_close(value, 0.5 * old[name] + 0.5 * moment)


def test_apply_averages_moments_over_devices(small):
    modules.assert_moments_of_all_devices(small.backbone, small.images)


def test_apply_is_equal_for_equal_graphs_with_other_weights(small, tmp_path):
    signatures = {"default": {"default": "pooled"}}
    modules.export_tf1(tmp_path, modules.small, 24, signatures=signatures, seed=1)
    other = checkpoints.load_hub(tmp_path)
    block = checkpoints.load_hub(small.directory, "representation", "block")
    default = checkpoints.load_hub(small.directory, signature="default")
    assert other.apply == default.apply
    assert hash(other.apply) == hash(default.apply)
    assert other.fingerprint != default.fingerprint
    kernels = (
        b.variables["params"]["net"]["conv1"]["weights"] for b in (other, default)
    )
    assert not np.array_equal(*kernels)

    assert block.apply != default.apply
    assert block.fingerprint != default.fingerprint
    output = jax.jit(block.apply)(block.variables, small.images)
    assert_close(output.features, small.evaluated["block"].mean((1, 2)))


def test_apply_supports_bfloat16_products_only(small):
    backbone = small.backbone
    half = dataclasses.replace(backbone.apply, dtype="bfloat16")
    output = jax.jit(half)(backbone.variables, small.images)
    assert output.features.dtype == jnp.float32
    assert_close(output.features, small.evaluated["pre_logits"][:, 0, 0], 0.02)
    with pytest.raises(InputError, match="float16"):
        dataclasses.replace(backbone.apply, dtype="float16")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"signature": "absent"}, "ambiguous, default, representation"),
        ({"output": "absent"}, r"pre_logits \[\?, 1, 1, 12\]"),
        ({"signature": "ambiguous"}, r"two \[\?, 12, 12, 12\]"),
        ({"image_size": 32}, "24 x 24 pixels only"),
    ],
)
def test_load_hub_lists_the_valid_choices(small, options, message):
    with pytest.raises(InputError, match=message):
        checkpoints.load_hub(small.directory, **options)


def test_load_hub_reads_the_attached_image_size(any_size):
    assert checkpoints.load_hub(any_size.directory).image_size == 160
    assert any_size.backbone.image_size == 24
    assert any_size.backbone.own_image_size == 160


def test_load_hub_recognizes_a_flax_network(mobilenet):
    backbone = checkpoints.load_hub(mobilenet)
    assert backbone.architecture == "mobilenet_v1_025"
    # The module scales pixels within its graph, the Flax network before it.
    assert backbone.input_range == (-1.0, 1.0)
    images = np.random.default_rng(0).uniform(size=(2, 32, 32, 3)).astype(np.float32)
    outputs, _ = modules.run_tf1(mobilenet, "default", images, training=False)
    output = jax.jit(backbone.apply)(backbone.variables, images * 2 - 1)
    assert_close(output.features, outputs["default"])


def test_load_hub_keeps_the_graph_if_a_flax_network_disagrees(
    mobilenet, monkeypatch, caplog
):
    match_variables = recognize.match_variables

    def match_other_weights(values, head):
        match = match_variables(values, head)
        layer = match[1]["params"]["Conv2d_0"]
        layer["kernel"] = -layer["kernel"]
        return match

    monkeypatch.setattr(recognize, "match_variables", match_other_weights)
    backbone = checkpoints.load_hub(mobilenet)
    assert backbone.architecture.startswith("graph_")
    assert "the graph computes other features" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "architecture"),
    [
        (modules.resnet_v2_50, "resnet_v2_50"),
        (modules.vtab_resnet_50, "vtab_resnet_v2_50"),
    ],
)
def test_load_hub_of_resnet_50_matches_tensorflow_as_graph_and_as_flax_network(
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
    flax_backbone = checkpoints.load_hub(directory)
    assert flax_backbone.architecture == architecture
    monkeypatch.setattr(recognize, "match_variables", lambda *_: None)
    graph = checkpoints.load_hub(directory)
    low, high = flax_backbone.input_range
    evaluated, _ = modules.run_tf1(directory, key, images, training=False)
    trained, variables = modules.run_tf1(directory, key, images, training=True)
    name = sorted(evaluated)[-1]
    expected = evaluated[name].reshape(8, -1)
    for backbone, scaled in (
        (graph, images),
        (flax_backbone, images * (high - low) + low),
    ):
        output = jax.jit(backbone.apply)(backbone.variables, scaled)
        assert_close(output.features, expected)
        if "logits" in evaluated:
            assert_close(output.logits, evaluated["logits"])
    expected = trained[name].reshape(8, -1)
    statistics = modules.statistics(variables)
    modules.assert_training_step(graph, images, expected, statistics)
    output, _ = jax.jit(lambda v, x: flax_backbone.apply(v, x, train=True))(
        flax_backbone.variables, images * (high - low) + low
    )
    assert_close(output.features, expected, 1e-3)


def test_extract_and_finetune_accept_a_graph(small, tmp_path):
    random = np.random.default_rng(0)

    def split(name, count):
        labels = np.arange(count) % 2
        images = random.integers(0, 90, (count, 24, 24, 3))
        images[labels == 0, :12] += 160
        images[labels == 1, 12:, :, 0] += 160
        return tasks.array_split(name, images.astype(np.uint8), labels)

    splits = {"train": split("train", 32), "test": split("test", 21)}
    task = tasks.Task("halves", ("top", "bottom"), splits, "made up")
    settings = {"preprocess": "vtab", "cache": image_cache.open_cache()}
    found = extract.extract(small.backbone, splits["test"], batch_size=8, **settings)
    assert found["features"].shape == (21, 12)
    assert found["logits"].shape == (21, 5)
    recipe = finetune.Recipe(
        learning_rate=0.05, num_steps=30, batch_size=8, batch_norm_decay=0.8
    )
    result = finetune.run(
        tmp_path / "finetune", small.backbone, task, recipe, **settings
    )
    assert result.accuracy > 0.9
