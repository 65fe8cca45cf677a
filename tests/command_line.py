"""The command line, called in a test's own process."""

import sys
from typing import Any

from absl import flags

from rankckpt_jax.errors import InputError
from rankckpt_jax.run import run as run_lib


def call(arguments: list[str], monkeypatch: Any, capsys: Any) -> str:
    """Run like `rankckpt_jax.main`.

    Args:
      arguments: The flags.
      monkeypatch: The fixture of pytest.
      capsys: The fixture of pytest.

    Returns:
      "ran", or the message that the command prints before exit code 2.
    """
    # The module defines its flags from sys.argv when it is first imported.
    monkeypatch.setattr(sys, "argv", ["main"])
    from rankckpt_jax import main

    argv = ["main", *map(str, arguments)]
    values = flags.FlagValues()
    try:
        config = main._define(values, argv)
        main._parse(argv, values, config)
        str(run_lib.run(config.value))
        return "ran"
    except SystemExit as exit:
        message = capsys.readouterr().err
        assert exit.code == 2, message
        assert message.startswith("Error: ") and "Traceback" not in message
        return message
    except InputError as error:
        return f"Error: {error}"
