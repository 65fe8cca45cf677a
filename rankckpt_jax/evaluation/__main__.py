"""Judges scores that any code computed: `python -m rankckpt_jax.evaluation FILE`.

    python -m rankckpt_jax.evaluation scores.csv
    python -m rankckpt_jax.evaluation scores.csv --output=judged

The file has the columns task, checkpoint, accuracy and either measure and score, or one
column for each measure; docs/evaluate-your-scores.md describes it. Prints the judgment
and writes NAME_judgment.html, .csv and .json beside the file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rankckpt_jax import evaluation
from rankckpt_jax.errors import InputError


def main(argv: Sequence[str] | None = None) -> int:
    """Judge a file, print the judgment, write the files and return the exit code."""
    # Imported here: the command line of this room; the report imports this room.
    from rankckpt_jax.report import judgment as report
    from rankckpt_jax.storage import files

    parser = argparse.ArgumentParser(
        prog="python -m rankckpt_jax.evaluation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("scores", help="CSV file of scores and accuracies")
    parser.add_argument(
        "--output", default="", help="directory of the results (default: the file's)"
    )
    arguments = parser.parse_args(argv)
    try:
        judgment = evaluation.judge(evaluation.read_table(arguments.scores))
        directory = arguments.output or files.to_path(arguments.scores).parent
        page = report.write(judgment, directory)
    except InputError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    print(judgment)
    print(f"\nReport: {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
