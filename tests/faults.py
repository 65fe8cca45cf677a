"""A small but complete demo, to be killed, damaged, starved of disk and compared.

In a test's own process it runs for seconds, once it is compiled. To be killed it needs
a process, which by itself imports JAX and TensorFlow for seconds. So one process
imports them, has no device yet, and forks for each run; what is forked is the command
line as it is. `python -m tests.faults` is that process.
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
import traceback

from rankckpt_jax.configs import demo

ROOT = pathlib.Path(__file__).parents[1]

SMALL = {
    "stages": "pretrain,extract,score,finetune,report",
    # Classes and images a step as in other tests: what these compile serves here.
    "task.digits": (0, 1, 2),
    "pretrain.digits": (5, 6, 7),
    "pretrain.batch_size": 8,
    "pretrain.stages": (0, 3),
    "pretrain.drawings": 1,
    "image_size": 32,
    "task.limit": 40,
    "measures": "h_score,leep",
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
"""With every stage, over three checkpoints."""

GRID = {"energy": (0.7, 0.8), "components_per_class": (4, 5)}
"""Of the stage `ablate`, in place of its own: each point is compiled for seconds."""


def config(workdir, fields):
    """The demo's config with other fields."""
    made = demo.get_config()
    made.workdir = str(workdir)
    made.update_from_flattened_dict(fields)
    return made


class Forks:
    """The process that forks, seen from a test."""

    def __init__(self, folder):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults"],
            cwd=ROOT,
            env={
                **os.environ,
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                # As many as the undisturbed run has in the test's process, which is not
                # the command line: bits are equal for one number of devices only.
                "JAX_NUM_CPU_DEVICES": "1",
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._log = folder / "log"

    def run(self, workdir, fields, **limits):
        """Runs the demo to its end, or to where it is killed.

        Args:
          workdir: Its work directory.
          fields: SMALL or COMPLETE.
          limits: At most one of `seconds`, after which it is killed; `operation`, the
            number of the change to the work directory before which it is killed;
            `before`, a part of the path of a change before which it is killed.

        Returns:
          (exit code, negative for a signal; changes made to the work directory; log)
        """
        order = {
            "options": [
                f"--config.{name}={value}"
                for name, value in {**fields, "workdir": workdir}.items()
            ],
            "workdir": str(workdir),
            "log": str(self._log),
            "limits": limits,
        }
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        *lines, last = self._log.read_text().splitlines() or [""]
        if not last.startswith("operations "):
            return code, None, "\n".join([*lines, last])
        return code, int(last.split()[1]), "\n".join(lines)

    def close(self):
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()


def results(workdir):
    """All that a run found out, by file: no times, and no names of directories."""
    found = {}
    for path in sorted(pathlib.Path(workdir).rglob("*")):
        name = str(path.relative_to(workdir))
        if path.is_dir() or "/.claims/" in name or "tfevents" in name:
            continue
        if path.name in ("report.html", "manifest.json") or path.suffix == ".index":
            found[name] = True
        elif path.suffix == ".json":
            found[name] = without_times(json.loads(path.read_text()))
        elif path.suffix == ".csv":
            with path.open(newline="") as file:
                found[name] = without_times(list(csv.DictReader(file)))
        else:
            found[name] = path.read_bytes()
    return found


def without_times(value):
    """JSON without what was spent on it, and without the checksum over that."""
    if isinstance(value, list):
        return [without_times(item) for item in value]
    if not isinstance(value, dict):
        return value
    # The CSV of a run is compared as a file.
    timed = {"checksum", "images_per_second", "metrics"}
    return {
        key: without_times(item)
        for key, item in value.items()
        if "seconds" not in key and key not in timed
    }


def whole(workdir):
    """When each result was written that a later run must not make again."""
    patterns = ["**/scores/**/*.json", "**/finetune/**/*.json", "**/manifest.json"]
    return {
        path: path.stat().st_mtime_ns
        for pattern in patterns
        for path in pathlib.Path(workdir).glob(pattern)
        if not any(part.startswith("state") for part in path.parts)
    }


def left_behind(workdir):
    """What nobody will need once a run is complete."""
    words = ("partial", "probe", "clock", "tmp", "tempstate", "state")
    return [
        path
        for path in pathlib.Path(workdir).rglob("*")
        if any(word in path.name for word in words)
        or (".claims" in path.parts and path.is_file())
    ]


def serve():
    """Forks a run for each line of standard input; answers with its exit code."""
    import runpy

    # All that a run imports, but for what reads flags.
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
            count = _limit(order["workdir"], **order["limits"])
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
            timer = threading.Timer(seconds, os.kill, (child, signal.SIGKILL))
            timer.start()
        os.close(end)
        with open(output, "rb") as told:
            pathlib.Path(order["log"]).write_bytes(told.read())
        _, status = os.waitpid(child, 0)
        if seconds is not None:
            timer.cancel()
            timer.join()
        print(os.waitstatus_to_exitcode(status), flush=True)


def _limit(workdir, operation=None, before=None, seconds=None):
    """Watches, and ends, what changes the work directory; returns its count."""
    del seconds  # Its clock runs in the parent.
    done = 0

    def watch(event, arguments):
        nonlocal done
        if event == "open":
            path, _, flags = arguments
            changes = isinstance(path, str) and bool(
                flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            )
        elif event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir"):
            path, changes = arguments[0], True
        else:
            return
        # Within a directory that is being removed names are relative to it.
        if (
            not changes
            or not str(path).startswith((workdir, "./"))
            and "/" in str(path)
        ):
            return
        done += 1
        if done == operation or (before is not None and before in str(path)):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    return lambda: done


if __name__ == "__main__":
    serve()
