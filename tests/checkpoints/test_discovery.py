import pathlib

import pytest

from rankckpt_jax import checkpoints
from rankckpt_jax.errors import InputError


def _touch(path: pathlib.Path, parts=("index", "data-00000-of-00001", "meta")):
    path.parent.mkdir(parents=True, exist_ok=True)
    for part in parts:
        path.with_name(f"{path.name}.{part}").touch()


@pytest.fixture
def pool(tmp_path):
    root = tmp_path / "pool"
    _touch(root / "mobilenet_v1_0.25_128" / "model.ckpt")
    _touch(root / "run" / "model.ckpt-90000")
    _touch(root / "run" / "model.ckpt-180000")
    _touch(root / "deep" / "er one" / "net.ckpt")
    _touch(root / "half" / "model.ckpt", parts=("data-00000-of-00001",))
    (root / "run" / "checkpoint").touch()
    return root


def test_every_checkpoint_below_a_folder_is_found_and_named(pool):
    assert checkpoints.find(pool) == [
        ("deep_er_one_net", f"{pool}/deep/er one/net.ckpt"),
        ("half", f"{pool}/half/model.ckpt"),
        ("mobilenet_v1_0.25_128", f"{pool}/mobilenet_v1_0.25_128/model.ckpt"),
        ("run-180000", f"{pool}/run/model.ckpt-180000"),
        ("run-90000", f"{pool}/run/model.ckpt-90000"),
    ]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("{}/mobilenet*", ["mobilenet_v1_0.25_128"]),
        ("{}/r*/model.ckpt-9*", ["run-90000"]),
        ("{}/*/*.index", ["mobilenet_v1_0.25_128", "run-180000", "run-90000"]),
        ("{}/run", ["run-180000", "run-90000"]),
        ("{}/run/model.ckpt-90000", ["run-90000"]),
        ("{}/half, {}/run/model.ckpt-90000.index", ["half", "run-90000"]),
    ],
)
def test_globs_prefixes_and_lists(pool, pattern, names):
    assert [name for name, _ in checkpoints.find(pattern.format(pool, pool))] == names


def test_relative_patterns(pool, monkeypatch):
    monkeypatch.chdir(pool)
    assert len(checkpoints.find(".")) == 5
    assert [name for name, _ in checkpoints.find("*/model.ckpt-9*")] == ["run-90000"]


def test_names_are_unique(tmp_path):
    _touch(tmp_path / "a_b" / "model.ckpt")
    _touch(tmp_path / "a" / "b" / "model.ckpt")
    assert [name for name, _ in checkpoints.find(tmp_path)] == ["a_b", "a_b~2"]


def test_names_that_some_file_system_takes_for_one_are_told_apart(tmp_path):
    for name in "net", "Net", "NET":
        _touch(tmp_path / name / "model.ckpt")
    names = [name for name, _ in checkpoints.find(tmp_path)]
    assert len({name.casefold() for name in names}) == 3


def test_hostile_names_are_plain_directories_names(tmp_path):
    hostile = ["..npz", "<script>x", "=cmd()|x", "a\nb", "a" * 250, "report.html", "--"]
    for name in hostile:
        _touch(tmp_path / "pool" / name / "model.ckpt")
    names = [name for name, _ in checkpoints.find(tmp_path / "pool")]
    assert len(names) == len(set(names)) == len(hostile)
    for name in names:
        assert not name.startswith((".", "-")) and len(name) < 200
        assert not set(name) & set("/<>|\n") and name != "report.html"


def test_nothing_found_is_an_error(tmp_path):
    with pytest.raises(InputError, match="No checkpoints"):
        checkpoints.find(tmp_path)


def test_a_directory_must_hold_one_checkpoint(pool):
    with pytest.raises(InputError, match="Not exactly one"):
        checkpoints.load(pool / "run")
