import logging
import os
import stat
import threading
import time
import warnings

import jax
import jax.numpy as jnp
import pytest
from etils import epath

from rankckpt_jax.devices import compilation, target

SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_compilation_cache_max_size",
    "jax_enable_compilation_cache",
)


@pytest.fixture(autouse=True)
def unset(caplog):
    """Leave no directory set, as in a user's process, and JAX quiet."""
    caplog.set_level(logging.WARNING, logger="jax")
    with compilation._jax_settings({"jax_compilation_cache_dir": None}):
        yield


@pytest.fixture
def hits():
    """Collect one entry for each program that JAX loads."""
    found = []

    def listen(event, **_):
        if event == "/jax/compilation_cache/cache_hits":
            found.append(event)

    jax.monitoring.register_event_listener(listen)
    yield found
    jax.monitoring.unregister_event_listener(listen)


def compile_once(number=1.0):
    """Compile a program as a new process would."""
    jax.clear_caches()
    return jax.jit(lambda x: jnp.sin(x) + number)(jnp.ones(3))


def settings():
    return {name: getattr(jax.config, name) for name in SETTINGS}


def entries(folder):
    return sorted(folder.glob("jaxlib-*/*-cache"))


def test_persistent_cache_loads_programs(tmp_path, hits):
    before = settings()
    for _ in range(2):
        with compilation.persistent_cache(str(tmp_path)):
            count = len(hits)
            result = compile_once()
    assert len(hits) > count
    assert result[0] == pytest.approx(1.84147, rel=1e-5)
    assert settings() == before
    [folder] = tmp_path.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_persistent_cache_is_below_the_user_cache_by_default(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with compilation.persistent_cache():
        compile_once()
    assert entries(tmp_path / ".cache" / "rankckpt_jax" / "compiled")


def test_persistent_cache_leaves_the_directory_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with compilation._jax_settings({"jax_compilation_cache_dir": str(tmp_path)}):
        before = settings()
        with compilation.persistent_cache():
            assert settings() == before
    assert not (tmp_path / ".cache").exists()


def test_persistent_cache_off_keeps_nothing(tmp_path):
    with (
        compilation._jax_settings({"jax_compilation_cache_dir": str(tmp_path)}),
        compilation.persistent_cache(compilation.OFF),
    ):
        compile_once()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"damaged", None])
def test_persistent_cache_replaces_damaged_programs(tmp_path, caplog, hits, content):
    with compilation.persistent_cache(str(tmp_path)):
        compile_once(1.0)
        compile_once(2.0)
    sizes = {entry: entry.stat().st_size for entry in entries(tmp_path)}
    damaged = max(sizes, key=lambda entry: ("jit__lambda" in entry.name, entry))
    truncated = damaged.read_bytes()[:-9]
    damaged.write_bytes(truncated if content is None else content)
    with compilation.persistent_cache(str(tmp_path)):
        compile_once(1.0)
        compile_once(2.0)
    assert "deleted a damaged program" in caplog.text
    # The intact programs are kept.
    assert len(hits) >= len(sizes) - 1
    caplog.clear()
    assert {e: e.stat().st_size for e in entries(tmp_path)}.keys() == sizes.keys()
    assert damaged.stat().st_size > len(truncated)
    with compilation.persistent_cache(str(tmp_path)):
        compile_once(1.0)
        compile_once(2.0)
    assert not caplog.text


def test_persistent_cache_deletes_programs_that_a_killed_process_left(tmp_path):
    with compilation.persistent_cache(str(tmp_path)):
        compile_once()
    [entry, *_] = entries(tmp_path)
    entry.with_name(entry.name.removesuffix("-cache") + "-atime").unlink()
    with compilation.persistent_cache(str(tmp_path)):
        assert not entry.exists()


