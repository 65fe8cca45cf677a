"""The main job in several processes, and the scripts in launch/."""

import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from etils import epath

from rankckpt_jax.configs import folder
from rankckpt_jax.devices import signals
from rankckpt_jax.errors import Interrupted
from rankckpt_jax.run import run as run_lib
from rankckpt_jax.storage import store

ROOT = pathlib.Path(__file__).parents[1]


def pod(*options, processes=2, devices=2):
    """Return the command that starts a run in several processes."""
    script = str(ROOT / "launch" / "local_pod.py")
    sizes = [f"--processes={processes}", f"--devices={devices}"]
    return [sys.executable, script, *sizes, "--", *options]


FIELDS = {
    "image_size": 32,
    "measures": "nleep,h_score,leep",
    "measure_options.nleep.components_per_class": 2,
    "finetune.num_steps": 6,
    # So low that training does not amplify rounding errors.
    "finetune.learning_rate": 0.0005,
    "finetune.batch_size": 8,
    "finetune.batch_norm_decay": 0.9,
    "stages": "extract,score,finetune,report",
}
# Fine-tuning that saves at once and does not finish.
LONG = {
    **FIELDS,
    "stages": "extract,finetune",
    "finetune.num_steps": 2000,
    "finetune.save_every": 2,
}


def flags(image_folder, pool, workdir, fields):
    paths = {"task.path": image_folder, "checkpoints": pool, "workdir": workdir}
    return ["--config=configs/folder.py"] + [
        f"--config.{name}={value}" for name, value in {**paths, **fields}.items()
    ]


def config(image_folder, pool, workdir, fields):
    """Return the config of `flags`, for a run in this process."""
    made = folder.get_config()
    paths = {"task.path": image_folder, "checkpoints": pool, "workdir": workdir}
    made.update_from_flattened_dict({k: str(v) for k, v in paths.items()})
    made.update_from_flattened_dict(fields)
    return made


def execute(command, **environment):
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    )


def stored_results(workdir):
    """Return the features, scores and accuracies of a run by path."""
    values = {}
    task = epath.Path(workdir) / "images"
    for kind in ("features", "blocks"):
        for manifest in task.glob(f"*/{kind}/*/manifest.json"):
            _, entry = store.read(manifest.parent)
            values[str(manifest.relative_to(task))] = entry.arrays
    for pattern in ("scores/*.json", "scores/*/*.json", "finetune/result.json"):
        for path in task.glob(f"*/{pattern}"):
            values[str(path.relative_to(task))] = json.loads(path.read_text())["result"]
    return values


def assert_equal(results, expected, num_test):
    """Compare features to 1e-6, scores to 1e-4 and accuracies to one test image.

    Features are bit-equal, because no sum crosses images. Scores sum in another order,
    so a score near 0 differs by rounding in float32 (1e-6), and NLEEP of a block near 0
    by 3e-5 of itself. SGD amplifies the difference.
    """
    # Each of two checkpoints has last features and blocks, three scores of the last
    # features, two of each of two blocks that are not the last features, and a result
    # of fine-tuning.
    assert results.keys() == expected.keys() and len(expected) == 2 * (2 + 3 + 4 + 1)
    for name, value in expected.items():
        if "manifest" in name:
            for key, array in value.items():
                scale = np.abs(array).max()
                np.testing.assert_allclose(results[name][key], array, atol=1e-6 * scale)
        elif "finetune" in name:
            assert abs(results[name]["accuracy"] - value["accuracy"]) < 1.5 / num_test
            loss = value["trials"][0]["final_loss"]
            other = results[name]["trials"][0]["final_loss"]
            assert other == pytest.approx(loss, rel=1e-3)
        elif value["score"] is None:
            assert results[name]["score"] is None
        else:
            score = pytest.approx(value["score"], rel=1e-4, abs=1e-6)
            assert results[name]["score"] == score


@pytest.mark.multiprocess
def test_two_processes_of_two_devices_agree_with_one(
    image_folder, pool, tmp_path, caplog
):
    """One image is corrupt, in the share of one process; all processes drop it."""
    corrupt = image_folder / "train/blue/1.jpg"
    corrupt.write_bytes(corrupt.read_bytes()[:-200])
    given, fields = (image_folder, pool), {**FIELDS, "features_from": "last,blocks"}
    run_lib.run(config(*given, tmp_path / "one", fields))
    two = execute(pod(*flags(*given, tmp_path / "two", fields)))
    assert two.returncode == 0, two.stderr
    for log in (caplog.text, two.stderr):
        assert "1 of 24 images of train cannot be read" in log
    results = stored_results(tmp_path / "two")
    assert_equal(results, stored_results(tmp_path / "one"), num_test=12)
    assert len(results["first/features/train/manifest.json"]["labels"]) == 23
    assert "4 x cpu in 2 processes" in two.stderr
    # Only process 0 prints, but each process writes its rows.
    assert two.stdout.count("images: 2 checkpoints") == 1
    shards = tmp_path / "two/images/first/features/train"
    names = {path.name for path in shards.glob("features*")}
    assert names == {"features.0-of-2.npy", "features.1-of-2.npy"}
    # One process loads the results of two.
    caplog.clear()
    with caplog.at_level("INFO"):
        run_lib.run(config(*given, tmp_path / "two", fields))
    assert "loaded cached features" in caplog.text
    assert "computed" not in caplog.text


