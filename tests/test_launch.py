"""The main job in several processes: as one pod, and as jobs that divide the pool."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from etils import epath

from rankckpt_jax.devices import signals
from rankckpt_jax.storage import store

ROOT = pathlib.Path(__file__).parents[1]
POD = ROOT / "launch" / "local_pod.py"


def pod(*options, processes=2, devices=2):
    pod_options = [f"--processes={processes}", f"--devices={devices}"]
    return [sys.executable, str(POD), *pod_options, "--", *options]


def options(image_folder, pool, workdir, *more):
    return [
        "--config=configs/folder.py",
        f"--config.task.path={image_folder}",
        f"--config.checkpoints={pool}",
        f"--config.workdir={workdir}",
        "--config.image_size=32",
        "--config.measures=nleep,h_score,leep",
        "--config.measure_options.nleep.components_per_class=2",
        "--config.finetune.num_steps=6",
        # So low that random weights do not make rounding grow.
        "--config.finetune.learning_rate=0.0005",
        "--config.finetune.batch_size=8",
        "--config.finetune.batch_norm_decay=0.9",
        *more,
    ]


def run(command, **environment):
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    )


def alone(*given):
    return [sys.executable, "-m", "rankckpt_jax.main", *given]


STAGES = "--config.stages=extract,score,finetune,report"


def found(workdir):
    """Features, scores and accuracies of a run, by their place."""
    values = {}
    task = epath.Path(workdir) / "images"
    for manifest in task.glob("*/features/*/manifest.json"):
        _, entry = store.read(manifest.parent)
        values[str(manifest.relative_to(task))] = entry.arrays
    for path in [*task.glob("*/scores/*.json"), *task.glob("*/finetune/result.json")]:
        values[str(path.relative_to(task))] = json.loads(path.read_text())["result"]
    return values


def assert_equal(one, other, num_test):
    """Features to 1e-6 (they come out bit-equal: no sum crosses images), scores to 1e-5
    (sums in another order), accuracies within one test image (SGD amplifies that)."""
    assert one.keys() == other.keys() and len(one) == 10
    for name, value in one.items():
        if "features" in name:
            for key, array in value.items():
                scale = np.abs(array).max()
                np.testing.assert_allclose(other[name][key], array, atol=1e-6 * scale)
        elif "finetune" in name:
            assert abs(other[name]["accuracy"] - value["accuracy"]) < 1.5 / num_test
            loss = value["runs"][0]["final_loss"]
            assert other[name]["runs"][0]["final_loss"] == pytest.approx(loss, rel=1e-3)
        elif value["score"] is None:
            assert other[name]["score"] is None
        else:
            assert other[name]["score"] == pytest.approx(value["score"], rel=1e-5)


@pytest.mark.multiprocess
def test_two_processes_of_two_devices_give_what_one_gives(image_folder, pool, tmp_path):
    one = run(alone(*options(image_folder, pool, tmp_path / "one", STAGES)))
    assert one.returncode == 0, one.stderr
    two = run(pod(*options(image_folder, pool, tmp_path / "two", STAGES)))
    assert two.returncode == 0, two.stderr
    assert_equal(found(tmp_path / "one"), found(tmp_path / "two"), num_test=12)
    assert "4 x cpu in 2 processes" in two.stderr
    # Process 0 alone prints; each has written its rows.
    assert two.stdout.count("images: 2 checkpoints") == 1
    shards = tmp_path / "two/images/first/features/train"
    names = {path.name for path in shards.glob("features*")}
    assert names == {"features.0-of-2.npy", "features.1-of-2.npy"}
    # What two have computed, one goes on with.
    again = run(alone(*options(image_folder, pool, tmp_path / "two", STAGES)))
    assert again.returncode == 0 and "computed" not in again.stderr


# Fine-tuning that is saved at once and lasts for longer than it is let.
LONG = (
    "--config.stages=extract,finetune",
    "--config.finetune.num_steps=2000",
    "--config.finetune.save_every=2",
)


@pytest.mark.multiprocess
def test_processes_leave_out_the_same_images(image_folder, pool, tmp_path):
    """One meets it in its share; the other would wait for features that never come."""
    broken = image_folder / "train/blue/1.jpg"
    broken.write_bytes(broken.read_bytes()[:-200])
    given = image_folder, pool
    two = run(pod(*options(*given, tmp_path / "two"), devices=1))
    assert two.returncode == 0, two.stderr
    one = run(alone(*options(*given, tmp_path / "one")))
    assert one.returncode == 0, one.stderr
    for done in (one, two):
        assert "1 of 24 images of train cannot be read" in done.stderr
    expected, values = found(tmp_path / "one"), found(tmp_path / "two")
    assert values.keys() == expected.keys() and len(values) == 8
    for name in ("first", "second"):
        name = f"{name}/features/train/manifest.json"
        assert len(values[name]["labels"]) == 23
        for key, array in expected[name].items():
            np.testing.assert_array_equal(values[name][key], array)


@pytest.mark.multiprocess
def test_when_one_process_is_killed_the_other_says_so(image_folder, pool, tmp_path):
    given = options(image_folder, pool, tmp_path, *LONG)
    with started(pod(*given, devices=1)) as process:
        saved = tmp_path / "images/first/finetune/state"
        wait_for(lambda: saved.exists() and any(saved.iterdir()), process)
        children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")
        _, second = children.read_text().split()
        killed = time.monotonic()
        os.kill(int(second), signal.SIGKILL)
        _, told = process.communicate(timeout=120)
    assert time.monotonic() - killed < 120
    assert "another process of this run is gone" in told
    assert "Traceback" not in told
    # The rerun goes on: features are not extracted again.
    rest = run(alone(*given, "--config.stages=extract"))
    assert rest.returncode == 0, rest.stderr
    assert "first: features found" in rest.stderr


@contextlib.contextmanager
def started(command):
    """A process that is gone afterwards, with all that it started."""
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
    """Waits as long as a training step may take to compile on a busy machine."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.multiprocess
