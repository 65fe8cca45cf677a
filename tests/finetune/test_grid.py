import dataclasses

import numpy as np
import pytest
from etils import epath

from rankckpt_jax import errors, finetune
from rankckpt_jax.data import pipeline
from rankckpt_jax.features import extract
from rankckpt_jax.finetune import loop, step
from tests.finetune import RECIPE, settings, without_times


def test_fine_tuning_learns_and_counts_every_test_image_once(backbone, task, tmp_path):
    recipe = dataclasses.replace(RECIPE, num_steps=120)
    outcome, _ = finetune.get(
        epath.Path(tmp_path), backbone, task, recipe, **settings()
    )
    assert outcome.accuracy > 0.85
    assert outcome.diverged_at == -1
    # 21 test images in batches of 8: a padded row that counted would show here.
    assert outcome.accuracy * 21 == pytest.approx(round(outcome.accuracy * 21))


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
    assert without_times(resumed.runs[0]) == without_times(whole.runs[0])
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
    found = extract.extract(backbone, task.splits["train"], batch_size=8, **settings())
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
    found = extract.extract(backbone, task.splits["test"], batch_size=8, **settings())
    guess = (found["features"] @ kernel + bias).argmax(1)
    assert outcome.accuracy == pytest.approx(np.mean(guess == found["labels"]))


def test_a_run_that_is_asked_to_stop_saves_and_goes_on_later(backbone, task, tmp_path):
    recipe = dataclasses.replace(RECIPE, frozen=True, save_every=100)
    whole, _ = finetune.get(
        epath.Path(tmp_path) / "whole", backbone, task, recipe, **settings()
    )
    place = epath.Path(tmp_path) / "stopped"
    with pytest.raises(errors.Interrupted):
        finetune.get(
            place, backbone, task, recipe, should_stop=lambda n: n == 7, **settings()
        )
    assert (place / "state" / "7").exists()
    resumed, _ = finetune.get(place, backbone, task, recipe, **settings())
    # Its CSV has a row more, of the step at which it stopped.
    (run, _), (expected, _) = map(without_times, (resumed.runs[0], whole.runs[0]))
    assert run == expected
