"""The command line, called in a test's own process."""

import pathlib
import warnings
from typing import Any

from absl import flags

from rankckpt_jax import command_line
from rankckpt_jax.errors import InputError
from rankckpt_jax.run import run as run_lib


def parse(*arguments: str | pathlib.Path, **options: Any) -> command_line.Command:
    """Parse arguments with flags of their own, because absl's are global."""
    argv = ["rankckpt", *map(str, arguments)]
    with warnings.catch_warnings():
        # ml_collections raises it when it loads a config.
        warnings.filterwarnings("ignore", "the load_module")
        return command_line.parse(argv, values=flags.FlagValues(), **options)


def call(arguments: list[str]) -> str:
    """Run like `rankckpt`.

    Args:
      arguments: The words and flags.

    Returns:
      "ran", or the message that the command prints before exit code 2.
    """
    try:
        command = parse(*arguments)
        if command.config is not None:
            str(run_lib.run(command.config))
        return "ran"
    except InputError as error:
        message = f"Error: {error}"
        assert "Traceback" not in message
        return message
