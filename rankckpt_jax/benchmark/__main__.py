"""`python -m rankckpt_jax.benchmark`; see `table`."""

from absl import app

from rankckpt_jax.benchmark import table

if __name__ == "__main__":
    app.run(table.main)
