"""Fine-tuning for several labels per image, for numbers, and by other metrics."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from etils import epath

from rankckpt_jax import finetune
from rankckpt_jax.data import tasks
from rankckpt_jax.data.splits import array_split
from rankckpt_jax.devices import mapping
from rankckpt_jax.errors import InputError
from rankckpt_jax.finetune import loop, probe, step
from rankckpt_jax.storage import store
from tests.finetune import RECIPE, run, settings

SWEEP = finetune.Sweep("test", RECIPE, (0.05, 0.01), (12,), select_by="test")


def make_task(target):
    """Images with a bright upper and a bright left half, which are the labels.

    The number is the brightness of the upper half.
    """
    random = np.random.default_rng(0)

    def split(name, count):
        halves = random.integers(0, 2, (count, 2)).astype(bool)
        images = random.integers(0, 60, (count, 32, 32, 3))
        images[halves[:, 0], :16] += 90
        images[halves[:, 1], :, :16] += 90
        if target == "multi_label":
            return array_split(name, images.astype(np.uint8), halves, target)
        added = random.integers(0, 60, count)
        images[:, :16] += added[:, None, None, None]
        # Far from 0, so that only standardized numbers can be learned.
        numbers = 1000 + 1.5 * halves[:, 0] + added / 60
        return array_split(name, images.astype(np.uint8), numbers, target)

    names = ("upper", "left") if target == "multi_label" else ()
    splits = {"train": split("train", 40), "test": split("test", 21)}
    return tasks.Task(target, names, splits, "made up", target=target)


@pytest.mark.parametrize(
    ("target", "default", "other", "least"),
    [
        ("multi_label", "mean_average_precision", "auroc", 0.95),
        ("regression", "r2", "spearman", 0.7),
    ],
)
def test_run_learns_each_target(backbone, tmp_path, target, default, other, least):
    task = make_task(target)
    finetune.check(task, SWEEP)
    result, _ = run(tmp_path, backbone, task, SWEEP)
    assert (result.metric, set(result.values)) == (default, {default, other})
    assert result.accuracy == result.values[default] > least
    assert result.values[other] > least
    assert result.accuracy == max(trial.accuracy for trial in result.trials)
    if target == "regression":
        # Trials that share a device have the same metrics, up to the order of sums.
        both = dataclasses.replace(SWEEP, trials_at_once=2)
        beside, _ = run(tmp_path / "both", backbone, task, both)
        for one, two in zip(result.trials, beside.trials, strict=True):
            assert one.values == pytest.approx(two.values, abs=1e-3)
    # The other metric needs no further training.
    sweep = dataclasses.replace(SWEEP, metric=other)
    again, _ = run(tmp_path, backbone, task, sweep)
    assert again.accuracy == max(trial.values[other] for trial in again.trials)
    assert run(tmp_path, backbone, task, sweep, compute=False)[0] == again
    with pytest.raises(InputError, match=f"one of {default}, {other}"):
        finetune.check(task, dataclasses.replace(SWEEP, metric="accuracy"))


def test_run_chooses_by_another_metric_without_training(
    backbone, task, tmp_path, monkeypatch
):
    first, _ = run(tmp_path, backbone, task, SWEEP)
    assert set(first.values) == {"accuracy", "balanced_accuracy", "auroc"}
    monkeypatch.setattr(loop, "train_trials", None)
    sweep = dataclasses.replace(SWEEP, metric="balanced_accuracy")
    second, computed = run(tmp_path, backbone, task, sweep)
    assert computed and second.accuracy == second.values["balanced_accuracy"]
    assert [t.values for t in second.trials] == [t.values for t in first.trials]
    assert second.trials[0].curve == second.trials[0].curves["balanced_accuracy"]


def test_run_keeps_accuracies_of_older_versions(backbone, task, tmp_path, monkeypatch):
    first, _ = run(tmp_path, backbone, task, SWEEP)
    for path in [tmp_path / "result.json", *(tmp_path / "runs").glob("*.json")]:
        stored = json.loads(path.read_text())
        for result in [stored["result"], *stored["result"].get("trials", [])]:
            for field in ("values", "curves", "metric"):
                result.pop(field, None)
        [key] = stored.keys() - {"result", "checksum"}
        store.save_result(epath.Path(path), stored[key], stored["result"])
    loaded, computed = run(tmp_path, backbone, task, SWEEP)
    assert not computed and loaded.accuracy == first.accuracy and not loaded.values
    # They lack other metrics, so these trials are run again.
    trained = []
    original = loop.train_trials
    monkeypatch.setattr(
        loop, "train_trials", lambda *a, **k: trained.append(a) or original(*a, **k)
    )
    sweep = dataclasses.replace(SWEEP, metric="auroc")
    assert run(tmp_path, backbone, task, sweep)[0].values == first.values
    assert len(trained) == 2


def losses(target, logits, labels, smoothing=0.0):
    """Return the loss in float64."""
    x = logits.astype(np.float64)
    if target == "regression":
        return np.mean((x[:, 0] - labels) ** 2)
    t = labels * (1 - smoothing) + smoothing / 2
    log_p, log_q = -np.logaddexp(0, -x), -np.logaddexp(0, x)
    return np.mean(np.sum(-t * log_p - (1 - t) * log_q, axis=1))


@pytest.mark.parametrize(("target", "width"), [("multi_label", 3), ("regression", 1)])
def test_train_step_follows_the_gradient_of_the_loss(backbone, target, width):
    random = np.random.default_rng(0)
    images = random.uniform(0, 1, (8, 16)).astype(np.float32)
    if target == "multi_label":
        labels = random.integers(0, 2, (8, 3)).astype(bool)
    else:
        labels = random.normal(size=8).astype(np.float32)
    recipe = dataclasses.replace(RECIPE, label_smoothing=0.1)
    linear = probe.without_head(backbone)
    state = step.initial_state(linear, width)
    kernel = random.normal(size=(16, width)).astype(np.float32)
    params = {**state.params, "head": {"kernel": kernel, "bias": np.ones(width, "f4")}}
    state = mapping.replicate(state._replace(params=params))
    function = step.train_step(step.step_spec(linear, recipe, target=target))
    data = mapping.shard((images, labels, np.arange(8, dtype=np.int32)))
    scaling = (np.float32(0), np.float32(255), np.zeros(1, np.float32))
    new, loss = function(state, scaling, step.hyperparameters(recipe, 0.1, 0), data)
    logits = images.astype(np.float64) @ kernel + 1
    # Sums in float32.
    assert float(loss) == pytest.approx(losses(target, logits, labels, 0.1), rel=1e-5)
    if target == "multi_label":
        error = scipy.special.expit(logits) - (labels * 0.9 + 0.05)
    else:
        error = 2 * (logits - labels[:, None])
    expected = kernel - 0.1 * images.T @ error / 8
    np.testing.assert_allclose(new.params["head"]["kernel"], expected, atol=1e-5)


def test_check_refuses_a_metric_that_is_undefined_for_the_test_images():
    task = make_task("regression")
    equal = array_split(
        "test", np.zeros((4, 8, 8, 3), np.uint8), np.ones(4), task.target
    )
    task = dataclasses.replace(task, splits={**task.splits, "test": equal})
    with pytest.raises(InputError, match="R2 is not defined for the images of test"):
        finetune.check(task, SWEEP)


def test_evaluate_has_no_metrics_for_outputs_that_are_not_finite(backbone, task):
    state = finetune.initial_state(backbone, 2)
    params = {**state.params, "head": {**state.params["head"]}}
    params["head"]["bias"] = jnp.full(2, jnp.nan)
    bad = mapping.replicate(state._replace(params=params))
    test = task.splits["test"]
    assert finetune.evaluate(backbone, bad, test, RECIPE, **settings()) == [{}]
