r"""Ranks pre-trained checkpoints for an image classification task.

    python -m rankckpt_jax.main                                   the demo
    python -m rankckpt_jax.main --config=configs/folder.py \
        --config.task.path=DIR --config.checkpoints=DIR_OR_GLOB    your own
    python -m rankckpt_jax.main --config=... --config.stages=report   the report again
    python -m rankckpt_jax.main --list=measures          or checkpoints, networks, tasks

Exit codes: 0, success; 1, some checkpoints failed or none could be ranked, as their
rows explain; 2, the input cannot be used; 75, the run was asked to stop (SIGTERM) or
lost a process: run it again to resume; 130, the run was stopped by Ctrl-C (SIGINT) and
has saved its state. configs/default.py documents every field of a config.
"""

import contextlib
import importlib.util
import logging
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Iterator
from typing import Any

from rankckpt_jax.devices import interrupt

if __name__ == "__main__":
    interrupt.handle()  # The imports below take time.

from absl import app, flags  # noqa: E402
from absl import logging as absl_logging  # noqa: E402
from ml_collections import config_flags  # noqa: E402

from rankckpt_jax.errors import InputError, Interrupted, redact  # noqa: E402


def _configs() -> pathlib.Path:
    """Return the package's directory of configs."""
    spec = importlib.util.find_spec("rankckpt_jax.configs")
    assert spec is not None and spec.submodule_search_locations is not None
    return pathlib.Path(next(iter(spec.submodule_search_locations)))


def _exists(path: str) -> bool:
    try:
        return pathlib.Path(path).exists()
    except (OSError, ValueError):  # No file can have this name.
        return False


@contextlib.contextmanager
def _refusing(argv: list[str]) -> Iterator[None]:
    """Exit with code 2 and one message instead of a traceback for unusable flags."""
    try:
        yield
    except Exception as error:  # ml_collections passes on whatever parsing raises.
        if "--debug" in argv:
            raise
        print(f"Error: {_flag_error(error, argv)}", file=sys.stderr)
        sys.exit(2)


def _flag_error(error: Exception, argv: list[str]) -> InputError:
    """Rewrite an error of absl or ml_collections in our form."""
    _, ours, text = str(error).rpartition("rankckpt_jax.errors.InputError: ")
    if ours:
        # A config raised it, and ml_collections wrapped its traceback.
        what, *lines = (line.strip() for line in text.strip().splitlines())
        parts = dict(line.split(": ", 1) for line in lines if ": " in line)
        names = ("where", "expected", "found")
        return InputError(
            what, **{n: parts.get(n, "") for n in names}, fix=parts.get("to fix", "")
        )
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if isinstance(error, AttributeError):
        # ml_collections: "'mesures'\nDid you mean "measures" instead of "mesures"?"
        key = str(error).strip("\"'").split("'")[0].split("\\")[0]
        given = [a for a in argv if key in a.partition("=")[0].split(".")]
        near = re.search(r'Did you mean "(\w+)"', str(error))
        hint = f"did you mean {near[1]!r}? " if near else ""
        return InputError(
            "The config has no such field",
            where=given[0] if given else key,
            fix=f"{hint}configs/default.py documents every field",
        )
    config = [a for a in argv if a.startswith("--config=")]
    where = config[-1] if config else ""
    if isinstance(error, OSError):
        return InputError(
            "The config cannot be read",
            where=where,
            expected="a Python file with get_config()",
            found=lines[-1].strip(),
            fix="name a file of configs/, such as configs/folder.py, or your own",
        )
    if "Traceback" in str(error) or "get_config" in str(error):
        found = lines[-1].strip()
        return InputError("The config failed to load", where=where, found=found)
    return InputError(
        "A flag cannot be used",
        found=lines[0],
        fix="see --help, and configs/default.py for the fields of a config",
    )


def _complete(argv: list[str]) -> list[str]:
    """Return flags in the form that ml_collections reads.

    Files of flags (--flagfile) are inserted, `--config FILE` becomes `--config=FILE`,
    and `configs/NAME.py` also names the package's own configs.
    """
    given = flags.FlagValues().read_flags_from_files(argv, force_gnu=False)
    completed: list[str] = []
    while given:
        argument = given.pop(0)
        flag, separator, value = argument.partition("=")
        if flag in ("--config", "-config"):
            if not separator and given:
                value = given.pop(0)
            argument = f"--config={_find_config(value)}"
        completed.append(argument)
    return completed


