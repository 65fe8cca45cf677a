"""A small but complete demo, for tests of stopped runs, damaged files and full disks.

A run that is stopped needs its own process, and importing JAX and TensorFlow takes
seconds. So one process imports them and forks for each run, before JAX uses a device.
The forked process runs the command line. `python -m tests.faults` is the process that
forks.
"""

import contextlib
import csv
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
import traceback

from rankckpt_jax.configs import demo

ROOT = pathlib.Path(__file__).parents[1]

SMALL = {
    "stages": "pretrain,extract,score,finetune,report",
    # The same number of classes and batch size as in other tests, to share programs.
    "task.digits": (0, 1, 2),
    "pretrain.digits": (5, 6, 7),
    "pretrain.batch_size": 8,
    "pretrain.stages": (0, 3),
    "pretrain.other_supervision": (),
    "pretrain.other_architectures": (),
    "pretrain.drawings": 1,
    "task.drawings": 1,
    "image_size": 32,
    "task.limit": 40,
    "measures": "logme,leep",
    "finetune.num_steps": 6,
    "finetune.batch_size": 8,
    "finetune.batch_norm_decay": 0.9,
    "finetune.save_every": 2,
}
"""A small demo over two checkpoints."""

COMPLETE = {
    **SMALL,
    "stages": "pretrain,extract,score,ablate,finetune,report",
    "pretrain.stages": (0, 3, 6),
    "measures": "nleep,leep,h_score",
    "measure_options.nleep.num_restarts": 1,
}
"""Every stage, over three checkpoints."""

GRID = {"energy": (0.7, 0.8), "components_per_class": (4, 5)}
"""A small grid for the stage `ablate`, because each point takes seconds to compile."""


def config(workdir, fields):
    """Return the demo's config with other fields."""
    made = demo.get_config()
    made.workdir = str(workdir)
    made.update_from_flattened_dict(fields)
    return made


def flags(workdir, fields):
    """Return the same as command-line flags."""
    fields = {**fields, "workdir": workdir}
    return [f"--config.{name}={value}" for name, value in fields.items()]


