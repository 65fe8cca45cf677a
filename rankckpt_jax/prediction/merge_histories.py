"""Merges histories: `python -m rankckpt_jax.prediction.merge_histories PLACE ...`.

    python -m rankckpt_jax.prediction.merge_histories ~/.cache/rankckpt_jax/history
    python -m rankckpt_jax.prediction.merge_histories mine team.csv --output=merged

A place is a CSV file, a directory or bucket with CSV files, or an http(s) address.
Prints what they have of each protocol. With --output, writes one CSV file for each
protocol, which `python -m rankckpt_jax.evaluation` judges. docs/history.md describes
the files.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rankckpt_jax.errors import InputError
from rankckpt_jax.prediction import history, history_file
from rankckpt_jax.prediction.history import History
from rankckpt_jax.storage import files


def main(argv: Sequence[str] | None = None) -> int:
    """Read histories, print what they have, write files and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m rankckpt_jax.prediction.merge_histories",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("places", nargs="+", help="histories")
    parser.add_argument("--output", default="", help="directory of the merged files")
    arguments = parser.parse_args(argv)
    try:
        merged = history.read(shared=arguments.places)
        for note in merged.notes:
            print(f"Warning: {note}", file=sys.stderr)
        print(describe(merged))
        if arguments.output:
            directory = files.to_path(arguments.output)
            added = history_file.append(directory, merged.entries)
            what = history.count(added, "fine-tuning")
            print(f"\nAdded {what} to {files.display(directory)}")
    except (InputError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    return 0


def describe(merged: History) -> str:
    """Return a line for each protocol, with its numbers of results.

    Args:
      merged: Any history.
    """
    lines = [
        f"{protocol or 'unknown protocol'}: "
        f"{history.describe(merged.of_protocol(protocol))}"
        for protocol in merged.protocols
    ]
    return "\n".join(lines) or "No fine-tunings."


if __name__ == "__main__":
    sys.exit(main())