def _find_config(value: str) -> str:
    """Return the file of a config, with the argument after a colon."""
    path, colon, argument = value.partition(":")
    own = _configs() / pathlib.Path(path).name
    is_relative = os.path.normpath(path).startswith(f"configs{os.sep}")
    if _exists(value) or _exists(path) or not (is_relative and own.is_file()):
        return value
    return f"{own}{colon}{argument}"


def _define(values: flags.FlagValues, argv: list[str]) -> flags.FlagHolder:
    """Define the flag `config`, which loads the default config immediately."""
    with _refusing(argv):
        return config_flags.DEFINE_config_file(
            "config",
            str(_configs() / "demo.py"),
            "A file of configs/, or your own; the demo by default.",
            flag_values=values,
            sys_argv=_complete(argv),
        )


_CONFIG = _define(flags.FLAGS, sys.argv)
_LIST = flags.DEFINE_enum(
    "list",
    None,
    ["checkpoints", "measures", "networks", "tasks"],
    "Print the available names and exit.",
)
_DEBUG = flags.DEFINE_bool("debug", False, "Show tracebacks of input errors.")


def main(argv: list[str]) -> int:
    """Run the stages of the config and return the exit code."""
    if len(argv) > 1:
        print(f"Unexpected argument: {argv[1]!r}; see --help", file=sys.stderr)
        return 2
    # Imports inside the function, so that --help answers at once.
    if _LIST.value:
        from rankckpt_jax.run import lists

        _print(lists.LISTS[_LIST.value]())
        return 0
    from rankckpt_jax.devices import mapping, processes, signals
    from rankckpt_jax.run.run import run

    _configure_logging()
    mapping.split_cpu_devices()
    try:
        processes.join(**_CONFIG.value.distributed)
        processes.check_devices()
        if not processes.is_main_process():
            logging.getLogger("rankckpt_jax").setLevel(logging.ERROR)
        ranking = run(_CONFIG.value)
        interrupt.end_if_requested()
    except InputError as error:
        interrupt.end_if_requested()
        if _DEBUG.value:
            raise
        print(f"Error: {error}", file=sys.stderr)
        return 2
    except Interrupted as interrupted:
        message = f"{interrupted}. Run it again to resume."
        interrupt.end_if_requested(message)
        print(message, file=sys.stderr)
        return signals.EXIT_RETRY
    except Exception as error:
        interrupt.end_if_requested()
        if not processes.is_loss_of_a_process(error):
            raise
        print(
            f"Error: Another process of this run has ended\n  found: {error}\n"
            "  to fix: read its own message, then start all processes again to resume",
            file=sys.stderr,
            flush=True,
        )
        # A regular exit would wait for the lost process.
        os._exit(signals.EXIT_RETRY)
    if processes.is_main_process():
        _print(str(ranking))
    if any(row.failure for row in ranking.rows):
        return 1
    ranks = bool(ranking.scored_rows) and not ranking.ranks_nothing
    return 0 if ranks or "score" not in _CONFIG.value.stages else 1


def run() -> None:
    """Run `main`; the entry point of the console script `rankckpt`."""
    interrupt.handle()
    sys.excepthook = _print_redacted
    app.run(main, flags_parser=_parse)


def _print(text: str) -> None:
    """Print a text, also if its reader stops early, as `head` does."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Python flushes standard output again at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Redacted(logging.Formatter):
    """Log lines, also those of other packages, without passwords and keys."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record and its traceback."""
        return redact(super().format(record))


def _print_redacted(*error: Any) -> None:
    """Print a traceback without passwords and keys."""
    print(redact("".join(traceback.format_exception(*error))), file=sys.stderr)


def _configure_logging() -> None:
    """Log our lines with times, and only the warnings of other packages.

    A plain handler replaces absl's, because progress bars can write around it.
    """
    absl_logging.set_verbosity(absl_logging.WARNING)
    logging.getLogger("rankckpt_jax").setLevel(logging.INFO)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Redacted("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.getLogger().handlers = [handler]


def _parse(
    argv: list[str],
    values: flags.FlagValues = flags.FLAGS,
    config: flags.FlagHolder = _CONFIG,
) -> list[str]:
    """Parse flags; see `_complete`."""
    with _refusing(argv):
        completed = _complete(argv)
    if {"--help", "--helpfull", "--helpshort", "-h"} & set(completed):
        return app.parse_flags_with_usage(completed)
    with _refusing(completed):
        # absl's own parser would show tracebacks of some errors.
        left = values(completed)
        # ml_collections reports a missing file only when an attribute is read.
        config.value.keys()
        return left


if __name__ == "__main__":
    run()
