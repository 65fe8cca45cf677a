from rankckpt_jax.run import remaining
from rankckpt_jax.run.context import load
from tests.run.test_run import make_config


def test_finish_estimates_from_the_work_that_is_left():
    left = remaining.Remaining(
        {
            "a": ("features", "nleep"),
            "b": ("features", "nleep"),
            # Its features are cached.
            "c": ("nleep",),
            "d": (),
        }
    )
    left.add("features", 40)
    left.add("nleep", 90)
    assert left.finish("a") == "about 4 min left for 2 checkpoints"
    left.add("features", 20)
    left.add("nleep", 30)
    # Means of both measurements.
    assert left.finish("b") == "about 60 s left for 1 checkpoint"
    assert left.finish("c") == ""


def test_finish_is_silent_without_measurements_and_for_short_work():
    left = remaining.Remaining({name: ("nleep",) for name in "abc"})
    assert left.finish("a") == ""
    left.add("nleep", 2)
    assert left.finish("b") == ""


def test_find_pending_lists_results_that_are_not_stored(image_folder, pool, tmp_path):
    config = make_config(image_folder, pool, tmp_path, measures="h_score")
    config.stages = "extract,score,finetune"
    with load(config) as context:
        directory = context.directory / "first"
        (directory / "features" / "train").mkdir(parents=True)
        (directory / "scores").mkdir()
        (directory / "scores" / "h_score.json").write_text("{}")
        pending = remaining.find_pending(context, context.members)
    assert set(pending["first"]) == {"fine-tuning", "loading"}
    assert set(pending["second"]) == {"features", "fine-tuning", "loading", "h_score"}
