import dataclasses

import jax
import numpy as np
import pytest

from rankckpt_jax import finetune
from rankckpt_jax.errors import InputError
from rankckpt_jax.finetune import optimizers, step
from tests.finetune import RECIPE

NAMES = {
    "cls_token": 0,
    "pos_embed": 0,
    "patch_embed.proj.weight": 0,
    "blocks.0.norm1.weight": 1,
    "blocks.10.mlp.fc1.weight": 11,
    "norm.weight": 11,
    "fc_norm.weight": 12,
}


def transformer(shape=(1, 2)):
    """Return parameters with the names of a transformer of eleven blocks."""
    weights = {name: np.ones(shape, np.float32) for name in NAMES}
    return {"backbone": weights, "head": {"kernel": np.ones(shape, np.float32)}}


def make(name="sgd", **options):
    numbers = {"rate": 0.1, "momentum": 0.0, "weight_decay": 0.0, "clip_norm": np.inf}
    return optimizers.make(name, **{**numbers, **options})


def test_layer_factors_decay_from_the_head_down():
    factors = optimizers.layer_factors(transformer(), 0.5)
    assert factors["head"] == {"kernel": 1}
    assert factors["backbone"] == {n: 0.5 ** (12 - layer) for n, layer in NAMES.items()}


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_make_scales_updates_by_layer_factors(name):
    params = transformer()
    gradients = jax.tree.map(np.ones_like, params)
    plain, decayed = (
        optimizer.update(gradients, optimizer.init(params), params)[0]
        for optimizer in (make(name), make(name, layer_decay=0.5))
    )
    assert np.all(plain["head"]["kernel"] < 0)
    jax.tree.map(
        lambda a, b, factor: np.testing.assert_allclose(a * factor, b),
        *(plain, decayed, optimizers.layer_factors(params, 0.5)),
    )


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_make_decays_kernels_but_neither_vectors_nor_embeddings(name):
    params = transformer()
    params["head"]["bias"] = np.ones(2, np.float32)
    optimizer = make(name, weight_decay=0.5)
    zeros = jax.tree.map(np.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    kept = {n for n, update in updates["backbone"].items() if not np.any(update)}
    assert kept == {"cls_token", "pos_embed"}
    assert not np.any(updates["head"]["bias"])
    np.testing.assert_allclose(updates["head"]["kernel"], -0.1 * 0.5)


def test_step_spec_refuses_layer_decay_without_blocks(backbone):
    recipe = dataclasses.replace(RECIPE, layer_decay=0.75)
    with pytest.raises(InputError, match="config.finetune.layer_decay"):
        step.step_spec(backbone, recipe)


def test_initial_shapes_have_two_moments_of_adamw(backbone):
    def size(tree):
        return sum(leaf.size for leaf in jax.tree.leaves(tree))

    sgd, adamw = (
        step.initial_shapes(backbone, 3, optimizer=name) for name in ("sgd", "adamw")
    )
    assert size(sgd.optimizer) == size(sgd.params)
    # The count of steps is one more number.
    assert size(adamw.optimizer) == 2 * size(adamw.params) + 1
    real = step.initial_state(backbone, 3, optimizer="adamw")
    assert jax.tree.map(np.shape, real) == jax.tree.map(np.shape, adamw)


def test_make_sweep_of_vit_uses_adamw():
    sweep = finetune.make_sweep({"recipe": "vit", "layer_decay": 0.75}, seed=0)
    trial = sweep.trials[0]
    assert (trial.optimizer, trial.layer_decay) == ("adamw", 0.75)
    rates = finetune.schedule(trial)
    assert np.argmax(rates) == 149  # A tenth of the steps is warm-up.
    assert rates[-1] < 1e-4 * rates.max()
