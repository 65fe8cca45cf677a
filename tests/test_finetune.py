import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from rankckpt_jax import checkpoints, finetune
from rankckpt_jax.checkpoints import backbone as backbone_lib
from rankckpt_jax.data import pipeline, tasks

RECIPE = finetune.Recipe(
    learning_rate=0.02,
    num_steps=12,
    batch_size=8,
    batch_norm_decay=0.8,
    evaluations=2,
    save_every=4,
)


@pytest.fixture(scope="module")
def task():
    """Two classes told apart by the brighter half of the image."""
    random = np.random.default_rng(0)

    def split(name, count):
        labels = np.arange(count) % 2
        images = random.integers(0, 90, (count, 32, 32, 3))
        images[labels == 0, :16] += 160
        images[labels == 1, 16:] += 160
        return tasks.array_split(name, images.astype(np.uint8), labels)

    splits = {"train": split("train", 32), "test": split("test", 21)}
    return tasks.Task("halves", ("top", "bottom"), splits, "made up")


@pytest.fixture(scope="module")
def backbone(pool):
    return checkpoints.load(str(pool / "first"), image_size=32)


def settings():
    return {"preprocess": "vtab", "cache": pipeline.ImageCache(1.0)}


def train(backbone, task, recipe=RECIPE, **options):
    state = finetune.initial_state(backbone, task.num_classes)
    return finetune.train(
        backbone, state, task.splits["train"], recipe, **settings(), **options
    )


def test_the_head_starts_at_zero_on_the_checkpoints_own_weights(backbone, task):
    state = finetune.initial_state(backbone, 5)
    assert state.params["head"]["kernel"].shape == (256, 5)
    assert not np.any(state.params["head"]["kernel"])
    headless, _ = backbone_lib.split_head(backbone.variables)
    jax.tree.map(
        np.testing.assert_array_equal, state.params["backbone"], headless["params"]
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


def test_fine_tuning_learns_and_counts_every_test_image_once(backbone, task, tmp_path):
    recipe = dataclasses.replace(RECIPE, num_steps=120, learning_rate=0.05)
    outcome, _ = finetune.get(
        epath.Path(tmp_path), backbone, task, recipe, **settings()
    )
    assert outcome.accuracy > 0.85
    assert outcome.diverged_at == -1
    # 21 test images in batches of 8: a padded row that counted would show here.
    assert outcome.accuracy * 21 == pytest.approx(round(outcome.accuracy * 21))


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


def test_divergence_is_reported_and_is_no_accuracy(backbone, task, tmp_path):
    recipe = dataclasses.replace(RECIPE, learning_rate=1e30, num_steps=20)
    outcome, _ = finetune.get(
        epath.Path(tmp_path), backbone, task, recipe, **settings()
    )
    # The head starts at zero, so the first step moves it alone, and the second's loss
    # is huge; the second moves the backbone, and the third's is no number.
    assert outcome.diverged_at == 3
    assert outcome.accuracy is None


def test_a_stopped_run_goes_on_from_its_last_save(backbone, task, tmp_path):
    whole, _ = finetune.get(
        epath.Path(tmp_path) / "whole", backbone, task, RECIPE, **settings()
    )

    class Killed(Exception):
        pass

    seen = []
    original = pipeline.training_batches

    def dying(*args, **kwargs):
        for step, batch in enumerate(original(*args, **kwargs)):
            if step == 10:
                raise Killed
            yield batch

    def watching(*args, **kwargs):
        seen.append(kwargs["first_step"])
        return original(*args, **kwargs)

    place = epath.Path(tmp_path) / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "training_batches", dying)
        with pytest.raises(Killed):
            finetune.get(place, backbone, task, RECIPE, **settings())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "training_batches", watching)
        resumed, computed = finetune.get(place, backbone, task, RECIPE, **settings())
    assert seen == [8] and computed
    drop = {"seconds": 0.0}
    [run], [expected] = resumed.runs, whole.runs
    assert dataclasses.replace(run, **drop) == dataclasses.replace(expected, **drop)
    assert {path.name for path in place.iterdir()} == {
        "result.json",
        "runs",
        "metrics",
    }
    again, computed = finetune.get(place, backbone, task, RECIPE, **settings())
    assert again == resumed and not computed


def test_another_recipe_is_another_result(backbone, task, tmp_path):
    place = epath.Path(tmp_path)
    first, _ = finetune.get(place, backbone, task, RECIPE, **settings())
    other = dataclasses.replace(RECIPE, num_steps=2)
    none, computed = finetune.get(
        place, backbone, task, other, compute=False, **settings()
    )
    assert none is None and not computed
    # How often the state is saved is no part of the result.
    rarely = dataclasses.replace(RECIPE, save_every=100)
    again, computed = finetune.get(place, backbone, task, rarely, **settings())
    assert again == first and not computed
