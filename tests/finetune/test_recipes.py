import dataclasses

import numpy as np
import pytest

from rankckpt_jax import finetune
from rankckpt_jax.configs import default
from rankckpt_jax.errors import InputError


def test_the_rate_warms_up_and_falls_at_shares_of_the_steps():
    recipe = finetune.Recipe(learning_rate=1.0, num_steps=100, warmup=0.04)
    rates = finetune.schedule(recipe)
    expected = [0.25, 0.5, 1, 1, 0.1, 0.1, 0.01, 0.01, 0.001]
    chosen = [0, 1, 3, 29, 30, 59, 60, 89, 90]
    np.testing.assert_allclose(rates[chosen], expected, rtol=1e-5)
    cosine = finetune.schedule(dataclasses.replace(recipe, schedule="cosine", warmup=0))
    expected = (1 + np.cos(np.pi * np.arange(100) / 100)) / 2
    np.testing.assert_allclose(cosine, expected, atol=1e-6)
    constant = dataclasses.replace(recipe, schedule="constant", warmup=0)
    assert set(finetune.schedule(constant)) == {1.0}


def test_named_recipes_are_the_published_protocols():
    vtab = finetune.sweep({"recipe": "vtab_1k"}, seed=3)
    [run] = vtab.runs
    assert (run.learning_rate, run.num_steps, run.batch_size) == (0.01, 1000, 64)
    assert (run.decay_at, run.seed) == ((0.3, 0.6, 0.9), 3)
    assert np.argmax(finetune.schedule(run)) == 79  # Warmed up after 80 steps.
    grid = finetune.sweep({"recipe": "neucrab"}, seed=0)
    assert {(r.learning_rate, r.num_steps) for r in grid.runs} == {
        (rate, steps) for rate in (0.1, 0.05, 0.01, 0.005) for steps in (5000, 10_000)
    }
    assert (grid.select_by, grid.recipe.batch_size) == ("test", 512)
    assert finetune.sweep({"recipe": "vtab_full"}, 0).select_by == "val"
    assert finetune.sweep({"recipe": "quick"}, 0).recipe.schedule == "cosine"


def test_every_field_of_a_recipe_can_be_set_in_the_config():
    settings = default.get_config().finetune
    fields = {
        f.name
        for kind in (finetune.Recipe, finetune.Sweep)
        for f in dataclasses.fields(kind)
    } - {"seed", "name", "recipe", "learning_rates"}
    assert set(settings) == {"recipe", *fields}
    with settings.unlocked():
        settings.update(learning_rate=0.3, num_steps=(5, 7), random_flip=True)
        settings.update(decay_at=(0.5,), cells_at_once=2, select_by="val")
    made = finetune.sweep(settings, seed=1)
    assert made.learning_rates == (0.3,) and made.num_steps == (5, 7)
    assert made.recipe.random_flip and made.recipe.decay_at == (0.5,)
    assert (made.cells_at_once, made.select_by, made.recipe.seed) == (2, "val", 1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"recipe": "vtab1k"}, "'vtab_1k'"),
        ({"recipe": "quick", "batchsize": 3}, "batchsize"),
        ({"num_steps": 0}, "finetune.num_steps"),
        ({"learning_rate": (0.1, -1.0)}, "finetune.learning_rate"),
        ({"learning_rate": ()}, "finetune.learning_rate"),
        ({"schedule": "linear"}, "finetune.schedule"),
        ({"dtype": "float16"}, "finetune.dtype"),
        ({"label_smoothing": 1.0}, "finetune.label_smoothing"),
        ({"frozen": True, "random_flip": True}, "finetune.frozen"),
    ],
)
def test_a_recipe_that_cannot_be_used_is_refused(changes, said):
    with pytest.raises(InputError, match=said):
        finetune.sweep(changes, seed=0)
