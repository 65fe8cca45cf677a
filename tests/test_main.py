import os
import pathlib
import shutil
import subprocess
import sys
import time
import types

import pytest

from rankckpt_jax.devices import mapping, processes, signals
from rankckpt_jax.errors import InputError, Interrupted
from rankckpt_jax.results.ranking import rank
from rankckpt_jax.results.row import Row
from rankckpt_jax.run import run as run_lib
from tests import command_line, faults


def test_help_is_fast_and_imports_neither_jax_nor_tensorflow():
    code = (
        "import sys; import rankckpt_jax.main;"
        "print([m for m in ('jax', 'tensorflow', 'flax') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "rankckpt_jax.main", "--help"],
        capture_output=True,
        text=True,
    )
    assert "--config=configs/folder.py" in done.stdout
    # 2 s on an idle machine. Importing JAX and TensorFlow alone takes longer than this.
    assert time.monotonic() - start < 6


@pytest.mark.multiprocess
def test_demo_writes_the_report_and_a_second_run_computes_nothing(
    demo, tmp_path, caplog
):
    for name in ("ranking.csv", "report.html"):
        assert (demo.workdir / "digits_0_to_4" / name).exists()
    assert "pre-training: saved step 3" in demo.stderr
    assert "Traceback" not in demo.stderr
    workdir = shutil.copytree(demo.workdir, tmp_path / "runs")
    with caplog.at_level("INFO"):
        ranking = run_lib.run(faults.config(workdir, faults.SMALL))
    assert "loaded cached features" in caplog.text
    assert "computed" not in caplog.text and "saved step" not in caplog.text
    assert f"{ranking}\n" == demo.stdout


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
# ml_collections's own, when it is imported.
@pytest.mark.filterwarnings("ignore:the load_module")
def test_main_returns_exit_code(monkeypatch, capsys, result, code, message):
    monkeypatch.setattr(sys, "argv", ["main"])
    from rankckpt_jax import main

    def run(config):
        if isinstance(result, Exception):
            raise result
        return rank("pets", ["nleep"], result)

    config = types.SimpleNamespace(distributed={}, stages="score,report")
    monkeypatch.setattr(run_lib, "run", run)
    monkeypatch.setattr(processes, "join", lambda: None)
    monkeypatch.setattr(mapping, "split_cpu_devices", lambda: None)
    monkeypatch.setattr(main, "_configure_logging", lambda: None)
    monkeypatch.setattr(main, "_CONFIG", types.SimpleNamespace(value=config))
    monkeypatch.setattr(main, "_LIST", types.SimpleNamespace(value=None))
    monkeypatch.setattr(main, "_DEBUG", types.SimpleNamespace(value=False))
    assert main.main(["main"]) == code
    output = capsys.readouterr()
    assert message in output.out + output.err
    assert main.main(["main", "extra"]) == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--config=configs/folder.py", "--config.chekpoints=x"], "'checkpoints'"),
        (["--config.mesures=nleep"], "'measures'"),
        (["--config.task.pth=x"], "'path'"),
        (["--config.zzz=1"], "no such field"),
        (["--config.batch_size=many"], "--config.batch_size=many"),
        (["--config=configs/none.py"], "configs/none.py"),
        (["--config=configs/demo.py:more"], "get_config()"),
        (["--config=configs/caltech.py:grop_i"], "group_iii"),
        (["--confg=x"], "Did you mean: config"),
        (["--config.task.path=/no/such/folder"], "/no/such/folder/train"),
    ],
)
# ml_collections raises it when it is imported.
@pytest.mark.filterwarnings("ignore:the load_module")
def test_main_prints_one_message_for_bad_flags(given, message, monkeypatch, capsys):
    text = command_line.call(given, monkeypatch, capsys)
    assert message in text and text.count("\n") < 8


@pytest.mark.multiprocess
def test_main_prints_a_list_to_a_reader_that_stops_early():
    command = [sys.executable, "-m", "rankckpt_jax.main", "--list=measures"]
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


@pytest.mark.parametrize("debug", [False, True])
def test_main_prints_tracebacks_only_with_debug(debug):
    command = [sys.executable, "-m", "rankckpt_jax.main", "--config.zzz=1"]
    command += ["--debug"] if debug else []
    done = subprocess.run(command, capture_output=True, text=True)
    assert ("Traceback" in done.stderr) == debug
    assert done.returncode == (1 if debug else 2)


ROOT = pathlib.Path(__file__).parents[1]


def start(*arguments, options=(), cwd=ROOT, **environment):
    """Run the command line on a folder of images that does not exist."""
    path = {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    return subprocess.run(
        [sys.executable, *options, "-m", "rankckpt_jax.main", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **path, **environment},
    )


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
    done = start(*given, "--config.checkpoints=none", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: No training images"), done.stderr
    assert "no/images/train" in done.stderr


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("given", "options", "environment", "message"),
    [
        (["--config=absent.py"], ["-O"], {}, "The config cannot be read"),
        (["--config", "absent.py"], [], {}, "where: --config=absent.py"),
        (["--flagfile=absent"], [], {}, "absent"),
        ([], [], {"JAX_PLATFORMS": "rocm"}, "where: JAX_PLATFORMS=rocm"),
        (["--config.workdir=file:///tmp/runs"], [], {}, "scheme file://"),
        (["--config.workdir=hdfs://host/runs"], [], {}, "gs://BUCKET/PATH"),
    ],
)
def test_main_prints_one_message(given, options, environment, message):
    done = start(*given, options=options, **environment)
    assert done.returncode == 2, done.stderr
    lines = done.stderr.splitlines()
    assert lines[0].startswith("Error: ") and len(lines) < 7, done.stderr
    assert message in done.stderr
