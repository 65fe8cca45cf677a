import pathlib

import pytest

from rankckpt_jax.configs import default
from rankckpt_jax.errors import InputError
from rankckpt_jax.short_form import to_fields


def test_to_fields_sets_known_fields_of_the_right_type():
    given = to_fields(
        pathlib.Path("photos"),
        [pathlib.Path("a"), "b"],
        measures=["nleep", "logme"],
        image_size=96,
        workdir=pathlib.Path("out"),
        seed=3,
        finetune=2,
    )
    config = default.get_config()
    config.update_from_flattened_dict(given)
    assert config.task.path == "photos"
    assert config.checkpoints == "a,b"
    assert config.measures == "nleep,logme"
    assert (config.image_size, config.workdir, config.seed) == (96, "out", 3)
    assert config.finetune.top == 2


def test_to_fields_leaves_out_what_is_not_given():
    assert to_fields() == {}


def test_to_fields_reads_an_existing_folder_with_a_colon_as_a_folder(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert to_fields("photos:1")["task.tfds"] == "photos:1"
    (tmp_path / "photos:1").mkdir()
    assert to_fields("photos:1")["task.path"] == "photos:1"


@pytest.mark.parametrize(
    ("finetune", "stages", "top", "expected"),
    [
        (True, "extract,score,report", 0, "extract,score,finetune,report"),
        (1, "extract,score,report", 1, "extract,score,finetune,report"),
        (3, "extract, score", 3, "extract,score,finetune"),
        (3, "finetune,report", 3, "finetune,report"),
    ],
)
def test_to_fields_adds_fine_tuning(finetune, stages, top, expected):
    given = to_fields(finetune=finetune, stages=stages)
    assert given == {"finetune.top": top, "stages": expected}


@pytest.mark.parametrize("finetune", [-1, 1.5, "all", None])
def test_to_fields_raises_for_an_invalid_number(finetune):
    with pytest.raises(InputError, match="at least 1"):
        to_fields(finetune=finetune)
