"""The command `rankckpt`, also `python -m rankckpt_jax.main`; see `rankckpt --help`."""

import functools
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from rankckpt_jax.devices import interrupt

if __name__ == "__main__":
    interrupt.handle()  # The imports below take time.

from absl import app  # noqa: E402
from absl import logging as absl_logging  # noqa: E402

import rankckpt_jax  # noqa: E402
from rankckpt_jax import command_line  # noqa: E402
from rankckpt_jax.command_line import Command  # noqa: E402
from rankckpt_jax.devices import progress  # noqa: E402
from rankckpt_jax.errors import InputError, Interrupted, redact  # noqa: E402

_log = logging.getLogger("rankckpt_jax")


def main(command: Command) -> int:
    """Do what a command line asks for, and return the exit code."""
    if command.text:
        _print(command.text)
        return 0
    # Imports inside the function, because those of JAX take a second.
    if command.names:
        from rankckpt_jax.run import lists

        _configure_logging()
        try:
            _print(lists.list_names(command.names, command.pattern))
        except InputError as error:
            if command.debug:
                raise
            print(f"Error: {error}", file=sys.stderr)
            return 2
        return 0
    if command.model:
        return _predict(command)
    assert command.config is not None
    _configure_logging()
    _log.info("rankckpt_jax %s: loading JAX", rankckpt_jax.__version__)
    from rankckpt_jax.devices import compilation, mapping, processes, signals
    from rankckpt_jax.run.run import run

    mapping.split_cpu_devices()
    compilation.limit_tpu_fusions()
    try:
        if command.plan:
            return _plan(command)
        processes.join(**command.config.distributed)
        processes.check_devices()
        if not processes.is_main_process():
            _log.setLevel(logging.ERROR)
        ranking = run(command.config)
        interrupt.end_if_requested()
    except InputError as error:
        interrupt.end_if_requested()
        if command.debug:
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
    return 0 if ranks or "score" not in command.config.stages else 1


def _predict(command: Command) -> int:
    """Predict the classes of a folder of images, and return the exit code."""
    _configure_logging()
    _log.info("rankckpt_jax %s: loading JAX", rankckpt_jax.__version__)
    # Imports inside the function, because those of JAX take a second.
    from rankckpt_jax.devices import compilation, mapping
    from rankckpt_jax.run import predict

    mapping.split_cpu_devices()
    compilation.limit_tpu_fusions()
    try:
        text, is_complete = predict.predict(
            command.model, command.images, command.output
        )
    except InputError as error:
        interrupt.end_if_requested()
        if command.debug:
            raise
        print(f"Error: {error}", file=sys.stderr)
        return 2
    interrupt.end_if_requested()
    _print(text)
    return 0 if is_complete else 1


def _plan(command: Command) -> int:
    """Print what a config would take, and return the exit code."""
    # Imports inside the function, because those of JAX take a second.
    import jax

    from rankckpt_jax.run import plan, plan_text

    if command.plan != plan.HERE:
        # Compilers for absent devices search for them otherwise.
        jax.config.update("jax_platforms", "cpu")
    made = plan.make(command.config, command.plan)
    _print(plan_text.to_text(made))
    return 0 if made.fits else 1


def run(implied: Sequence[str] = ()) -> None:
    """Run `main`; the entry point of the console script `rankckpt`.

    Args:
      implied: The words of a command line that has none and names no config.
    """
    interrupt.handle()
    sys.excepthook = _print_redacted
    app.run(main, flags_parser=functools.partial(_parse, implied=implied))


def _parse(argv: list[str], implied: Sequence[str]) -> Command:
    """Parse a command line, or exit with code 2 and one message."""
    try:
        return command_line.parse(argv, implied)
    except InputError as error:
        if "--debug" in argv:
            raise
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)


def _print(text: str) -> None:
    """Print a text, also if its reader stops early, as `head` does."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Python flushes standard output again at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_redacted(*error: Any) -> None:
    """Print a traceback without passwords and keys."""
    print(redact("".join(traceback.format_exception(*error))), file=sys.stderr)


def _configure_logging() -> None:
    """Log our lines with times, and only the warnings of other packages.

    Our handler replaces absl's, because it can write above progress bars.
    """
    absl_logging.set_verbosity(absl_logging.WARNING)
    _log.setLevel(logging.INFO)
    logging.getLogger().handlers = [progress.Handler()]


if __name__ == "__main__":
    run(implied=["demo"])
