import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from rankckpt_jax import checkpoints, features, finetune, parallel
from rankckpt_jax.checkpoints import backbone as backbone_lib
from rankckpt_jax.configs import default
from rankckpt_jax.data import pipeline, tasks
from rankckpt_jax.errors import InputError
from rankckpt_jax.finetune import loop, probe, step

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
        for i, batch in enumerate(original(*args, **kwargs)):
            if i == 10:
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


def test_a_batch_that_devices_cannot_share_is_refused_not_rounded(monkeypatch):
    monkeypatch.setattr(parallel, "local_device_count", lambda: 3)
    with pytest.raises(InputError, match="66 is the nearest"):
        step.check_batch(64, 1)
    assert step.check_batch(66, 2) == 66


def probing(task, tmp_path, **options):
    """A sweep of cheap runs: of the head alone."""
    recipe = dataclasses.replace(RECIPE, frozen=True, num_steps=40, **options)
    return finetune.Sweep("probes", recipe, (0.1, 1e-4), (20, 40), select_by="val")


def test_a_grid_is_chosen_on_val_and_trained_again_on_all(backbone, task, tmp_path):
    sweep = probing(task, tmp_path)
    place = epath.Path(tmp_path)
    outcome, _ = finetune.get(place, backbone, task, sweep, **settings())
    *grid, final = outcome.runs
    assert [(run.num_steps, run.learning_rate) for run in grid] == [
        (20, 0.1),
        (20, 1e-4),
        (40, 0.1),
        (40, 1e-4),
    ]
    assert {run.trained_on for run in grid} == {"train_kept"}
    assert {run.judged_on for run in grid} == {"train_held"}
    assert outcome.selection == "val"
    best = max(grid, key=lambda run: run.judged)
    assert (final.learning_rate, final.num_steps) == (
        best.learning_rate,
        best.num_steps,
    )
    assert (final.trained_on, final.judged_on) == ("train", "test")
    assert outcome.accuracy == final.accuracy
    assert outcome.images == (2 * 20 + 2 * 40 + final.num_steps) * 8

    for run in grid:
        assert [point[0] for point in run.curve] == sorted(
            {run.num_steps // 10, run.num_steps // 2, run.num_steps}
        )
        assert run.early_stop == run.curve[0][1]
        assert (run.early_stop_step, run.judged) == (run.curve[0][0], run.curve[-1][1])
        assert run.best == max(accuracy for _, accuracy in run.curve)
    metrics = place / "metrics" / "lr0.1_steps40.csv"
    header, *lines = metrics.read_text().splitlines()
    assert header == "step,loss,learning_rate,images_per_second,accuracy"
    written = [int(line.split(",")[0]) for line in lines]
    assert written == sorted(written)  # And between, where a step takes long.
    assert {4, 20, 40} <= set(written)
    assert list((place / "metrics" / "lr0.1_steps40").glob("events.out.tfevents.*"))


def test_runs_that_are_done_are_not_repeated_when_the_grid_changes(
    backbone, task, tmp_path, monkeypatch
):
    sweep = dataclasses.replace(probing(task, tmp_path), select_by="test")
    place = epath.Path(tmp_path)
    first, _ = finetune.get(place, backbone, task, sweep, **settings())
    trained = []
    original = loop.train_cells

    def watching(*args, **kwargs):
        trained.extend(args[3])
        return original(*args, **kwargs)

    monkeypatch.setattr(loop, "train_cells", watching)
    wider = dataclasses.replace(sweep, learning_rates=(0.1, 0.01), num_steps=(20, 40))
    second, computed = finetune.get(place, backbone, task, wider, **settings())
    assert computed and [run.learning_rate for run in trained] == [0.01, 0.01]
    assert second.runs[0] == first.runs[0]
    assert second.accuracy == max(run.accuracy for run in second.runs)


def test_a_grid_compiles_once_and_its_divergence_stays_in_its_cell(
    backbone, task, tmp_path
):
    # A momentum of its own, so that the program is the same but all values are new.
    recipe = dataclasses.replace(RECIPE, momentum=0.8, weight_decay=1e-4, clip_norm=9.0)
    sweep = finetune.Sweep("grid", recipe, (1e30, 0.02), (6, 12))
    before = dict(step.NUM_TRACES)
    outcome, _ = finetune.get(epath.Path(tmp_path), backbone, task, sweep, **settings())
    news = {k: n - before.get(k, 0) for k, n in step.NUM_TRACES.items()}
    assert sum(news.values()) <= 1
    assert [run.diverged_at >= 0 for run in outcome.runs] == [True, False, True, False]
    assert outcome.learning_rate == 0.02 and outcome.accuracy is not None
    diverged = outcome.runs[0]
    assert (diverged.accuracy, diverged.best, diverged.final_loss) == (None,) * 3


def test_cells_side_by_side_train_as_they_do_alone(backbone, task, tmp_path):
    alone = probing(task, tmp_path, weight_decay=0.01)
    alone = dataclasses.replace(alone, select_by="test", learning_rates=(0.1, 1e30, 1))
    together = dataclasses.replace(alone, cells_at_once=3)
    found = [
        finetune.get(epath.Path(tmp_path) / name, backbone, task, sweep, **settings())[
            0
        ]
        for name, sweep in (("alone", alone), ("together", together))
    ]
    for one, other in zip(found[0].runs, found[1].runs, strict=True):
        assert (one.accuracy, one.diverged_at) == (other.accuracy, other.diverged_at)
        assert one.curve == other.curve
        if one.diverged_at < 0:
            assert one.final_loss == pytest.approx(other.final_loss, rel=1e-4)


@pytest.mark.slow
def test_whole_networks_side_by_side_train_as_they_do_alone(backbone, task, tmp_path):
    alone = finetune.Sweep("grid", RECIPE, (1e-4, 2e-4), (4,))
    together = dataclasses.replace(alone, cells_at_once=2)
    found = [
        finetune.get(epath.Path(tmp_path) / name, backbone, task, sweep, **settings())[
            0
        ]
        for name, sweep in (("alone", alone), ("together", together))
    ]
    for one, other in zip(found[0].runs, found[1].runs, strict=True):
        assert one.final_loss == pytest.approx(other.final_loss, rel=1e-3)


def test_a_linear_probe_is_logistic_regression_on_the_features(
    backbone, task, tmp_path
):
    """Against the update written out in NumPy, float64, on the features themselves."""
    recipe = dataclasses.replace(RECIPE, frozen=True, label_smoothing=0.2)
    outcome, _ = finetune.get(
        epath.Path(tmp_path), backbone, task, recipe, **settings()
    )
    found = features.extract(backbone, task.splits["train"], batch_size=8, **settings())
    x, y = found["features"].astype(np.float64), found["labels"]
    kernel, bias = np.zeros((x.shape[1], 2)), np.zeros(2)
    trace = np.zeros_like(kernel), np.zeros_like(bias)
    rates = finetune.schedule(recipe)
    batches = pipeline.training_batches(
        task.splits["train"],
        size=32,
        batch_size=8,
        seed=0,
        first_step=0,
        last_step=12,
        **settings(),
    )
    for rate, batch in zip(rates, batches, strict=True):
        rows = batch.index
        logits = x[rows] @ kernel + bias
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        wanted = 0.8 * np.eye(2)[y[rows]] + 0.1
        loss = -(wanted * log_p).sum(1).mean()
        error = (np.exp(log_p) - wanted) / len(rows)
        trace = (0.9 * trace[0] + x[rows].T @ error, 0.9 * trace[1] + error.sum(0))
        kernel, bias = kernel - rate * trace[0], bias - rate * trace[1]
    assert outcome.runs[0].final_loss == pytest.approx(loss, rel=1e-5)
    found = features.extract(backbone, task.splits["test"], batch_size=8, **settings())
    guess = (found["features"] @ kernel + bias).argmax(1)
    assert outcome.accuracy == pytest.approx(np.mean(guess == found["labels"]))


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
    state = parallel.replicate(state._replace(params=params))
    run = step.train_step(step.program(given, recipe))
    scaling = (np.float32(0), np.float32(255), np.zeros(1, np.float32))
    data = parallel.shard((images, labels.astype(np.int32), np.arange(8)))
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


def test_a_run_that_is_asked_to_stop_saves_and_goes_on_later(backbone, task, tmp_path):
    recipe = dataclasses.replace(RECIPE, frozen=True, save_every=100)
    whole, _ = finetune.get(
        epath.Path(tmp_path) / "whole", backbone, task, recipe, **settings()
    )
    place = epath.Path(tmp_path) / "stopped"
    with pytest.raises(finetune.Interrupted):
        finetune.get(
            place, backbone, task, recipe, should_stop=lambda n: n == 7, **settings()
        )
    assert (place / "state" / "7").exists()
    resumed, _ = finetune.get(place, backbone, task, recipe, **settings())
    [run], [expected] = resumed.runs, whole.runs
    assert dataclasses.replace(run, seconds=expected.seconds) == expected
