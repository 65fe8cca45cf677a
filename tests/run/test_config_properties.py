"""Any flags give a run, or one message and exit code 2, but never a traceback."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rankckpt_jax.run import run as run_lib
from tests import command_line

# Fields that use the network, other processes or other directories.
EXCLUDED = (
    "workdir",
    "history",
    "task.tfds",
    "distributed",
    "neucrab",
    "download.directory",
)


def _fields(config, prefix=""):
    for key, value in config.items():
        if hasattr(value, "items"):
            yield from _fields(value, f"{prefix}{key}.")
        elif not f"{prefix}{key}".startswith(EXCLUDED):
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
# Values of the right type, so that their meaning is checked too.
_BY_TYPE = {
    bool: st.sampled_from(["True", "False"]),
    int: st.integers(-3, 400).map(str),
    float: st.floats(-2, 100).map(str),
}


def _field(item):
    name, default = item
    fitting = _BY_TYPE.get(type(default), _values)
    return st.tuples(st.just(name), fitting | fitting | _values, st.just("--config."))


_fitting = st.sampled_from(list(_defaults().items())).flatmap(_field)
_odd = st.tuples(
    st.sampled_from(list(_defaults())) | st.text("abc._-\0 é", max_size=8),
    _values,
    st.sampled_from(["--config.", "--", "-", ""]),
)
_flags = st.lists(_fitting, max_size=3) | st.lists(_fitting | _odd, max_size=3)


@pytest.fixture
def call(image_folder, pool, tmp_path, monkeypatch):
    """Return a function that adds flags to a valid command line, and calls it.

    A run does everything that precedes long work, and none of that work.
    """
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "here"))
    monkeypatch.setattr(run_lib, "_evaluate_members", lambda *_: [])
    monkeypatch.setattr(run_lib, "illustrate", lambda ranking, context: ranking)
    monkeypatch.setattr(run_lib.report, "write", lambda _, directory: directory)
    given = [
        "--config=configs/folder.py",
        f"--config.task.path={image_folder}",
        f"--config.checkpoints={pool}",
        f"--config.workdir={tmp_path / 'runs'}",
        "--config.image_size=32",
    ]

    def call(*more):
        return command_line.call([*given, *more])

    return call


def _check(call, drawn):
    # `call` asserts the form of a message.
    assert call(*(f"{prefix}{name}={value}" for name, value, prefix in drawn))


function_scoped = [HealthCheck.function_scoped_fixture]


def test_main_runs_with_valid_flags_and_rejects_unknown_names(call):
    assert call() == "ran"
    assert "no such field" in call("--config.mesures=nleep")
    assert "Unknown" in call("--config.measures=neep")


@settings(max_examples=40, deadline=None, suppress_health_check=function_scoped)
@given(drawn=_flags)
def test_main_runs_or_prints_one_message(call, drawn):
    _check(call, drawn)


@pytest.mark.slow
@settings(max_examples=3000, deadline=None, suppress_health_check=function_scoped)
@given(drawn=_flags)
def test_main_runs_or_prints_one_message_often(call, drawn):
    _check(call, drawn)
