import os
import pathlib
import shutil
import subprocess
import sys
import time
import types

import pytest

from rankckpt_jax import main, usage
from rankckpt_jax.command_line import Command
from rankckpt_jax.devices import mapping, processes, signals
from rankckpt_jax.errors import InputError, Interrupted
from rankckpt_jax.results.ranking import rank
from rankckpt_jax.results.row import Row
from rankckpt_jax.run import run as run_lib
from tests import command_line, faults

ROOT = pathlib.Path(__file__).parents[1]
CONSOLE_SCRIPT = ["-c", "from rankckpt_jax import main; main.run()"]
MODULE = ["-m", "rankckpt_jax.main"]


def start_program(*arguments, cwd=ROOT, **environment):
    """Run Python in another process."""
    path = {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **path, **environment},
    )


@pytest.mark.multiprocess
def test_help_is_fast_and_equal_for_both_entry_points():
    start = time.monotonic()
    texts = []
    for program in (CONSOLE_SCRIPT, MODULE):
        done = start_program(*program, "--help")
        assert done.returncode == 0, done.stderr
        texts.append(done.stdout)
    assert texts == 2 * [f"{usage.help_text()}\n"]
    # 0.2 s each on an idle machine. JAX and TensorFlow alone take longer than this.
    assert time.monotonic() - start < 6


@pytest.mark.multiprocess
def test_console_script_alone_prints_its_usage_without_slow_imports():
    code = (
        "import atexit, sys; from rankckpt_jax import main;"
        "slow = ('jax', 'tensorflow', 'flax');"
        "atexit.register(lambda: print([m for m in slow if m in sys.modules]));"
        "main.run()"
    )
    done = start_program("-c", code)
    assert (done.returncode, done.stdout) == (0, f"{usage.USAGE}\n[]\n")


@pytest.mark.multiprocess
def test_demo_writes_the_report_and_a_second_run_computes_nothing(
    demo, tmp_path, caplog
):
    for name in ("ranking.csv", "report.html"):
        assert (demo.workdir / "digits_0_to_4" / name).exists()
    assert "pre-training: saved labels_3" in demo.stderr
    # Its checkpoints were trained at the size of its images.
    assert "far from the own size" not in demo.stdout
    assert "Traceback" not in demo.stderr
    workdir = shutil.copytree(demo.workdir, tmp_path / "runs")
    with caplog.at_level("INFO"):
        ranking = run_lib.run(faults.config(workdir, faults.SMALL))
    assert "loaded cached features" in caplog.text
    assert "computed" not in caplog.text and "pre-training: saved" not in caplog.text
    assert f"{ranking}\n" == demo.stdout


@pytest.fixture
def own_process(monkeypatch):
    """Let `main` leave the devices and the logging of the test's process as is."""
    monkeypatch.setattr(processes, "join", lambda **_: None)
    monkeypatch.setattr(mapping, "split_cpu_devices", lambda: None)
    monkeypatch.setattr(main, "_configure_logging", lambda: None)


@pytest.mark.usefixtures("own_process")
@pytest.mark.parametrize(
    ("result", "code", "message"),
    [
        ([Row("a", scores={"nleep": -1.0})], 0, "1 checkpoint"),
        # Nothing is ranked.
        ([Row("a")], 1, "1 checkpoint"),
        ([Row("a", failure="damaged")], 1, "damaged"),
        ([Row("a"), Row("b", failure="damaged")], 1, "damaged"),
        (InputError("Bad size", where="config.size"), 2, "Error: Bad size"),
        (Interrupted("stopped before a"), signals.EXIT_RETRY, "Run it again to resume"),
    ],
)
def test_main_returns_exit_code(monkeypatch, capsys, result, code, message):
    def run(config):
        if isinstance(result, Exception):
            raise result
        return rank("pets", ["nleep"], result)

    config = types.SimpleNamespace(distributed={}, stages="score,report")
    monkeypatch.setattr(run_lib, "run", run)
    assert main.main(Command(config=config)) == code
    output = capsys.readouterr()
    assert message in output.out + output.err


@pytest.mark.usefixtures("own_process")
def test_main_ranks_a_folder_by_the_short_form(
    image_folder, pool, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    options = ["--measures=logme", "--image-size=32", "--workdir=out"]
    assert main.main(command_line.parse("images", pool, *options)) == 0
    table = capsys.readouterr().out
    assert "logme" in table and "first" in table and "second" in table
    assert (tmp_path / "out" / "images" / "report.html").exists()


@pytest.mark.multiprocess
def test_main_prints_a_list_to_a_reader_that_stops_early():
    command = [sys.executable, "-m", "rankckpt_jax.main", "--list=measures"]
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


@pytest.mark.parametrize("debug", [False, True])
def test_main_prints_tracebacks_only_with_debug(debug):
    given = ["--config.zzz=1", *(["--debug"] if debug else [])]
    done = start_program(*MODULE, *given)
    assert ("Traceback" in done.stderr) == debug
    assert done.returncode == (1 if debug else 2)


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    "given",
    [
        ["--config", "configs/folder.py", "--config.task.path", "no/images"],
        ["--config=./configs/folder.py", "--config.task.path=no/images"],
        ["--flagfile=flags"],
        ["--flagfile", "flags"],
    ],
)
def test_main_accepts_the_usual_forms_of_flags(given, tmp_path):
    (tmp_path / "flags").write_text(
        "--config=configs/folder.py\n--config.task.path=no/images\n"
    )
    done = start_program(*MODULE, *given, "--config.checkpoints=none", cwd=tmp_path)
    assert done.returncode == 2
    assert "\nError: No training images" in done.stderr, done.stderr
    assert "no/images/train" in done.stderr


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("given", "options", "environment", "message"),
    [
        (["configs"], [], {}, "No checkpoints are given"),
        (["--config=absent.py"], ["-O"], {}, "The config cannot be read"),
        (["--config", "absent.py"], [], {}, "where: --config=absent.py"),
        (["--flagfile=absent"], [], {}, "absent"),
        ([], [], {"JAX_PLATFORMS": "rocm"}, "where: JAX_PLATFORMS=rocm"),
        (["--config.workdir=file:///tmp/runs"], [], {}, "scheme file://"),
        (["--config.workdir=hdfs://host/runs"], [], {}, "gs://BUCKET/PATH"),
    ],
)
def test_main_prints_one_message(given, options, environment, message):
    done = start_program(*options, *MODULE, *given, **environment)
    assert done.returncode == 2, done.stderr
    log, error, text = done.stderr.partition("Error: ")
    # Errors of flags come before the log.
    assert error and log.count("\n") <= 1 and text.count("\n") < 7, done.stderr
    assert message in done.stderr
