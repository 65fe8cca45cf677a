"""What is shown while work runs: log lines, bars and signs of life."""

import contextlib
import io
import logging
import re
import sys
import threading
import time

import pytest

from rankckpt_jax.devices import progress


@contextlib.contextmanager
def bare_logger(*handlers):
    """Yield the package's logger as in a plain Python program, without pytest's."""
    logger = logging.getLogger(progress.PACKAGE)
    before = logger.handlers, logger.level, logger.propagate
    logger.handlers, logger.propagate = list(handlers), False
    logger.setLevel(logging.NOTSET)
    try:
        yield logger
        assert logger.handlers == list(handlers) and logger.level == logging.NOTSET
    finally:
        logger.handlers, level, logger.propagate = before
        logger.setLevel(level)


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(progress, "SILENCE", 0.05)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def lines(caplog):
    return [record.getMessage() for record in caplog.records]


def wait_for(condition):
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    assert condition()


def test_step_logs_its_start_and_signs_of_life_until_it_ends(caplog, fast):
    with caplog.at_level("INFO"):
        with progress.step("[2/4] net", "scoring nleep"):
            assert lines(caplog) == ["[2/4] net: scoring nleep"]
            wait_for(lambda: len(lines(caplog)) > 2)
        count = len(lines(caplog))
        time.sleep(0.2)
    for line in lines(caplog)[1:]:
        assert re.fullmatch(r"\[2/4\] net: still scoring nleep \(\d s\)", line)
    assert len(lines(caplog)) == count


def test_step_without_announcement_is_silent_while_it_is_short(caplog):
    with caplog.at_level("INFO"), progress.step("net", "reading", announce=False):
        pass
    assert not caplog.records


def test_step_lets_only_the_innermost_step_speak(caplog, fast):
    with caplog.at_level("INFO"), progress.step("net", "training"):
        caplog.clear()
        with progress.bar("net: decoding", 200, "image") as bar:
            bar.update(50)
            wait_for(lambda: lines(caplog))
        assert set(lines(caplog)) == {"net: decoding: 50 of 200 images"}
        caplog.clear()
        wait_for(lambda: lines(caplog))
    assert lines(caplog)[-1].startswith("net: still training (")


def test_step_starts_no_thread_if_nobody_reads_its_lines():
    before = threading.active_count()
    with bare_logger(), progress.shown(False), progress.step("net", "scoring nleep"):
        assert threading.active_count() == before


def test_step_ends_after_an_exception(caplog, fast):
    with caplog.at_level("INFO"):
        with pytest.raises(KeyError), progress.step("net", "loading"):
            raise KeyError("x")
        caplog.clear()
        time.sleep(0.2)
    assert not caplog.records


def test_bar_logs_at_most_one_line_in_every_silence(caplog, monkeypatch):
    monkeypatch.setattr(progress, "SILENCE", 0.2)
    start = time.monotonic()
    with caplog.at_level("INFO"), progress.bar("x: extracting", 3060, "image") as bar:
        while time.monotonic() < start + 0.9:
            bar.update(1)
            time.sleep(0.001)
    # The first line does not wait for a complete silence.
    assert 1 <= len(caplog.records) <= 1 + (time.monotonic() - start) / 0.2


@pytest.mark.parametrize(
    ("total", "unit", "updates", "text"),
    [
        (3060, "image", (0, 1240), "x: 1,240 of 3,060 images, loss 0.5, 15 s left"),
        # The time until the first update does not count for the rate.
        (3060, "image", (1240, 910), "x: 2,150 of 3,060 images, loss 0.5, 10 s left"),
        (9090, "image", (60, 30), "x: 90 of 9,090 images, loss 0.5, 50 min left"),
        (3060, "image", (64,), "x: 64 of 3,060 images, loss 0.5"),
        (3060, "image", (), "x: 0 of 3,060 images, loss 0.5 after 10 s"),
        (0, "file", (1, 2), "x: 3 files, loss 0.5"),
        (5_000_000, "B", (0, 2_500_000), "x: 2 of 5 MB, loss 0.5, 10 s left"),
    ],
)
def test_counter_describes_progress_and_remaining_time(
    monkeypatch, total, unit, updates, text
):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    counter = progress._Counter("x", total, unit, initial=0)
    for n in updates:
        counter.update(n)
    counter.set_postfix(loss="0.5")
    now = 110.0
    assert counter.describe() == text


@pytest.mark.parametrize("is_our_logging", [True, False])
def test_bar_is_drawn_in_a_terminal_below_our_own_lines(monkeypatch, is_our_logging):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    handlers = [] if is_our_logging else [logging.NullHandler()]
    with (
        bare_logger(*handlers) as logger,
        progress.shown(None),
        progress.bar("extracting", 10, "image") as bar,
    ):
        bar.update(5)
        logger.warning("a line")
    written = terminal.getvalue().replace("\r", "\n").split("\n")
    assert any("extracting:" in line for line in written) == is_our_logging
    # The bar is erased before the line.
    assert any(line.endswith(" a line") for line in written) == is_our_logging


@pytest.mark.parametrize(
    ("choice", "has_handler", "is_shown"),
    [
        (None, False, True),
        (None, True, False),
        (True, True, True),
        (False, False, False),
    ],
)
def test_shown_leaves_the_logging_of_an_application_alone(
    capsys, choice, has_handler, is_shown
):
    log = logging.getLogger(f"{progress.PACKAGE}.x")
    with bare_logger(*([logging.NullHandler()] if has_handler else [])):
        with progress.shown(choice):
            log.info("http://u:secret@host/ is read")
        log.info("not shown")
    error = capsys.readouterr().err
    assert ("is read" in error) == is_shown
    assert "secret" not in error and "not shown" not in error


def test_writing_to_moves_lines_to_another_stream_for_a_while(capsys):
    visible = io.StringIO()
    with bare_logger() as logger, progress.shown(True):
        with progress.writing_to(visible):
            logger.info("meanwhile")
        logger.info("afterwards")
    error = capsys.readouterr().err
    assert visible.getvalue().endswith(" meanwhile\n")
    assert "afterwards" in error and "meanwhile" not in error
