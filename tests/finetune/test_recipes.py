import dataclasses

import numpy as np
import pytest

from rankckpt_jax import finetune
from rankckpt_jax.configs import default
from rankckpt_jax.errors import InputError


def test_schedule_warms_up_and_decays():
    recipe = finetune.Recipe(learning_rate=1.0, num_steps=100, warmup=0.04)
    rates = finetune.schedule(recipe)
    steps = [0, 1, 3, 29, 30, 59, 60, 89, 90]
    expected = [0.25, 0.5, 1, 1, 0.1, 0.1, 0.01, 0.01, 0.001]
    np.testing.assert_allclose(rates[steps], expected, rtol=1e-5)
    cosine = finetune.schedule(dataclasses.replace(recipe, schedule="cosine", warmup=0))
    expected = (1 + np.cos(np.pi * np.arange(100) / 100)) / 2
    np.testing.assert_allclose(cosine, expected, atol=1e-6)
    constant = dataclasses.replace(recipe, schedule="constant", warmup=0)
    assert set(finetune.schedule(constant)) == {1.0}


def test_make_sweep_returns_published_protocols():
    vtab = finetune.make_sweep({"recipe": "vtab_1k"}, seed=3)
    [trial] = vtab.trials
    assert (trial.learning_rate, trial.num_steps, trial.batch_size) == (0.01, 1000, 64)
    assert (trial.decay_at, trial.seed) == ((0.3, 0.6, 0.9), 3)
    assert np.argmax(finetune.schedule(trial)) == 79  # Warmed up after 80 steps.
    neucrab = finetune.make_sweep({"recipe": "neucrab"}, seed=0)
    assert [(trial.learning_rate, trial.num_steps) for trial in neucrab.trials] == [
        (rate, steps) for steps in (5000, 10_000) for rate in (0.1, 0.05, 0.01, 0.005)
    ]
    assert (neucrab.select_by, neucrab.recipe.batch_size) == ("test", 512)
    assert finetune.make_sweep({"recipe": "vtab_full"}, 0).select_by == "val"
    quick = finetune.make_sweep({"recipe": "quick"}, 0)
    assert quick.recipe.schedule == "cosine"
    # Three rates up to step 90, and one from there to 300.
    assert quick.chooses_early and quick.choice_step(300) == 90
    assert (quick.steps_before_choice, quick.steps_after_choice) == (270, 210)
    halving = finetune.make_sweep({"recipe": "quick", "budget": 900}, 0)
    assert not halving.chooses_early


def test_config_has_every_field_of_recipe_and_sweep():
    settings = default.get_config().finetune
    # Which checkpoints are fine-tuned, and what is kept, is not part of a recipe.
    del settings.top, settings.confidence, settings.keep
    fields = {
        f.name
        for kind in (finetune.Recipe, finetune.Sweep)
        for f in dataclasses.fields(kind)
    } - {"seed", "name", "recipe", "learning_rates"}
    assert set(settings) == {"recipe", *fields}
    with settings.unlocked():
        settings.update(learning_rate=0.3, num_steps=(5, 7), random_flip=True)
        settings.update(decay_at=(0.5,), trials_at_once=2, select_by="val")
    sweep = finetune.make_sweep(settings, seed=1)
    assert sweep.learning_rates == (0.3,) and sweep.num_steps == (5, 7)
    assert sweep.recipe.random_flip and sweep.recipe.decay_at == (0.5,)
    assert (sweep.trials_at_once, sweep.select_by, sweep.recipe.seed) == (2, "val", 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": "vtab1k"}, "'vtab_1k'"),
        ({"recipe": "quick", "batchsize": 3}, "'batch_size'"),
        ({"num_steps": 0}, "finetune.num_steps"),
        ({"num_steps": "many"}, "finetune.num_steps"),
        ({"num_steps": float("inf")}, "finetune.num_steps"),
        ({"learning_rate": (0.1, -1.0)}, "finetune.learning_rate"),
        ({"learning_rate": ()}, "finetune.learning_rate"),
        ({"trials_at_once": 0}, "finetune.trials_at_once"),
        ({"choose_after": 0.0}, "finetune.choose_after"),
        ({"choose_after": 1.5}, "finetune.choose_after"),
        ({"choose_after": 0.3, "budget": 2000}, "finetune.choose_after"),
        ({"num_steps": 5, "budget": 2000}, "finetune.num_steps"),
        ({"schedule": "linear"}, "finetune.schedule"),
        ({"optimizer": "adam"}, "finetune.optimizer"),
        ({"layer_decay": 0.0}, "finetune.layer_decay"),
        ({"layer_decay": 1.5}, "finetune.layer_decay"),
        ({"select_by": "train"}, "finetune.select_by"),
        ({"dtype": "float16"}, "finetune.dtype"),
        ({"label_smoothing": 1.0}, "finetune.label_smoothing"),
        ({"frozen": True, "random_flip": True}, "finetune.frozen"),
    ],
)
def test_make_sweep_rejects_bad_value(changes, message):
    with pytest.raises(InputError, match=message):
        finetune.make_sweep(changes, seed=0)


def test_a_budget_of_time_chooses_rates_early_unless_told_otherwise():
    rates = {"recipe": "vtab_1k", "learning_rate": (0.1, 0.01)}
    timed, complete, plain = (
        finetune.make_sweep({**rates, **options}, 0)
        for options in ({"budget": "1h"}, {"budget": "1h", "choose_after": 1.0}, {})
    )
    assert timed.chooses_early and timed.choice_step(1000) == 300
    assert (timed.steps_before_choice, timed.steps_after_choice) == (600, 700)
    assert not complete.chooses_early and complete == plain
    assert (plain.steps_before_choice, plain.steps_after_choice) == (2000, 0)
    # Nothing is left to train after a choice at the last step.
    for steps, share in ((1, 0.3), (3, 0.9)):
        short = dataclasses.replace(timed, num_steps=(steps,), choose_after=share)
        assert short.choice_step(steps) == steps
        assert not short.has_two_parts and not short.chooses_early
    single = dataclasses.replace(timed, learning_rates=(0.1,))
    assert not single.chooses_early and single.steps_after_choice == 700
