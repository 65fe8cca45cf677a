import logging
import threading

import jax
import pytest

from rankckpt_jax.devices import background, compilation


@pytest.fixture
def on_accelerator(tmp_path, monkeypatch):
    """A persistent cache, and a device that leaves the CPU cores free."""
    monkeypatch.setattr(background.target, "platform", lambda: "tpu")
    with compilation.persistent_cache(str(tmp_path)):
        yield


def test_compile_ahead_runs_in_a_thread(on_accelerator, caplog):
    threads = []
    with caplog.at_level("INFO"):
        wait = background.compile_ahead(
            "net", lambda: threads.append(threading.current_thread())
        )
        wait()
    [thread] = threads
    assert thread is not threading.main_thread() and not thread.is_alive()
    assert "net: compiled ahead" in caplog.text


def test_compile_ahead_survives_an_error(on_accelerator, caplog):
    def fail():
        raise RuntimeError("out of memory")

    with caplog.at_level(logging.INFO):
        background.compile_ahead("net", fail)()
    assert not caplog.text


@pytest.mark.parametrize("reason", ["cpu", "processes", "off"])
def test_compile_ahead_does_nothing_where_it_is_no_use(
    on_accelerator, monkeypatch, reason
):
    def never():
        pytest.fail("compiled")

    if reason == "cpu":
        monkeypatch.setattr(background.target, "platform", lambda: "cpu")
    if reason == "processes":
        monkeypatch.setattr(background.processes, "process_count", lambda: 2)
    with compilation.persistent_cache("off" if reason == "off" else ""):
        assert (jax.config.jax_compilation_cache_dir is None) == (reason == "off")
        background.compile_ahead("net", never)()
    names = {thread.name for thread in threading.enumerate()}
    assert "compile ahead" not in names