def test_a_run_that_is_told_to_end_saves_and_goes_on(image_folder, pool, tmp_path):
    given = options(image_folder, pool, tmp_path, *LONG)
    saved = tmp_path / "images/first/finetune/state"
    with started(pod(*given, devices=1)) as process:
        wait_for(lambda: saved.exists() and any(saved.iterdir()), process)
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=300)
    assert process.returncode == signals.EXIT_RETRY, told
    assert "Started again, the run goes on" in told and "Traceback" not in told
    # On another number of devices, and told to end again.
    with started(pod(*given, processes=1, devices=1)) as process:
        seen = ""
        for line in process.stderr:
            seen += line
            if "goes on from step" in line:
                break
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=300)
    assert process.returncode == signals.EXIT_RETRY, told
    step = int(re.search(r"goes on from step (\d+)", seen).group(1))
    assert 0 < step < 2000


@pytest.mark.multiprocess
def test_a_process_that_cannot_join_names_the_coordinator():
    given = [
        "--config.distributed.coordinator=localhost:1",
        "--config.distributed.num_processes=2",
        "--config.distributed.process_id=1",
        "--config.distributed.timeout_seconds=3",
    ]
    done = run(alone(*given))
    assert done.returncode == 2
    assert "could not join the others within 3 s" in done.stderr
    assert "localhost:1" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.multiprocess
def test_jobs_divide_the_checkpoints_and_outlive_one_that_is_killed(
    image_folder, pool, tmp_path
):
    many = tmp_path / "many"
    for i in range(12):
        shutil.copytree(pool / ("first" if i % 2 else "second"), many / f"c{i:02}")
    given = options(image_folder, many, tmp_path / "runs", "--config.shard_checkpoints")
    task = tmp_path / "runs" / "images"
    with contextlib.ExitStack() as stack:
        jobs = [stack.enter_context(started(alone(*given))) for _ in range(3)]
        # One dies with a checkpoint in its hands.
        held = set()
        wait_for(lambda: held.update(holding(task, jobs[0].pid)) or held, jobs[0])
        jobs[0].kill()
        told = [job.communicate(timeout=300)[1] for job in jobs]
    assert [job.returncode for job in jobs[1:]] == [0, 0], told
    made = re.findall(r"\] (c\d\d): nleep computed", "".join(told))
    assert sorted(set(made)) == [f"c{i:02}" for i in range(12)]
    # Nothing was done twice, except what the dead one was at.
    assert set(made) - held == {n for n in made if made.count(n) == 1} - held
    table = (task / "ranking.csv").read_text()
    assert all(f"c{i:02}" in table for i in range(12))
    assert not list(task.rglob("*.partial"))
    assert not list((task / ".claims").rglob("*.json"))


def holding(task, pid):
    """Checkpoints that a process holds."""
    names = set()
    for path in (task / ".claims").glob("c*/*.json"):
        try:
            if json.loads(path.read_text())["pid"] == pid:
                names.add(path.parent.name)
        except (OSError, ValueError):
            continue
    return names


@pytest.mark.multiprocess
def test_two_runs_do_not_meet_in_one_directory(image_folder, pool, tmp_path):
    given = options(image_folder, pool, tmp_path)
    claims = tmp_path / "images" / ".claims" / "run"
    with started(alone(*given)) as process:
        wait_for(lambda: any(claims.glob("*.json")), process)
        second = run(alone(*given))
        process.communicate()
    assert process.returncode == 0
    assert second.returncode == 2
    assert f"process {process.pid} on " in second.stderr


def test_local_pod_refuses_what_makes_no_sense():
    done = run(pod(processes=0))
    assert done.returncode == 2 and "at least 1" in done.stderr