@contextlib.contextmanager
def started(command):
    """Start a process, and kill it and its children at the end."""
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def wait_for(condition, process, seconds=400):
    """Wait as long as a training step may take to compile on a busy machine."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.multiprocess
def test_a_pod_stops_on_sigterm_or_lost_process_and_resumes(
    image_folder, pool, tmp_path, monkeypatch, caplog
):
    given = image_folder, pool, tmp_path, LONG
    state = tmp_path / "images/first/finetune/state"

    def saved_step():
        steps = [int(p.name) for p in state.glob("*/*") if p.name.isdigit()]
        return max(steps, default=0)

    with started(pod(*flags(*given), devices=1)) as process:
        wait_for(saved_step, process)
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=300)
    assert process.returncode == signals.EXIT_RETRY, log
    assert "Run it again to resume" in log and "Traceback" not in log
    stopped_at = saved_step()

    with started(pod(*flags(*given), devices=1)) as process:
        wait_for(lambda: saved_step() > stopped_at, process)
        children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")
        _, second = children.read_text().split()
        killed = time.monotonic()
        os.kill(int(second), signal.SIGKILL)
        _, log = process.communicate(timeout=120)
    assert time.monotonic() - killed < 120
    assert "Another process of this run has ended" in log and "Traceback" not in log

    # One process on one device resumes, and does not extract features again.
    stopped_at = saved_step()
    monkeypatch.setattr(signals, "should_stop", lambda: saved_step() > stopped_at)
    with caplog.at_level("INFO"), pytest.raises(Interrupted):
        run_lib.run(config(*given))
    assert "first: loaded cached features" in caplog.text
    [step] = re.findall(r"step (\d+)", caplog.text.replace(str(tmp_path), ""))[:1]
    assert stopped_at <= int(step) < 2000


@pytest.mark.multiprocess
def test_join_exits_with_the_coordinator_if_it_cannot_connect():
    code = (
        "from rankckpt_jax.devices import processes;"
        "processes.join('localhost:1', 2, 1, timeout_seconds=2)"
    )
    done = execute([sys.executable, "-c", code])
    assert done.returncode == 2
    assert "could not join the others within 2 s" in done.stderr
    assert "localhost:1" in done.stderr
    assert "Traceback" not in done.stderr


def test_local_pod_rejects_zero_processes():
    done = execute(pod(processes=0))
    assert done.returncode == 2 and "at least 1" in done.stderr


GCLOUD = """#!/usr/bin/env bash
# Stand-in for gcloud: one worker is a local folder, where commands really run.
cd "$(dirname "$0")" || exit
printf '%s\\n' "$*" | head -1 >> calls
case "$*" in
  *queued-resources\\ describe*) [ -e state ] && cat state ;;
  *queued-resources\\ create*) echo ACTIVE > state; mkdir -p worker/rankckpt/venv/bin
    cp python worker/rankckpt/venv/bin/python ;;
  *queued-resources\\ delete*) rm -rf state worker ;;
  *tpu-vm\\ scp*) cp "$5" worker/ ;;
  *tpu-vm\\ ssh*)
    [ "$(cat state)" = ACTIVE ] || exit 255
    for argument; do case $argument in --command=*) command=${argument#*=} ;; esac; done
    cd worker && HOME=$PWD PATH="$PWD/..:$PATH" bash -c "$command" ;;
esac
"""

PYTHON = """#!/usr/bin/env bash
# Stand-in for the run: exits with the next code, or is preempted if that is "gone".
folder=$(cd "$(dirname "$0")/../../../.." && pwd)
printf '<%s>' "$@" >> "$folder/runs"; echo >> "$folder/runs"
read -r code < "$folder/codes"; sed -i 1d "$folder/codes"
echo "the log of a run that ends with $code"
if [ "$code" = gone ]; then echo SUSPENDED > "$folder/state"; exit 0; fi
exit "$code"
"""


def write_script(path, text):
    path.write_text(text)
    path.chmod(0o755)


def tpu_vm(directory, *given):
    script = str(ROOT / "launch" / "tpu_vm.sh")
    path = f"{directory}:{os.environ['PATH']}"
    command = [script, "--name", "rank", "--zone", "us-west4-a", *given]
    return execute(command, PATH=path)


WORKDIR = "--config.workdir=gs://bucket/with space"


@pytest.fixture
def cloud(tmp_path):
    write_script(tmp_path / "gcloud", GCLOUD)
    write_script(tmp_path / "python", PYTHON)
    write_script(tmp_path / "uv", "#!/usr/bin/env bash\n")
    return tmp_path


def test_tpu_vm_retries_after_preemptions_and_deletes_the_slice(cloud):
    (cloud / "codes").write_text("75\ngone\n1\n")
    done = tpu_vm(cloud, "--spot", "--wait", "0", "--", "--config=x.py", WORKDIR)
    # The exit code of the last run.
    assert done.returncode == 1, done.stderr
    runs = (cloud / "runs").read_text().splitlines()
    assert runs == 3 * [f"<-m><rankckpt_jax.main><--config=x.py><{WORKDIR}>"]
    for code in ("75", "1"):
        assert f"the log of a run that ends with {code}\n" in done.stdout
    calls = (cloud / "calls").read_text()
    assert calls.count("queued-resources create") == 2 and "--spot" in calls
    assert calls.count("queued-resources delete") == 2
    assert not (cloud / "state").exists()


def test_tpu_vm_gives_up_after_the_last_attempt(cloud):
    (cloud / "codes").write_text("75\n75\n75\n")
    given = "--attempts", "2", "--wait", "0", "--keep", "--", WORKDIR
    done = tpu_vm(cloud, *given)
    assert done.returncode == signals.EXIT_RETRY
    assert len((cloud / "runs").read_text().splitlines()) == 2
    assert (cloud / "state").exists()


def test_tpu_vm_dry_run_prints_commands_and_runs_none(cloud):
    done = tpu_vm(cloud, "--spot", "--dry-run", "--", "--config=x.py", WORKDIR)
    assert done.returncode == 0, done.stderr
    assert not (cloud / "calls").exists()
    words = ["describe", "create", "archive", "scp", "venv", "main", "cat", "delete"]
    output = done.stdout + done.stderr
    for word in words:
        assert word in output


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "--config.workdir=gs://"),
        (["--", "--config.workdir=runs"], "--config.workdir=gs://"),
        (["--type", "v99-8", "--", WORKDIR], "--version"),
        (["--attempts", "no", "--", WORKDIR], "--attempts"),
        (["--color"], "--color"),
    ],
)
def test_tpu_vm_rejects_bad_options(cloud, given, message):
    done = tpu_vm(cloud, *given)
    assert done.returncode == 2 and message in done.stderr
    assert not (cloud / "calls").exists()


@pytest.mark.parametrize("code", [0, 1, signals.EXIT_RETRY])
def test_slurm_requeues_interrupted_jobs_and_passes_the_shard(tmp_path, code):
    write_script(tmp_path / "srun", f'#!/usr/bin/env bash\necho "$@"\nexit {code}\n')
    write_script(tmp_path / "scontrol", '#!/usr/bin/env bash\necho "queued: $@"\n')
    array = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "8"} if code else {}
    done = execute(
        ["bash", str(ROOT / "launch" / "slurm.sbatch"), WORKDIR],
        PATH=f"{tmp_path}:{os.environ['PATH']}",
        RANKCKPT_PYTHON=sys.executable,
        SLURM_JOB_ID="12",
        **array,
    )
    assert done.returncode == code
    assert f"-m rankckpt_jax.main {WORKDIR}" in done.stdout
    assert ("--config.shard=3/8" in done.stdout) == bool(array)
    assert ("queued: requeue 12" in done.stdout) == (code == signals.EXIT_RETRY)


def test_scripts_pass_shellcheck():
    scripts = [ROOT / ".ci/run", *sorted((ROOT / "launch").glob("*.s[hb]*"))]
    assert len(scripts) == 3
    tool = pathlib.Path(sys.executable).parent / "shellcheck"
    done = execute([str(tool), *map(str, scripts)])
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_colab_notebook_runs(tmp_path):
    """All cells except those that need a Colab TPU or install the package there."""
    import nbclient
    import nbformat

    notebook = nbformat.read(ROOT / "launch" / "colab_tpu.ipynb", as_version=4)
    notebook.cells = [
        cell for cell in notebook.cells if "colab" not in cell.metadata.get("tags", [])
    ]
    nbclient.NotebookClient(
        notebook, timeout=1500, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pages = [output.data.get("text/html", "") for output in outputs if "data" in output]
    assert any("&lt;html" in page and "<iframe" in page for page in pages)
    assert any("<table" in page and "nleep" in page for page in pages)
