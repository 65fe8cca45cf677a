"""Learning rates are dropped early, and a fine-tuning can be left after its start."""

import dataclasses

import pytest
from etils import epath

from rankckpt_jax import errors, finetune
from rankckpt_jax.checkpoints.description import describe
from rankckpt_jax.finetune import loop
from tests.finetune import RECIPE, run, settings, without_times

RATES = (0.0, 0.05, 3e38)
COMPLETE = finetune.Sweep("grid", RECIPE, RATES, (12,), "val", "train")
EARLY = dataclasses.replace(COMPLETE, choose_after=0.5)


def start(directory, backbone, task, sweep, **options):
    options = {**settings(), "description": "small", **options}
    return finetune.start(
        finetune.prepare(epath.Path(directory), backbone, task, sweep, **options),
        "small",
    )


def load_start(directory, backbone, task, sweep):
    known = describe(backbone), task, sweep
    return finetune.load_start(epath.Path(directory), *known, preprocess="vtab")


@pytest.fixture
def trained(monkeypatch):
    """List (learning rate, first step, last step) of every training."""
    original = loop.train_trials
    calls = []

    def record(*args, **kwargs):
        steps = kwargs["first_step"], kwargs["last_step"]
        calls.extend((trial.learning_rate, *steps) for trial in args[3])
        return original(*args, **kwargs)

    monkeypatch.setattr(loop, "train_trials", record)
    return calls


def test_run_trains_only_the_best_rate_to_the_end(backbone, task, tmp_path, trained):
    complete, _ = run(tmp_path / "complete", backbone, task, COMPLETE)
    assert complete.learning_rate == 0.05
    trained.clear()
    result, computed = run(tmp_path / "early", backbone, task, EARLY)
    assert computed
    assert trained == [(rate, 0, 6) for rate in RATES] + [(0.05, 6, 12)]
    low, best, diverged = result.trials
    # The chosen trial is that of the complete sweep, with one more point of its curve.
    expected = without_times(complete.trials[1])[0]
    found = without_times(best)[0]
    assert {6, 12} <= {step for step, _ in found.curve}
    assert set(expected.curve) <= set(found.curve)
    assert (found.accuracy, found.final_loss, found.values) == (
        expected.accuracy,
        expected.final_loss,
        expected.values,
    )
    assert result.accuracy == complete.accuracy
    assert low.accuracy is None and low.validation_accuracy is not None
    assert (low.images, best.images, diverged.images) == (6 * 8, 12 * 8, 2 * 8)
    assert result.images == (6 + 12 + 2) * 8
    assert result.warning.startswith("1 of 3 fine-tuning trials diverged")
    assert not (tmp_path / "early" / "state").exists()
    assert run(tmp_path / "early", backbone, task, EARLY) == (result, False)
    # A complete sweep asks for more than was trained.
    assert run(tmp_path / "early", backbone, task, COMPLETE, compute=False)[0] is None


def test_a_complete_sweep_serves_where_an_early_choice_is_asked(
    backbone, task, tmp_path
):
    complete, _ = run(tmp_path, backbone, task, COMPLETE)
    assert run(tmp_path, backbone, task, EARLY) == (complete, False)


def test_run_goes_on_where_start_ends(backbone, task, tmp_path, trained):
    assert load_start(tmp_path, backbone, task, EARLY) is None
    begun = start(tmp_path, backbone, task, EARLY)
    assert trained == [(rate, 0, 6) for rate in RATES]
    assert (begun.learning_rate, begun.steps, begun.num_steps) == (0.05, 6, 12)
    assert begun.num_images == 4 and 0 <= begun.accuracy <= 1
    assert begun.seconds > begun.compile_seconds >= 0
    assert load_start(tmp_path, backbone, task, EARLY) == begun
    trained.clear()
    assert start(tmp_path, backbone, task, EARLY) == begun
    result, _ = run(tmp_path, backbone, task, EARLY)
    assert trained == [(0.05, 6, 12)]
    expected, _ = run(tmp_path / "other", backbone, task, EARLY)
    for trial, other in zip(result.trials, expected.trials, strict=True):
        assert without_times(trial) == without_times(other)


def test_a_stopped_start_resumes(backbone, task, tmp_path, trained):
    with pytest.raises(errors.Interrupted):
        start(tmp_path, backbone, task, EARLY, should_stop=lambda step: step == 3)
    trained.clear()
    begun = start(tmp_path, backbone, task, EARLY)
    assert trained[0] == (0.0, 3, 6)
    expected = start(tmp_path / "other", backbone, task, EARLY)
    times = {"seconds": 0.0, "compile_seconds": 0.0}
    assert dataclasses.replace(begun, **times) == dataclasses.replace(expected, **times)


def test_each_number_of_steps_keeps_its_best_rate(backbone, task, tmp_path, trained):
    sweep = finetune.Sweep("grid", RECIPE, (0.05, 0.0), (4, 8), "val")
    sweep = dataclasses.replace(sweep, choose_after=0.5)
    result, _ = run(tmp_path, backbone, task, sweep)
    ends = [(rate, last) for rate, _, last in trained]
    assert ends[:4] == [(0.05, 2), (0.0, 2), (0.05, 4), (0.0, 4)]
    assert sorted(last for _, last in ends[4:6]) == [4, 8]
    # The chosen setting is trained again on all images.
    assert len(ends) == 7 and result.trials[-1].trained_on == "train"
    assert [trial.num_steps for trial in result.trials[:4]] == [4, 4, 8, 8]


def test_a_single_rate_can_be_left_after_its_start(backbone, task, tmp_path, trained):
    sweep = dataclasses.replace(EARLY, learning_rates=(0.05,))
    begun = start(tmp_path, backbone, task, sweep)
    # Nothing is chosen, so no images are held out.
    assert begun.num_images == task.splits["test"].num_examples
    run(tmp_path, backbone, task, sweep)
    assert trained == [(0.05, 0, 6), (0.05, 6, 12)]


def test_a_start_that_diverges_is_not_trained_on(backbone, task, tmp_path, trained):
    sweep = dataclasses.replace(EARLY, learning_rates=(3e38, 2e38))
    assert start(tmp_path, backbone, task, sweep).accuracy is None
    trained.clear()
    result, _ = run(tmp_path, backbone, task, sweep)
    assert not trained and result.accuracy is None and result.diverged_at == 2
