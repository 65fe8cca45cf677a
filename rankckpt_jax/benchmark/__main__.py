"""Prints the table of `table.py`: `python -m rankckpt_jax.benchmark`."""

from absl import app

from rankckpt_jax.benchmark import table

if __name__ == "__main__":
    app.run(table.main)
