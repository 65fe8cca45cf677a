import dataclasses

import jax
import numpy as np
import pytest

from rankckpt_jax import errors, finetune
from rankckpt_jax.checkpoints import backbone as backbone_lib
from rankckpt_jax.data import pipeline
from rankckpt_jax.data import splits as splits_lib
from rankckpt_jax.devices import compilation
from rankckpt_jax.features import extract
from rankckpt_jax.finetune import loop, results, step
from tests.finetune import RECIPE, run, settings, without_times

PROBE = dataclasses.replace(RECIPE, frozen=True)


def test_run_learns_and_counts_each_test_image_once(backbone, task, tmp_path):
    recipe = dataclasses.replace(RECIPE, num_steps=60)
    result, _ = run(tmp_path, backbone, task, recipe)
    assert result.accuracy > 0.85
    assert result.diverged_at == -1 and not result.warning
    # 21 test images in batches of 8: a padded row that counts would show here.
    assert result.accuracy * 21 == pytest.approx(round(result.accuracy * 21))


@pytest.mark.parametrize("rates", [(0.05,), (0.05, 0.01)])
def test_compile_programs_makes_those_that_run_calls(backbone, task, tmp_path, rates):
    recipe = dataclasses.replace(RECIPE, num_steps=2, evaluations=1)
    sweep = finetune.Sweep("custom", recipe, rates, (2,), trials_at_once=2)

    def mapped():
        """Return the kept programs of `map_devices`."""
        return {path.name for path in tmp_path.glob("compiled/*/jit__fun-*-cache")}

    # As in a new process.
    jax.clear_caches()
    with compilation.persistent_cache(str(tmp_path / "compiled")):
        finetune.compile_programs(backbone, task, sweep)
        ahead = mapped()
        jax.clear_caches()
        run(tmp_path / "finetune", backbone, task, sweep)
        assert mapped() == ahead and len(ahead) == 2


def test_run_reports_divergence(backbone, task, tmp_path):
    recipe = dataclasses.replace(RECIPE, learning_rate=3e38, num_steps=20)
    result, _ = run(tmp_path, backbone, task, recipe)
    # The head starts at zero, so the loss of step 1 is log(2). Step 1 gives the head
    # weights whose logits overflow in step 2.
    assert result.diverged_at == 2
    assert result.accuracy is None
    assert "diverged at step 2" in result.warning


AUGMENTED = dataclasses.replace(
    RECIPE, random_crop=0.3, random_flip=True, accumulate=2, dtype="bfloat16"
)


ADAMW = dataclasses.replace(RECIPE, optimizer="adamw", weight_decay=0.1)


@pytest.mark.parametrize("recipe", [RECIPE, AUGMENTED, PROBE, ADAMW])
def test_run_resumes_killed_trial(backbone, task, tmp_path, recipe):
    expected, _ = run(tmp_path / "expected", backbone, task, recipe)

    class Killed(Exception):
        pass

    original = pipeline.training_batches
    first_steps = []

    def kill_at_step_10(*args, **kwargs):
        for i, batch in enumerate(original(*args, **kwargs)):
            if i == 10:
                raise Killed
            yield batch

    def record(*args, **kwargs):
        first_steps.append(kwargs["first_step"])
        return original(*args, **kwargs)

    directory = tmp_path / "killed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "training_batches", kill_at_step_10)
        with pytest.raises(Killed):
            run(directory, backbone, task, recipe)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "training_batches", record)
        resumed, computed = run(directory, backbone, task, recipe)
    assert first_steps == [8] and computed
    assert without_times(resumed.trials[0]) == without_times(expected.trials[0])
    names = {path.name for path in directory.iterdir()}
    assert names == {"result.json", "runs", "metrics"}
    assert run(directory, backbone, task, recipe) == (resumed, False)


def test_run_saves_and_resumes_after_stop(backbone, task, tmp_path):
    recipe = dataclasses.replace(RECIPE, save_every=100)
    expected, _ = run(tmp_path / "expected", backbone, task, recipe)
    directory = tmp_path / "stopped"
    with pytest.raises(errors.Interrupted):
        run(directory, backbone, task, recipe, should_stop=lambda step: step == 7)
    assert any((directory / "state").iterdir())
    resumed, _ = run(directory, backbone, task, recipe)
    # The CSV files differ: the resumed one has a row for the step of the stop.
    (trial, _), (other, _) = map(without_times, (resumed.trials[0], expected.trials[0]))
    assert trial == other


def test_run_recomputes_for_changed_recipe(backbone, task, tmp_path):
    first, _ = run(tmp_path, backbone, task, PROBE)
    changed = dataclasses.replace(PROBE, num_steps=2)
    assert run(tmp_path, backbone, task, changed, compute=False) == (None, False)
    # The frequency of saves does not change the result.
    saved_rarely = dataclasses.replace(PROBE, save_every=100)
    assert run(tmp_path, backbone, task, saved_rarely) == (first, False)


