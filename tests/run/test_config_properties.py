"""Any flags at all: a run, or one message and exit code 2, and never a traceback."""

import sys

import pytest
from absl import flags
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rankckpt_jax.errors import InputError

# ml_collections's own, when it is imported.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module")

# What would reach for a network, other processes or other places than the test's own.
LEFT_OUT = ("workdir", "task.tfds", "distributed", "neucrab", "download.directory")


def _fields(config, prefix=""):
    for key, value in config.items():
        if hasattr(value, "items"):
            yield from _fields(value, f"{prefix}{key}.")
        elif not f"{prefix}{key}".startswith(LEFT_OUT):
            yield f"{prefix}{key}", value


def _defaults():
    from rankckpt_jax.configs import default

    return dict(sorted(_fields(default.get_config())))


_values = st.one_of(
    st.integers(-3, 10**7).map(str),
    st.floats(-10, 10).map(str),
    st.sampled_from(
        [
            *("", "nan", "-inf", "True", "None", "()", "(1,2)", "(0, 'a')", "[]", "{}"),
            *("1e400", "9" * 40, "0x", "'", "\\", "{'a':1}", "a=b", ",", ",,", "all"),
            *("nleep,h_score", "extract,score", "finetune", "report", "val", "test"),
            *("quick", "vtab_full", "cosine", "0.1,0.01", "(0.5, 0.9)", "float32"),
            *("resnet_v1_50", "no_such", "published", "~", "..", ".", "*", "[", "#"),
            *("train[:10%]", "slim_vgg", "bfloat16", "a\0b", "é\n"),
        ]
    ),
    st.text(max_size=12),
)
# Of the right kind, so that what they mean is looked at too.
_OF_KIND = {
    bool: st.sampled_from(["True", "False"]),
    int: st.integers(-3, 400).map(str),
    float: st.floats(-2, 100).map(str),
}


def _field(item):
    name, default = item
    fitting = _OF_KIND.get(type(default), _values)
    return st.tuples(st.just(name), fitting | fitting | _values, st.just("--config."))


_fitting = st.sampled_from(list(_defaults().items())).flatmap(_field)
_odd = st.tuples(
    st.sampled_from(list(_defaults())) | st.text("abc._-\0 é", max_size=8),
    _values,
    st.sampled_from(["--config.", "--", "-", ""]),
)
_flags = st.lists(_fitting, max_size=3) | st.lists(_fitting | _odd, max_size=3)


@pytest.fixture
def place(image_folder, pool, tmp_path, monkeypatch):
    """A task and a pool that can be used, where relative paths do no harm."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "here"))
    monkeypatch.setattr(sys, "argv", ["main"])
    # All that is checked before long work, and none of the work.
    from rankckpt_jax.run import run

    monkeypatch.setattr(run, "_evaluate_members", lambda context: [])
    monkeypatch.setattr(run, "_illustrate", lambda ranking, context: ranking)
    monkeypatch.setattr(run.report, "write", lambda *_: None)
    return [
        "main",
        "--config=configs/folder.py",
        f"--config.task.path={image_folder}",
        f"--config.checkpoints={pool}",
        f"--config.workdir={tmp_path / 'runs'}",
        "--config.image_size=32",
    ]


def _outcome(argv, capsys):
    """Runs like `main`, in this process: "ran", or the one message it ended with."""
    from rankckpt_jax import main
    from rankckpt_jax.run import run as run_lib

    values = flags.FlagValues()
    try:
        holder = main._define(values, argv)
        main._parse(argv, values, holder)
        ranking = run_lib.run(holder.value)
        str(ranking)
        return "ran"
    except SystemExit as left:
        said = capsys.readouterr().err
        assert left.code == 2, said
        assert said.startswith("Error: ") and "Traceback" not in said
        return said
    except InputError as error:
        return f"Error: {error}"


def _check(place, capsys, drawn):
    argv = [*place, *(f"{prefix}{name}={value}" for name, value, prefix in drawn)]
    assert _outcome(argv, capsys)


shared = [HealthCheck.function_scoped_fixture]


def test_the_plain_flags_run(place, capsys):
    assert _outcome(place, capsys) == "ran"
    assert "no such field" in _outcome([*place, "--config.mesures=nleep"], capsys)
    assert "Unknown" in _outcome([*place, "--config.measures=neep"], capsys)


@settings(max_examples=40, deadline=None, suppress_health_check=shared)
@given(drawn=_flags)
def test_any_flags_run_or_are_one_message(place, capsys, drawn):
    _check(place, capsys, drawn)


@pytest.mark.slow
@settings(max_examples=3000, deadline=None, suppress_health_check=shared)
@given(drawn=_flags)
def test_any_flags_run_or_are_one_message_often(place, capsys, drawn):
    _check(place, capsys, drawn)
