"""Print the documentation's table of networks: sizes, costs, and errors.

    python -m tests.benchmarks.models_table

The error compares the features of two images with TF-Slim's: the largest absolute
difference over the largest absolute reference, at the largest image size for which
`tests/golden` has references.
"""

import math
import pathlib
import tempfile

import jax

from rankckpt_jax import checkpoints, models
from rankckpt_jax.checkpoints.sources import slim
from tests import slim_golden


def main():
    print("| network | parameters | multiply-adds | features | image size | error |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name in models.names():
        print(
            f"| `{name}` | {num_parameters(name) / 1e6:.2f} M "
            f"| {models.multiply_adds(name) / 1e9:.2f} G "
            f"| {models.get(name).feature_dim} | {models.get(name).image_size} "
            f"| {error(name)} |",
            flush=True,
        )


def num_parameters(name):
    """Count the trainable values of a network without its classifier."""
    variables = slim.variables_of(models.get(name)).values()
    return sum(math.prod(v.shape) for v in variables if v.path[0] == "params")


def error(name):
    """Return the error as text; empty if there is no reference."""
    sizes = [
        size
        for size in (models.get(name).image_size, slim_golden.reduced_size(name))
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