class Forks:
    """Controls the process that forks."""

    def __init__(self, folder):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults"],
            cwd=ROOT,
            env={
                **os.environ,
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                # Results are bit-equal only for equal numbers of devices, and a test's
                # own process has one device.
                "JAX_NUM_CPU_DEVICES": "1",
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._log = folder / "log"
        self._sent = folder / "sent"

    def run(self, workdir, fields, **limits):
        """Run the demo until it ends or is stopped by a signal.

        Args:
          workdir: Work directory of the run.
          fields: SMALL or COMPLETE.
          limits: At most one of `seconds`, after which to stop; `operation`, the number
            of the change to the work directory before which to stop; `before`, a part
            of the path of the change before which to stop. `number` is that of the
            signal, by default SIGKILL.

        Returns:
          (exit code, negative for a signal; number of changes to the work directory;
          log). `seconds_to_end` is then the time from the signal to the end.
        """
        order = {
            "options": flags(workdir, fields),
            "workdir": str(workdir),
            "log": str(self._log),
            "sent": str(self._sent),
            "limits": limits,
        }
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        code, ended = self._process.stdout.readline().split()
        code = int(code)
        if self._sent.exists():
            self.seconds_to_end = float(ended) - float(self._sent.read_text())
            self._sent.unlink()
        *lines, last = self._log.read_text().splitlines() or [""]
        if not last.startswith("operations "):
            return code, None, "\n".join([*lines, last])
        return code, int(last.split()[1]), "\n".join(lines)

    def close(self):
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()


def results(workdir):
    """Return the content of a run's files by relative path, without times."""
    contents = {}
    for path in sorted(pathlib.Path(workdir).rglob("*")):
        name = str(path.relative_to(workdir))
        if path.is_dir() or "/.lock/" in name or "tfevents" in name:
            continue
        if path.name in ("report.html", "manifest.json") or path.suffix == ".index":
            contents[name] = True
        elif path.suffix == ".json":
            contents[name] = without_times(json.loads(path.read_text()))
        elif path.suffix == ".csv":
            with path.open(newline="") as file:
                contents[name] = without_times(list(csv.DictReader(file)))
        else:
            contents[name] = path.read_bytes()
    return contents


def without_times(value):
    """Return JSON without durations and without the checksum that covers them."""
    if isinstance(value, list):
        return [without_times(item) for item in value if not is_time(item)]
    if not isinstance(value, dict):
        return value
    # The metrics of a training run are compared as a CSV file.
    timed = {"checksum", "images_per_second", "metrics"}
    return {
        key: without_times(item)
        for key, item in value.items()
        if "seconds" not in key and key not in timed
    }


def is_time(item):
    """Return whether this is the figure of a conclusion that holds durations."""
    return isinstance(item, dict) and item.get("name") == "Time to rank"


def modification_times(workdir):
    """Return when each result was written that a later run must not compute again."""
    patterns = ["**/scores/**/*.json", "**/finetune/**/*.json", "**/manifest.json"]
    patterns += ["*/*/checkpoint.json", "*/*/summary.json"]
    return {
        path: path.stat().st_mtime_ns
        for pattern in patterns
        for path in pathlib.Path(workdir).glob(pattern)
        if not any(part.startswith("state") for part in path.parts)
    }


def leftovers(workdir):
    """Return the files that must not exist after a complete run."""
    words = ("partial", "probe", "clock", "tmp", "tempstate", "state")
    return [
        path
        for path in pathlib.Path(workdir).rglob("*")
        if any(word in path.name for word in words)
        or (".lock" in path.parts and path.suffix == ".json")
    ]


def serve():
    """Fork a run for each line of standard input, and print its exit code."""
    import runpy

    # All imports of a run, except the module that reads flags.
    import orbax.checkpoint  # noqa: F401
    import tensorflow  # noqa: F401
    from tensorboardX import event_file_writer, summary  # noqa: F401

    from rankckpt_jax import report  # noqa: F401
    from rankckpt_jax.report import page  # noqa: F401
    from rankckpt_jax.run import ablation

    ablation.GRID = GRID
    for line in sys.stdin:
        order = json.loads(line)
        output, end = os.pipe()
        child = os.fork()
        if not child:
            os.dup2(end, 1)
            os.dup2(end, 2)
            os.close(output)
            os.close(end)
            sys.argv = ["rankckpt_jax.main", *order["options"]]
            # It is ignored if the tests run in the background.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            count = _limit(order["workdir"], order["sent"], **order["limits"])
            code = 70
            try:
                runpy.run_module("rankckpt_jax.main", run_name="__main__")
            except SystemExit as end:
                code = end.code
            except BaseException:
                traceback.print_exc()
            finally:
                with contextlib.suppress(OSError):
                    print(f"operations {count()}", file=sys.stderr, flush=True)
                os._exit(code or 0)
        seconds = order["limits"].get("seconds")
        if seconds is not None:
            number = order["limits"].get("number", signal.SIGKILL)
            timer = threading.Timer(seconds, _send, (child, number, order["sent"]))
            timer.start()
        os.close(end)
        with open(output, "rb") as log:
            pathlib.Path(order["log"]).write_bytes(log.read())
        _, status = os.waitpid(child, 0)
        if seconds is not None:
            timer.cancel()
            timer.join()
        print(os.waitstatus_to_exitcode(status), time.monotonic(), flush=True)


def _send(process, number, sent):
    pathlib.Path(sent).write_text(str(time.monotonic()))
    os.kill(process, number)


def _limit(
    workdir, sent, operation=None, before=None, seconds=None, number=signal.SIGKILL
):
    """Count the changes to the work directory, and stop the process before one."""
    del seconds  # The parent measures it.
    done = 0

    def watch(event, arguments):
        nonlocal done, before
        if event == "open":
            path, _, flags = arguments
            changes = isinstance(path, str) and bool(
                flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            )
        elif event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir"):
            path, changes = arguments[0], True
        else:
            return
        # While a directory is being removed, names are relative to it.
        if (
            not changes
            or not str(path).startswith((workdir, "./"))
            and "/" in str(path)
        ):
            return
        done += 1
        if done == operation or (before is not None and before in str(path)):
            before = None
            _send(os.getpid(), number, sent)

    sys.addaudithook(watch)
    return lambda: done


if __name__ == "__main__":
    serve()