GCLOUD = """#!/usr/bin/env bash
# Stands for gcloud: one worker, a folder of this machine, on which commands really run.
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
# Stands for the run: told to end by the first code, taken away with its machine by the
# second.
folder=$(cd "$(dirname "$0")/../../../.." && pwd)
printf '<%s>' "$@" >> "$folder/runs"; echo >> "$folder/runs"
read -r code < "$folder/codes"; sed -i 1d "$folder/codes"
echo "the log of a run that ends with $code"
if [ "$code" = gone ]; then echo SUSPENDED > "$folder/state"; exit 0; fi
exit "$code"
"""


def executable(path, text):
    path.write_text(text)
    path.chmod(0o755)


def tpu_vm(folder, *given):
    script = str(ROOT / "launch" / "tpu_vm.sh")
    path = f"{folder}:{os.environ['PATH']}"
    command = [script, "--name", "rank", "--zone", "us-west4-a", *given]
    return run(command, PATH=path)


WORKDIR = "--config.workdir=gs://bucket/with space"


@pytest.fixture
def cloud(tmp_path):
    executable(tmp_path / "gcloud", GCLOUD)
    executable(tmp_path / "python", PYTHON)
    executable(tmp_path / "uv", "#!/usr/bin/env bash\n")
    return tmp_path


def test_a_slice_is_made_used_again_after_preemptions_and_taken_down(cloud):
    (cloud / "codes").write_text("75\ngone\n1\n")
    done = tpu_vm(cloud, "--spot", "--wait", "0", "--", "--config=x.py", WORKDIR)
    # The last run's own code.
    assert done.returncode == 1, done.stderr
    runs = (cloud / "runs").read_text().splitlines()
    assert runs == 3 * [f"<-m><rankckpt_jax.main><--config=x.py><{WORKDIR}>"]
    assert "the log of a run that ends with 1" in done.stdout
    calls = (cloud / "calls").read_text()
    assert calls.count("queued-resources create") == 2 and "--spot" in calls
    assert calls.count("queued-resources delete") == 2
    assert not (cloud / "state").exists()


def test_a_slice_that_keeps_being_interrupted_is_given_up(cloud):
    (cloud / "codes").write_text("75\n75\n75\n")
    given = "--attempts", "2", "--wait", "0", "--keep", "--", WORKDIR
    done = tpu_vm(cloud, *given)
    assert done.returncode == signals.EXIT_RETRY
    assert len((cloud / "runs").read_text().splitlines()) == 2
    assert (cloud / "state").exists()


def test_a_dry_run_shows_every_command_and_runs_none(cloud):
    done = tpu_vm(cloud, "--spot", "--dry-run", "--", "--config=x.py", WORKDIR)
    assert done.returncode == 0, done.stderr
    assert not (cloud / "calls").exists()
    order = ["describe", "create", "archive", "scp", "venv", "main", "cat", "delete"]
    told = done.stdout + done.stderr
    for word in order:
        assert word in told


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "--config.workdir=gs://"),
        (["--", "--config.workdir=runs"], "--config.workdir=gs://"),
        (["--type", "v99-8", "--", WORKDIR], "--version"),
        (["--attempts", "no", "--", WORKDIR], "--attempts"),
        (["--color"], "--color"),
    ],
)
def test_a_slice_is_not_made_for_bad_options(cloud, given, said):
    done = tpu_vm(cloud, *given)
    assert done.returncode == 2 and said in done.stderr
    assert not (cloud / "calls").exists()


@pytest.mark.parametrize("code", [0, 1, signals.EXIT_RETRY])
def test_slurm_queues_again_what_was_interrupted(tmp_path, code):
    executable(tmp_path / "srun", f'#!/usr/bin/env bash\necho "$@"\nexit {code}\n')
    executable(tmp_path / "scontrol", '#!/usr/bin/env bash\necho "queued: $@"\n')
    done = run(
        ["bash", str(ROOT / "launch" / "slurm.sbatch"), WORKDIR],
        PATH=f"{tmp_path}:{os.environ['PATH']}",
        RANKCKPT_PYTHON=sys.executable,
        SLURM_JOB_ID="12",
    )
    assert done.returncode == code
    assert f"-m rankckpt_jax.main {WORKDIR}" in done.stdout
    assert ("queued: requeue 12" in done.stdout) == (code == signals.EXIT_RETRY)


def test_scripts_pass_shellcheck():
    scripts = [ROOT / ".ci/run", *sorted((ROOT / "launch").glob("*.s[hb]*"))]
    assert len(scripts) == 3
    tool = pathlib.Path(sys.executable).parent / "shellcheck"
    done = run([str(tool), *map(str, scripts)])
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    """All cells but those that want Colab's TPU and install the package there."""
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