@pytest.mark.parametrize("split", ["train", "test"])
def test_run_repeats_after_images_change(backbone, task, tmp_path, split):
    first, _ = run(tmp_path, backbone, task, PROBE)
    given = task.splits[split]
    examples = list(given.examples(None, 0, 1, 0))
    images = np.stack([255 - example.read() for example in examples])
    labels = np.asarray([example.label for example in examples])
    splits = {**task.splits, split: splits_lib.array_split(split, images, labels)}
    changed = dataclasses.replace(task, splits=splits)
    assert run(tmp_path, backbone, changed, PROBE, compute=False) == (None, False)
    assert run(tmp_path, backbone, task, PROBE) == (first, False)


@pytest.mark.parametrize(
    ("module", "name"), [(step, "TRAINING_VERSION"), (backbone_lib, "FORWARD_VERSION")]
)
def test_run_repeats_for_another_version(
    backbone, task, tmp_path, monkeypatch, module, name
):
    run(tmp_path, backbone, task, PROBE)
    monkeypatch.setattr(module, name, getattr(module, name) + 1)
    assert run(tmp_path, backbone, task, PROBE, compute=False) == (None, False)


def make_sweep(**options):
    """Return a sweep of linear probes."""
    return finetune.Sweep("probes", PROBE, (0.1, 1e-4), (20, 40), **options)


