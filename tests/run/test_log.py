"""The log lines of a run."""

import logging
import pathlib
import re
import subprocess
import sys
import time

import pytest

from rankckpt_jax import api, measures
from rankckpt_jax.devices import progress
from rankckpt_jax.run import remaining
from rankckpt_jax.run import run as run_lib
from tests.run.test_run import make_config


@pytest.fixture
def config(image_folder, pool, tmp_path):
    config = make_config(image_folder, pool, tmp_path / "runs", measures="h_score,lda")
    config.stages = "extract,score,finetune,report"
    # Only the head, which compiles quickly.
    config.finetune.frozen = True
    config.finetune.learning_rate = (0.1, 0.01)
    return config


def lines(caplog):
    return [record.getMessage() for record in caplog.records]


def test_run_logs_a_line_before_each_slow_step(config, caplog, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with caplog.at_level("INFO"):
        run_lib.run(config)
    logged = lines(caplog)
    expected = [
        f"{tmp_path}/images: reading the images",
        "test: decoding 12 images",
        "[1/2] first: loading",
        "[1/2] first: extracting 24 images",
        "[1/2] first: scoring h_score",
        "[1/2] first: scoring lda",
        "[1/2] first: fine-tuning, 2 trials",
        "[2/2] second: loading",
        "[2/2] second: scoring lda",
        "images: writing the report",
    ]
    assert [line for line in logged if line in expected] == expected
    computed = next(line for line in logged if line.startswith("[1/2] first: computed"))
    works = re.findall(r"(\S+) \(\d+\.\d s\)", computed)
    assert works == ["features", "h_score", "lda", "fine-tuning"]
    # The path is relative to the current directory.
    assert logged[-1] == "Report: runs/images/report.html"

    caplog.clear()
    with caplog.at_level("INFO"):
        run_lib.run(config)
    logged = lines(caplog)
    text = "loaded cached features, h_score, lda, fine-tuning"
    assert f"[1/2] first: {text}" in logged and f"[2/2] second: {text}" in logged
    assert not [x for x in logged if re.search("loading|scoring|extracting", x)]


def test_run_logs_the_remaining_time_and_signs_of_life(config, caplog, monkeypatch):
    """Scoring takes 0.3 s, which counts as long."""
    monkeypatch.setattr(progress, "SILENCE", 0.1)
    monkeypatch.setattr(remaining, "SHORTEST", 0.2)
    compute = measures.compute_prepared

    def compute_slowly(*args, **options):
        time.sleep(0.3)
        return compute(*args, **options)

    monkeypatch.setattr(measures, "compute_prepared", compute_slowly)
    config.stages = "extract,score"
    with caplog.at_level("INFO"):
        run_lib.run(config)
    logged = lines(caplog)
    assert "[1/2] first: still scoring h_score (0 s)" in logged
    start = logged.index("[2/2] second: scoring h_score")
    [at] = [i for i, x in enumerate(logged) if "left for 1 checkpoint" in x]
    assert at < start and logged[at].startswith("images: about ")


def test_rank_shows_progress_unless_told_otherwise(
    image_folder, pool, tmp_path, capsys, monkeypatch
):
    logger = logging.getLogger(progress.PACKAGE)
    for name, value in (("handlers", []), ("propagate", False)):
        monkeypatch.setattr(logger, name, value)
    options = {"measures": "h_score", "image_size": 32, "workdir": tmp_path / "runs"}
    api.rank(image_folder, pool, **options, progress=False)
    assert not capsys.readouterr().err
    api.rank(image_folder, pool, **options)
    *_, last = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d Report: .*report.html", last)
    assert pathlib.Path(last.partition("Report: ")[2]).exists()


@pytest.mark.multiprocess
def test_rank_of_a_folder_imports_no_tensorflow(image_folder, pool, tmp_path):
    arguments = (str(image_folder), str(pool))
    options = {"measures": "h_score", "image_size": 32, "workdir": str(tmp_path / "r")}
    code = (
        "import sys; from rankckpt_jax import rank;"
        f"print(rank(*{arguments!r}, **{options!r}).best.scores);"
        "assert 'tensorflow' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    # The results are cached now.
    ranking = api.rank(*arguments, **options)
    assert done.stdout == f"{ranking.best.scores}\n"
