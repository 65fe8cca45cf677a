"""Settings that are refused before the work; test_bad_input.py has most of them."""

import sys

import pytest

from rankckpt_jax.configs import features as features_config
from rankckpt_jax.errors import InputError
from rankckpt_jax.report import tracking
from rankckpt_jax.run import run as run_lib
from rankckpt_jax.run import validation


def test_check_trackers_returns_names():
    assert validation.check_trackers(" ", ["score"]) == ()
    assert validation.check_trackers("tensorboard", ["report"]) == ("tensorboard",)


@pytest.mark.parametrize(
    ("given", "stages", "texts"),
    [
        ("tensorboard,wand", ["report"], ("config.track", "'wandb'")),
        (" , ", ["report"], ("config.track is empty",)),
        ("tensorboard", ["score"], ("config.track", "add `report`")),
    ],
)
def test_check_trackers_raises_input_error(given, stages, texts):
    with pytest.raises(InputError) as caught:
        validation.check_trackers(given, stages)
    assert all(text in str(caught.value) for text in texts)


@pytest.mark.parametrize("name", tracking.names())
def test_run_raises_before_work_if_the_package_of_a_tracker_is_missing(
    monkeypatch, tmp_path, name
):
    monkeypatch.setitem(sys.modules, tracking.get(name).package, None)
    config = features_config.get_config()
    # The features do not exist either, which is found later.
    config.update(
        features=str(tmp_path / "none.npz"), workdir=str(tmp_path), track=name
    )
    with pytest.raises(InputError, match=f"'{name}' needs a package(.|\n)*pip install"):
        run_lib.run(config)
    assert not list(tmp_path.iterdir())
