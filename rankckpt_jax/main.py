r"""Ranks pre-trained checkpoints for an image classification task.

    python -m rankckpt_jax.main                                   the demo
    python -m rankckpt_jax.main --config=configs/folder.py \
        --config.task.path=DIR --config.checkpoints=DIR_OR_GLOB    your own
    python -m rankckpt_jax.main --config=... --config.stages=report   the page again
    python -m rankckpt_jax.main --list=measures          or checkpoints, networks, tasks

Exit codes: 0, all went well; 1, some checkpoints failed and their rows say why; 2, the
input cannot be used; 75, the run was told to end (SIGTERM), or one of its processes was
lost: started again, it goes on. Every field of a config is explained in
configs/default.py.
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

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from rankckpt_jax.errors import InputError, Interrupted, redact


def _configs() -> pathlib.Path:
    """The folder of configs that comes with the package."""
    spec = importlib.util.find_spec("rankckpt_jax.configs")
    assert spec is not None and spec.submodule_search_locations is not None
    return pathlib.Path(next(iter(spec.submodule_search_locations)))


def _refused(error: Exception, argv: list[str]) -> InputError:
    """What is wrong with the flags, in our words."""
    _, ours, text = str(error).rpartition("rankckpt_jax.errors.InputError: ")
    if ours:
        lines = [line.strip() for line in text.strip().splitlines()]
        told = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
        parts = {name: told.get(name, "") for name in ("where", "expected", "found")}
        return InputError(lines[0], **parts, fix=told.get("to fix", ""))
    lines = str(error).strip().splitlines() or [type(error).__name__]
    last = lines[-1].strip()
    if isinstance(error, AttributeError):
        # ml_collections: "'mesures'\nDid you mean "measures" instead of "mesures"?"
        key = str(error).strip("\"'").split("'")[0].split("\\")[0]
        given = [a for a in argv if key in a.partition("=")[0].split(".")]
        near = re.search(r'Did you mean "(\w+)"', str(error))
        return InputError(
            "The config has no such field",
            where=given[0] if given else key,
            fix=(f"did you mean {near[1]!r}? " if near else "")
            + "configs/default.py explains every field",
        )
    config = [a.partition("=")[2] for a in argv if a.startswith("--config=")]
    named = f"--config={config[-1]}" if config else ""
    if isinstance(error, OSError):
        return InputError(
            "The config cannot be read",
            where=named,
            expected="a Python file with get_config()",
            found=last,
            fix="name a file of configs/, such as configs/folder.py, or your own",
        )
    if "Traceback" in str(error) or "get_config" in str(error):
        return InputError("The config failed to load", where=named, found=last)
    return InputError(
        "A flag cannot be used",
        found=lines[0],
        fix="see --help, and configs/default.py for the fields of a config",
    )


@contextlib.contextmanager
def _refusing(argv: list[str]) -> Iterator[None]:
    """One message and exit code 2 for flags that cannot be used, and no traceback."""
    try:
        yield
    except Exception as error:  # ml_collections raises whatever a value does.
        if "--debug" in argv:
            raise
        print(f"Error: {_refused(error, argv)}", file=sys.stderr)
        sys.exit(2)


def _define(values: flags.FlagValues, argv: list[str]) -> flags.FlagHolder:
    """Adds the flag `config`, which loads the default with what `argv` sets at once."""
    with _refusing(argv):
        return config_flags.DEFINE_config_file(
            "config",
            str(_configs() / "demo.py"),
            "A file of configs/, or your own; by default the demo.",
            flag_values=values,
            sys_argv=argv,
        )


_CONFIG = _define(flags.FLAGS, sys.argv)
_LIST = flags.DEFINE_enum(
    "list",
    None,
    ["checkpoints", "measures", "networks", "tasks"],
    "Print what there is to choose from, and stop.",
)
_DEBUG = flags.DEFINE_bool("debug", False, "Show a traceback where input is refused.")


def main(argv: list[str]) -> int:
    """Runs the stages of the config and returns the exit code."""
    if len(argv) > 1:
        print(f"Unexpected argument: {argv[1]!r}; see --help", file=sys.stderr)
        return 2
    # Imported late, so that --help answers at once.
    if _LIST.value:
        from rankckpt_jax.run import lists as listing

        print(listing.LISTS[_LIST.value]())
        return 0
    from rankckpt_jax.devices import mapping, processes, signals
    from rankckpt_jax.run import run as stages

    _configure_logging()
    mapping.split_cpu_devices()
    try:
        if not _CONFIG.value.shard_checkpoints:
            processes.join(**_CONFIG.value.distributed)
        if not processes.is_main_process():
            logging.getLogger("rankckpt_jax").setLevel(logging.ERROR)
        ranking = stages.run(_CONFIG.value)
    except InputError as error:
        if _DEBUG.value:
            raise
        print(f"Error: {error}", file=sys.stderr)
        return 2
    except Interrupted as interrupted:
        print(f"{interrupted}. Started again, the run goes on.", file=sys.stderr)
        return signals.EXIT_RETRY
    except Exception as error:
        if not processes.is_loss_of_a_process(error):
            raise
        print(
            f"Error: another process of this run is gone\n  found: {error}\n"
            "  to fix: look for its own message, and start all processes again; "
            "the run goes on where it was",
            file=sys.stderr,
            flush=True,
        )
        # An orderly end would wait for the one that is gone.
        os._exit(signals.EXIT_RETRY)
    if processes.is_main_process():
        print(ranking)
    return 1 if any(row.failure for row in ranking.rows) else 0


def run() -> None:
    """Entry point of the console script `rankckpt`."""
    sys.excepthook = _tell
    app.run(main, flags_parser=_parse)


class _Redacted(logging.Formatter):
    """Lines of logs, of other packages too, without passwords and keys."""

    def format(self, record: logging.LogRecord) -> str:
        """Formats a record, its traceback with it."""
        return redact(super().format(record))


def _tell(*error: Any) -> None:
    """Shows a traceback without passwords and keys."""
    print(redact("".join(traceback.format_exception(*error))), file=sys.stderr)


def _configure_logging() -> None:
    """Times before our lines, and of other packages only what they warn of.

    Orbax and JAX tell every small step. A plain handler in the place of absl's is one
    that progress bars know how to write around.
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
    """Parses flags; `configs/NAME.py` also means that of the package."""
    resolved = []
    for argument in argv:
        flag, _, value = argument.partition("=")
        if flag in ("--config", "-config") and not _exists(value):
            path, _, config_argument = value.partition(":")
            candidate = _configs() / pathlib.Path(path).name
            if path.startswith("configs/") and candidate.is_file():
                value = str(candidate) + (config_argument and f":{config_argument}")
                argument = f"{flag}={value}"
        resolved.append(argument)
    with _refusing(resolved):
        # absl's own parser would show a traceback for some of what is refused here.
        if not {"--help", "--helpfull", "--helpshort", "-h"} & set(resolved):
            left = values(resolved)
            # A file that is not there is told only to whom asks for an attribute.
            assert config.value.keys
            return left
    return app.parse_flags_with_usage(resolved)


def _exists(path: str) -> bool:
    try:
        return pathlib.Path(path).exists()
    except (OSError, ValueError):  # A name that no file can have.
        return False


if __name__ == "__main__":
    run()
