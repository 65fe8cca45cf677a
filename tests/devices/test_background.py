import logging
import threading

import jax
import pytest

from rankckpt_jax.devices import background, compilation
from rankckpt_jax.errors import InputError


@pytest.fixture
def on_accelerator(tmp_path, monkeypatch):
    """A persistent cache, and a device that leaves the CPU cores free."""
    monkeypatch.setattr(background.target, "platform", lambda: "tpu")
    with compilation.persistent_cache(str(tmp_path)):
        yield


def test_prepare_works_in_a_thread(on_accelerator, caplog):
    compiled = []
    with caplog.at_level("INFO"):
        wait = background.prepare("net", threading.current_thread, compiled.append)
        thread = wait()
    assert thread is not threading.main_thread()
    assert compiled == [thread]
    assert "net: compiled ahead" in caplog.text


def test_prepare_returns_the_value_if_compiling_fails(on_accelerator, caplog):
    def fail(value):
        raise RuntimeError("out of memory")

    with caplog.at_level(logging.INFO):
        assert background.prepare("net", lambda: 7, fail)() == 7
    assert not caplog.text


def test_prepare_raises_what_loading_raised(on_accelerator):
    def load():
        raise InputError("broken")

    wait = background.prepare("net", load, lambda value: pytest.fail("compiled"))
    with pytest.raises(InputError, match="broken"):
        wait()


@pytest.mark.parametrize("reason", ["cpu", "processes", "off"])
def test_prepare_does_nothing_where_it_is_no_use(on_accelerator, monkeypatch, reason):
    if reason == "cpu":
        monkeypatch.setattr(background.target, "platform", lambda: "cpu")
    if reason == "processes":
        monkeypatch.setattr(background.processes, "process_count", lambda: 2)
    with compilation.persistent_cache("off" if reason == "off" else ""):
        assert (jax.config.jax_compilation_cache_dir is None) == (reason == "off")
        wait = background.prepare(
            "net", threading.current_thread, lambda value: pytest.fail("compiled")
        )
        assert wait() is threading.main_thread()
