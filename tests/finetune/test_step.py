import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rankckpt_jax import finetune
from rankckpt_jax.checkpoints import backbone as backbone_lib
from rankckpt_jax.data import pipeline
from rankckpt_jax.devices import mapping
from rankckpt_jax.errors import InputError
from rankckpt_jax.finetune import probe, step
from tests.finetune import RECIPE, settings


def test_the_head_starts_at_zero_on_the_checkpoints_own_weights(backbone, task):
    state = finetune.initial_state(backbone, 5)
    assert state.params["head"]["kernel"].shape == (256, 5)
    assert not np.any(state.params["head"]["kernel"])
    headless, _ = backbone_lib.split_head(backbone.variables)
    jax.tree.map(
        np.testing.assert_array_equal, state.params["backbone"], headless["params"]
    )


def train(backbone, task, recipe=RECIPE, **options):
    state = finetune.initial_state(backbone, task.num_classes)
    return finetune.train(
        backbone, state, task.splits["train"], recipe, **settings(), **options
    )


def test_a_step_is_sgd_with_momentum_on_the_mean_cross_entropy(backbone, task):
    """Three steps, against the update rule written out with plain jax.grad."""
    # So short a way that rounding is not amplified from one step to the next.
    recipe = dataclasses.replace(RECIPE, num_steps=3, learning_rate=1e-4, decay_at=())
    state, loss, _ = train(backbone, task, recipe)

    apply = dataclasses.replace(backbone.apply, decay=recipe.batch_norm_decay)
    variables, _ = backbone_lib.split_head(backbone.variables)
    params = {
        "backbone": variables["params"],
        "head": {"kernel": jnp.zeros((256, 2)), "bias": jnp.zeros(2)},
    }
    stats = variables["batch_stats"]
    velocity = jax.tree.map(jnp.zeros_like, params)

    @jax.jit
    def gradient(params, stats, images, labels):
        def mean_loss(params):
            both = {"params": params["backbone"], "batch_stats": stats}
            output, updated = apply(both, images, train=True)
            logits = output.features @ params["head"]["kernel"] + params["head"]["bias"]
            chosen = jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels]
            return -chosen.mean(), updated

        return jax.value_and_grad(mean_loss, has_aux=True)(params)

    batches = pipeline.training_batches(
        task.splits["train"],
        size=32,
        batch_size=8,
        seed=0,
        first_step=0,
        last_step=3,
        **settings(),
    )
    for batch in batches:
        images = batch.images / 127.5 - 1
        (expected, stats), grads = gradient(params, stats, images, batch.labels)
        velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, grads)
        params = jax.tree.map(lambda p, v: p - 1e-4 * v, params, velocity)

    assert loss == pytest.approx(float(expected), rel=1e-4)

    def difference(a, b):
        leaves = jax.tree.leaves(jax.tree.map(lambda x, y: jnp.sum((x - y) ** 2), a, b))
        return float(sum(leaves)) ** 0.5

    # Of the way from the start, since the weights themselves hardly move. Rounding is
    # amplified by 27 batch norms over as few as 8 values; another momentum, rate or
    # order of the batches is off by more than a tenth.
    start = finetune.initial_state(backbone, 2)
    for ours, theirs, origin in (
        (state.params, params, start.params),
        (state.batch_stats, stats, start.batch_stats),
    ):
        assert difference(ours, theirs) < 0.02 * difference(theirs, origin)


def test_a_batch_that_devices_cannot_share_is_refused_not_rounded(monkeypatch):
    monkeypatch.setattr(mapping, "local_device_count", lambda: 3)
    with pytest.raises(InputError, match="66 is the nearest"):
        step.check_batch(64, 1)
    assert step.check_batch(66, 2) == 66


def test_decay_and_clipping_are_optax_on_kernels_and_the_whole_gradient(backbone):
    """One update of a linear network against the formula."""
    recipe = dataclasses.replace(RECIPE, weight_decay=0.5, clip_norm=0.01)
    random = np.random.default_rng(0)
    images = random.uniform(0, 255, (8, 256)).astype(np.float32)
    labels = np.arange(8) % 3
    given = probe.headless(backbone)
    state = step.initial_state(given, 3)
    kernel = random.normal(size=(256, 3)).astype(np.float32) / 255
    params = {**state.params, "head": {"kernel": kernel, "bias": np.ones(3, "f4")}}
    state = mapping.replicate(state._replace(params=params))
    run = step.train_step(step.program(given, recipe))
    scaling = (np.float32(0), np.float32(255), np.zeros(1, np.float32))
    data = mapping.shard((images, labels.astype(np.int32), np.arange(8)))
    new, _ = run(state, scaling, step.hyper(recipe, 0.1, 0), data)
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


def test_parts_of_a_batch_add_up_to_its_gradient(backbone):
    """On a linear network, where no batch norm looks at its part alone."""
    random = np.random.default_rng(0)
    images = random.uniform(0, 2, (8, 256)).astype(np.float32)
    rows = np.arange(8, dtype=np.int32)
    data = mapping.shard((images, rows % 3, rows))
    scaling = (np.float32(0), np.float32(255), np.zeros(1, np.float32))
    given, found = probe.headless(backbone), []
    for parts in (1, 4):
        recipe = dataclasses.replace(RECIPE, accumulate=parts)
        run = step.train_step(step.program(given, recipe))
        state = step.initial_state(given, 3)
        for number in range(3):
            hyper = step.hyper(recipe, 0.1, number)
            state, loss = run(state, scaling, hyper, data)
        found.append((state.params["head"], float(loss)))
    assert found[1][1] == pytest.approx(found[0][1], rel=1e-5)
    for name, value in found[0][0].items():
        np.testing.assert_allclose(found[1][0][name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_bfloat16_computes_and_float32_keeps(backbone, task):
    recipe = dataclasses.replace(RECIPE, dtype="bfloat16", num_steps=3)
    state, loss, _ = train(backbone, task, recipe)
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {np.dtype("float32")}
    _, exact, _ = train(backbone, task, dataclasses.replace(recipe, dtype="float32"))
    assert loss != exact and loss == pytest.approx(exact, rel=0.1)