def test_run_chooses_on_val_and_trains_again_on_all(backbone, task, tmp_path):
    sweep = make_sweep(select_by="val")
    result, _ = run(tmp_path, backbone, task, sweep)
    *grid, final = result.trials
    settings = [(trial.num_steps, trial.learning_rate) for trial in grid]
    assert settings == [(20, 0.1), (20, 1e-4), (40, 0.1), (40, 1e-4)]
    assert {trial.trained_on for trial in grid} == {"train_kept"}
    assert {trial.validated_on for trial in grid} == {"train_held"}
    assert result.selection == "val"
    best = max(grid, key=lambda trial: trial.validation_accuracy)
    assert final.learning_rate == result.learning_rate == best.learning_rate
    assert final.num_steps == result.num_steps == best.num_steps
    assert (final.trained_on, final.validated_on) == ("train", "test")
    assert result.accuracy == final.accuracy
    assert result.images == (2 * 20 + 2 * 40 + final.num_steps) * 8

    for trial in grid:
        steps, accuracies = zip(*trial.curve, strict=True)
        early = trial.num_steps // 10
        assert list(steps) == sorted({early, trial.num_steps // 2, trial.num_steps})
        assert (trial.early_stop_step, trial.early_stop_accuracy) == trial.curve[0]
        assert trial.validation_accuracy == accuracies[-1]
        assert trial.best_accuracy == max(accuracies)
    assert result.curve in (best.curve, final.curve)

    path = tmp_path / "metrics" / "lr0.1_steps40.csv"
    text = path.read_text()
    header, *lines = text.splitlines()
    assert header.startswith("step,loss,learning_rate,images_per_second,accuracy,")
    steps = [int(line.split(",")[0]) for line in lines]
    assert steps == sorted(steps) and {4, 20, 40} <= set(steps)
    assert list((tmp_path / "metrics/lr0.1_steps40").glob("events.out.tfevents.*"))
    path.write_text("damaged")
    run(tmp_path, backbone, task, sweep)
    assert path.read_text() == text


def test_run_reuses_trials_when_grid_changes(backbone, task, tmp_path, monkeypatch):
    first, _ = run(tmp_path, backbone, task, make_sweep())
    trained = []
    original = loop.train_trials

    def record(*args, **kwargs):
        trained.extend(args[3])
        return original(*args, **kwargs)

    monkeypatch.setattr(loop, "train_trials", record)
    other = dataclasses.replace(make_sweep(), learning_rates=(0.1, 0.01))
    second, computed = run(tmp_path, backbone, task, other)
    assert computed and [trial.learning_rate for trial in trained] == [0.01, 0.01]
    assert second.trials[0] == first.trials[0]
    assert second.accuracy == max(trial.accuracy for trial in second.trials)


def test_sweep_compiles_once_and_isolates_divergence(backbone, task, tmp_path):
    recipe = dataclasses.replace(RECIPE, momentum=0.8, weight_decay=1e-4, clip_norm=9.0)
    sweep = finetune.Sweep("grid", recipe, (3e38, 0.02), (6, 12))
    before = sum(step.NUM_TRACES.values())
    result, _ = run(tmp_path, backbone, task, sweep)
    assert sum(step.NUM_TRACES.values()) - before <= 1
    diverged = [trial.diverged_at >= 0 for trial in result.trials]
    assert diverged == [True, False, True, False]
    assert result.learning_rate == 0.02 and result.accuracy is not None
    assert result.warning.startswith("2 of 4 fine-tuning trials diverged")
    first = result.trials[0]
    assert (first.accuracy, first.best_accuracy, first.final_loss) == (None,) * 3


@pytest.mark.parametrize("recipe", [RECIPE, PROBE])
def test_trials_at_once_match_trials_alone(backbone, task, tmp_path, recipe):
    recipe = dataclasses.replace(recipe, weight_decay=0.01)
    alone = finetune.Sweep("grid", recipe, (0.1, 3e38, 1.0), (20,))
    together = dataclasses.replace(alone, trials_at_once=3)
    expected, _ = run(tmp_path / "alone", backbone, task, alone)
    result, _ = run(tmp_path / "together", backbone, task, together)
    for trial, other in zip(result.trials, expected.trials, strict=True):
        assert (trial.accuracy, trial.diverged_at) == (
            other.accuracy,
            other.diverged_at,
        )
        assert trial.curve == other.curve
        if trial.diverged_at < 0:
            assert trial.final_loss == pytest.approx(other.final_loss, rel=1e-4)


def test_probe_is_logistic_regression_on_features(backbone, task, tmp_path):
    """Compare with the update written in NumPy, in float64, on extracted features."""
    recipe = dataclasses.replace(PROBE, label_smoothing=0.2)
    result, _ = run(tmp_path, backbone, task, recipe)
    train = extract.extract(backbone, task.splits["train"], batch_size=8, **settings())
    x, y = train["features"].astype(np.float64), train["labels"]
    kernel, bias = np.zeros((x.shape[1], 2)), np.zeros(2)
    momentum = np.zeros_like(kernel), np.zeros_like(bias)
    batches = pipeline.training_batches(
        task.splits["train"],
        size=32,
        batch_size=8,
        seed=0,
        first_step=0,
        last_step=12,
        **settings(),
    )
    for rate, batch in zip(finetune.schedule(recipe), batches, strict=True):
        rows = batch.index
        logits = x[rows] @ kernel + bias
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        targets = 0.8 * np.eye(2)[y[rows]] + 0.1
        loss = -(targets * log_p).sum(1).mean()
        error = (np.exp(log_p) - targets) / len(rows)
        gradients = x[rows].T @ error, error.sum(0)
        momentum = [0.9 * m + g for m, g in zip(momentum, gradients, strict=True)]
        kernel, bias = kernel - rate * momentum[0], bias - rate * momentum[1]
    assert result.trials[0].final_loss == pytest.approx(loss, rel=1e-5)
    test = extract.extract(backbone, task.splits["test"], batch_size=8, **settings())
    guess = (test["features"] @ kernel + bias).argmax(1)
    assert result.accuracy == pytest.approx(np.mean(guess == test["labels"]))


@pytest.mark.parametrize(
    ("validation", "diverged_at", "expected"),
    [
        ((0.5, 0.7, 0.7), (-1, -1, -1), 1),
        ((0.0, None, 0.1), (-1, 9, -1), 2),
        ((None, None, None), (3, 5, 5), 1),
    ],
)
def test_choose_prefers_accuracy_then_late_divergence(
    backbone, validation, diverged_at, expected
):
    blank = dict.fromkeys(f.name for f in dataclasses.fields(finetune.TrialResult))
    trials = [
        finetune.TrialResult(
            **{**blank, "validation_accuracy": accuracy, "diverged_at": at}
        )
        for accuracy, at in zip(validation, diverged_at, strict=True)
    ]
    assert results.choose(trials) is trials[expected]


@pytest.mark.parametrize(("batch_size", "used"), [(8, 8), (32, 32), (8192, 32)])
def test_run_takes_no_batch_larger_than_the_training_split(
    backbone, task, tmp_path, batch_size, used, caplog
):
    recipe = dataclasses.replace(RECIPE, batch_size=batch_size, num_steps=2)
    with caplog.at_level("INFO"):
        result, _ = run(tmp_path, backbone, task, recipe)
    assert result.images == 2 * used
    assert ("not 8192, because train has 32" in caplog.text) == (batch_size > 32)
    # The stored result is of the batch that was used.
    same = dataclasses.replace(recipe, batch_size=used)
    assert run(tmp_path, backbone, task, same) == (result, False)


def test_run_lowers_the_batch_to_a_power_of_two(backbone, task, tmp_path):
    """So the result does not depend on the number of devices."""
    train = task.splits["train"].subset("part", np.arange(27))
    part = dataclasses.replace(task, splits={**task.splits, "train": train})
    recipe = dataclasses.replace(RECIPE, batch_size=64, num_steps=2)
    assert run(tmp_path, backbone, part, recipe)[0].images == 2 * 16