def test_persistent_cache_deletes_old_versions_that_are_unused(tmp_path):
    for name, days in (("jaxlib-0.1", 100), ("jaxlib-0.2", 10), ("other", 100)):
        (tmp_path / name).mkdir()
        (tmp_path / name / ".lockfile").touch()
        now = time.time()
        os.utime(tmp_path / name / ".lockfile", (now, now - days * 24 * 3600))
    with compilation.persistent_cache(str(tmp_path)):
        pass
    names = {path.name for path in tmp_path.iterdir()}
    assert "jaxlib-0.1" not in names and {"jaxlib-0.2", "other"} <= names


def test_persistent_cache_logs_a_program_that_cannot_be_kept(
    tmp_path, caplog, monkeypatch
):
    def fail(*args):
        raise OSError("No space left on device")

    with compilation.persistent_cache(str(tmp_path)):
        monkeypatch.setattr(type(epath.Path(tmp_path)), "write_bytes", fail)
        compile_once()
        compile_once()
        monkeypatch.undo()
    [record] = caplog.records
    assert "could not keep a program" in record.getMessage()
    assert not entries(tmp_path)


def test_persistent_cache_logs_a_directory_that_cannot_be_used(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with compilation.persistent_cache(str(tmp_path / "file")):
        assert jax.config.jax_compilation_cache_dir is None
        compile_once()
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "cannot be used" in record.getMessage()


def test_persistent_cache_refuses_a_directory_that_others_can_write_to(
    tmp_path, caplog
):
    with compilation.persistent_cache(str(tmp_path)):
        pass
    [folder] = tmp_path.iterdir()
    os.chmod(folder, 0o777)
    with compilation.persistent_cache(str(tmp_path)):
        assert jax.config.jax_compilation_cache_dir is None
    assert "other users can write to it" in caplog.text


def test_persistent_cache_shows_other_warnings(tmp_path):
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with compilation.persistent_cache(str(tmp_path)):
            warnings.warn("something else", stacklevel=1)
    assert [str(warning.message) for warning in shown] == ["something else"]


def test_compile_for_does_not_use_the_persistent_cache(tmp_path):
    with compilation.persistent_cache(str(tmp_path)):
        with target.compile_for(jax.local_devices()):
            compile_once()
        assert not entries(tmp_path)
        compile_once()
        assert entries(tmp_path)


def test_seconds_counts_each_moment_once(monkeypatch):
    compilation.seconds()
    monkeypatch.setattr(compilation, "_THREAD", threading.local())
    now = [0.0]
    monkeypatch.setattr(compilation.time, "monotonic", lambda: now[0])
    trace, lower, compile_ = compilation._EVENTS

    def event(name, end, duration):
        now[0] = end
        jax.monitoring.record_event_duration_secs(name, duration)

    event(trace, 2, 1)  # From 1 to 2, within the next one.
    event(trace, 4, 4)
    event("/some/other/event", 20, 20)
    event(lower, 6, 1)
    event(compile_, 10, 3)
    assert compilation.seconds() == 8


def test_seconds_counts_compiling_and_not_running():
    function = jax.jit(lambda x: jnp.cos(x) + 3)
    start = compilation.seconds()
    function(jnp.ones(5)).block_until_ready()
    compiled = compilation.seconds()
    function(jnp.ones(5)).block_until_ready()
    assert compilation.seconds() == compiled > start


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, "--xla_tpu_scoped_vmem_limit_kib=6144"),
        ("--other", "--other --xla_tpu_scoped_vmem_limit_kib=6144"),
        ("--xla_tpu_scoped_vmem_limit_kib=9", "--xla_tpu_scoped_vmem_limit_kib=9"),
    ],
)
def test_limit_tpu_fusions_keeps_the_users_own_options(monkeypatch, given, expected):
    monkeypatch.delenv("LIBTPU_INIT_ARGS", raising=False)
    if given is not None:
        monkeypatch.setenv("LIBTPU_INIT_ARGS", given)
    compilation.limit_tpu_fusions()
    compilation.limit_tpu_fusions()
    assert os.environ["LIBTPU_INIT_ARGS"] == expected
