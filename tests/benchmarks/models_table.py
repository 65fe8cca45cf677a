"""Prints the README's table of networks: sizes, costs, and the error beside TF-Slim.

    python -m tests.benchmarks.models_table

The error is that of the features of two images, the largest absolute difference over
the largest absolute reference, at the largest image size that `tests/golden` has
figures for.
"""

import pathlib
import tempfile

import jax

from rankckpt_jax import checkpoints, models
from tests import slim_golden


def main():
    print("| network | parameters | multiply-adds | features | image size | error |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name in models.names():
        print(
            f"| `{name}` | {models.num_parameters(name) / 1e6:.2f} M "
            f"| {models.multiply_adds(name) / 1e9:.2f} G "
            f"| {models.feature_dim(name)} | {models.default_image_size(name)} "
            f"| {error(name)} |",
            flush=True,
        )


def error(name):
    """The error as text, with the image size; empty where there are no figures."""
    sizes = [
        size
        for size in (models.default_image_size(name), slim_golden.reduced_size(name))
        if (slim_golden.FOLDER / f"{name}_{size}.npz").exists()
    ]
    if not sizes:
        return ""
    with tempfile.TemporaryDirectory() as folder:
        prefix = slim_golden.write(name, pathlib.Path(folder))
        backbone = checkpoints.load_slim(name, prefix, image_size=sizes[0])
        forward = jax.jit(backbone.apply)
        found = forward(backbone.variables, slim_golden.images(sizes[0]))
    reference = slim_golden.figures(name, sizes[0])["features"]
    return f"{slim_golden.relative_error(found.features, reference):.1e}"


if __name__ == "__main__":
    main()
