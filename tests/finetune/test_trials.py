"""Trials that are trained in parts, as successive halving does."""

import dataclasses

from etils import epath

from rankckpt_jax import finetune
from rankckpt_jax.finetune import trials
from tests.finetune import RECIPE, settings, without_times


def test_train_until_continues_the_same_trial(backbone, task, tmp_path):
    recipe = dataclasses.replace(RECIPE, save_every=100)
    sweep = finetune.Sweep(
        "custom", recipe, (recipe.learning_rate,), (recipe.num_steps,), budget=100
    )

    def prepare(name):
        directory = epath.Path(tmp_path / name)
        return finetune.prepare(directory, backbone, task, sweep, **settings())

    def complete(prepared):
        images = prepared.splits.train, prepared.splits.validation
        [result] = trials.load_or_train(
            prepared.context, [recipe], *images, description="complete"
        )
        return result

    assert prepare("a").splits.validation.name == "train_held"
    expected = complete(prepare("a"))
    prepared = prepare("b")
    images = prepared.splits.train, prepared.splits.validation
    for step in (3, 7):
        part = trials.train_until(
            prepared.context, recipe, *images, step, description="part"
        )
        assert part.images == step * recipe.batch_size
        assert part.curve[-1] == (step, part.validation_accuracy)
        assert part.accuracy == part.validation_accuracy
    continued = complete(prepared)
    # The parts add points to the curve, and nothing else differs.
    plain = [
        dataclasses.replace(without_times(r)[0], curve=(), curves={}, best_accuracy=0)
        for r in (expected, continued)
    ]
    assert plain[0] == plain[1]
    assert set(expected.curve) <= set(continued.curve)
    assert {3, 7} <= {step for step, _ in continued.curve}
