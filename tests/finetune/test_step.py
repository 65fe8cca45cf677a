import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rankckpt_jax import checkpoints, finetune
from rankckpt_jax.checkpoints import backbone as backbone_lib
from rankckpt_jax.devices import mapping, target
from rankckpt_jax.errors import InputError
from rankckpt_jax.finetune import probe, step
from rankckpt_jax.models import layers
from tests.finetune import RECIPE, settings

NO_SCALING = (np.float32(0), np.float32(255), np.zeros(1, np.float32))


def test_initial_state_has_checkpoints_weights_and_zero_head(pool):
    backbone = checkpoints.load(str(pool / "first"), image_size=32)
    state = finetune.initial_state(backbone, 5)
    assert state.params["head"]["kernel"].shape == (256, 5)
    assert not np.any(state.params["head"]["kernel"])
    variables, head = backbone_lib.split_head(backbone.variables)
    assert head is not None
    jax.tree.map(
        np.testing.assert_array_equal, state.params["backbone"], variables["params"]
    )


def train(backbone, task, recipe):
    state = finetune.initial_state(backbone, task.num_classes)
    return finetune.train(backbone, state, task.splits["train"], recipe, **settings())


@pytest.mark.parametrize(
    ("platform", "expected"),
    [("cpu", "HIGHEST"), ("gpu", "HIGHEST"), ("tpu", "DEFAULT")],
)
def test_step_spec_rounds_products_only_on_a_tpu(pool, platform, expected, monkeypatch):
    monkeypatch.setattr(target, "platform", lambda: platform)
    backbone = checkpoints.load(str(pool / "first"), image_size=32)
    apply = step.step_spec(backbone, RECIPE).apply
    variables, _ = backbone_lib.split_head(backbone.variables)
    apply = dataclasses.replace(apply, axis_name=None)
    images = np.zeros((2, 32, 32, 3), np.float32)
    traced = jax.make_jaxpr(lambda x: apply(variables, x, train=True))(images)
    products = {
        str(equation.params["precision"])
        for equation in traced.eqns
        if "precision" in equation.params
    }
    assert products == {str((jax.lax.Precision[expected],) * 2)}


def test_check_batch_rejects_uneven_batch(monkeypatch):
    monkeypatch.setattr(mapping, "local_device_count", lambda: 3)
    with pytest.raises(InputError, match="66 is the nearest"):
        step.check_batch(64, 1)
    assert step.check_batch(66, 2) == 66


def test_train_step_decays_kernels_and_clips_whole_gradient(backbone):
    """Compare one update of a linear network with the formula."""
    recipe = dataclasses.replace(RECIPE, weight_decay=0.5, clip_norm=0.01)
    random = np.random.default_rng(0)
    images = random.uniform(0, 255, (8, 16)).astype(np.float32)
    labels = np.arange(8) % 3
    linear = probe.without_head(backbone)
    state = step.initial_state(linear, 3)
    kernel = random.normal(size=(16, 3)).astype(np.float32) / 255
    params = {**state.params, "head": {"kernel": kernel, "bias": np.ones(3, "f4")}}
    state = mapping.replicate(state._replace(params=params))
    run = step.train_step(step.step_spec(linear, recipe))
    data = mapping.shard((images, labels.astype(np.int32), np.arange(8)))
    new, _ = run(state, NO_SCALING, step.hyperparameters(recipe, 0.1, 0), data)
    logits = images.astype(np.float64) @ kernel + 1
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    error = (p - np.eye(3)[labels]) / 8
    grads = images.T @ error, error.sum(0)
    norm = np.sqrt(sum((g**2).sum() for g in grads))
    assert norm > 0.01
    grads = grads[0] * 0.01 / norm + 0.5 * kernel, grads[1] * 0.01 / norm
    head = new.params["head"]
    np.testing.assert_allclose(head["kernel"], kernel - 0.1 * grads[0], atol=1e-6)
    np.testing.assert_allclose(head["bias"], 1 - 0.1 * grads[1], atol=1e-6)


def test_train_step_accumulates_gradient_over_parts(backbone):
    """On a linear network, because batch norm uses the moments of each part."""
    random = np.random.default_rng(0)
    images = random.uniform(0, 2, (8, 16)).astype(np.float32)
    rows = np.arange(8, dtype=np.int32)
    data = mapping.shard((images, rows % 3, rows))
    linear, results = probe.without_head(backbone), []
    for parts in (1, 4):
        recipe = dataclasses.replace(RECIPE, accumulate=parts)
        run = step.train_step(step.step_spec(linear, recipe))
        state = step.initial_state(linear, 3)
        for number in range(3):
            hyper = step.hyperparameters(recipe, 0.1, number)
            state, loss = run(state, NO_SCALING, hyper, data)
        results.append({**state.params["head"], "loss": loss})
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *results
    )


@dataclasses.dataclass(frozen=True)
class DrawingNetwork(probe.IdentityBackbone):
    """Appends a random number to the statistic `draws` in training."""

    def __call__(self, variables, images, train=False, key=None):
        output = layers.Output(images, None)
        draws = variables["batch_stats"]["draws"]
        new = jax.random.randint(key, (1,), 0, 2**30)
        return output, {"draws": jnp.concatenate([draws[1:], new])}


def test_train_step_draws_anew_for_each_step_device_and_part(backbone):
    recipe = dataclasses.replace(RECIPE, accumulate=2)
    linear = dataclasses.replace(
        probe.without_head(backbone),
        apply=DrawingNetwork(),
        variables={"params": {}, "batch_stats": {"draws": np.zeros(2, np.int32)}},
    )
    spec = step.step_spec(linear, recipe)
    state = step.initial_state(linear, 3)
    images = np.ones((8, 16), np.float32)
    rows = np.arange(8, dtype=np.int32)

    def draws(seed, number):
        hyper = step.hyperparameters(
            dataclasses.replace(recipe, seed=seed), 0.1, number
        )
        run, data = step.train_step(spec), mapping.shard((images, rows % 3, rows))
        fresh = jax.tree.map(jnp.array, state)
        new, _ = run(fresh, NO_SCALING, hyper, data)
        return np.asarray(new.batch_stats["draws"]).tolist()

    found = [draws(*pair) for pair in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert len(set(sum(found, []))) == 8
    assert draws(0, 1) == found[1]

    hyper = step.hyperparameters(recipe, 0.1, 0)
    devices = jax.vmap(
        lambda images: step._update(
            spec, images, rows[:4] % 3, jax.random.key(0), state, hyper
        ),
        axis_name=mapping.AXIS,
    )
    new, _ = devices(images.reshape(2, 4, 16))
    assert len(set(new.batch_stats["draws"].ravel().tolist())) == 4


def test_train_keeps_state_in_float32(backbone, task):
    recipe = dataclasses.replace(RECIPE, dtype="bfloat16", num_steps=3)
    state, loss, _ = train(backbone, task, recipe)
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {np.dtype("float32")}
    exact = train(backbone, task, dataclasses.replace(recipe, dtype="float32")).loss
    assert loss != exact and loss == pytest.approx(exact, rel=0.1)
