"""What computing in bfloat16 does to features, and to NLEEP.

    python -m tests.benchmarks.bfloat16
    python -m tests.benchmarks.bfloat16 --checkpoints=DIR --images=DIR

The first form draws weights and images for every network and prints the cosine
similarity of its pooled features in bfloat16 with those in float32: of the features as
they are, and after their mean over the images is taken away, which is what the measures
see; each the least over the images. The second form extracts a folder's training images
through real checkpoints and prints NLEEP of both, beside the standard deviation of
NLEEP over its own random starts.
"""

import argparse

import jax
import numpy as np

from rankckpt_jax import checkpoints, measures, models
from rankckpt_jax.checkpoints import backbone as backbone_lib
from rankckpt_jax.checkpoints.sources import slim
from rankckpt_jax.data import pipeline, tasks
from rankckpt_jax.features import extract
from tests import slim_golden

NUM_STARTS = 5


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=models.names())
    parser.add_argument("--checkpoints", default="")
    parser.add_argument("--images", default="")
    parser.add_argument("--batch", type=int, default=8)
    args = parser.parse_args()
    if args.checkpoints:
        compare_scores(args.checkpoints, args.images)
        return
    print(f"{'network':20} {'cosine':>9} {'centered':>9}")
    for name in args.names:
        plain, centered = compare_features(name, args.batch)
        print(f"{name:20} {plain:9.6f} {centered:9.6f}", flush=True)


def compare_features(name, batch):
    """Least cosine over the images: of the features, and of the centered ones."""
    wanted = slim.variables_of(models.get(name))
    variables = {}
    for slim_name, variable in wanted.items():
        node = variables
        for key in variable.path[:-1]:
            node = node.setdefault(key, {})
        value = slim_golden.draw(slim_name, variable.slim_shape)
        node[variable.path[-1]] = value.reshape(variable.shape)
    images = slim_golden.images(models.default_image_size(name), batch)
    exact, rounded = (
        np.asarray(
            jax.jit(backbone_lib.Apply(name, dtype))(variables, images).features,
            np.float64,
        )
        for dtype in ("float32", "bfloat16")
    )
    return _cosine(exact, rounded), _cosine(
        exact - exact.mean(axis=0), rounded - rounded.mean(axis=0)
    )


def compare_scores(pool, images):
    """Prints NLEEP of each checkpoint of a pool in both dtypes."""
    split = tasks.from_folder(images).splits["train"]
    cache = pipeline.ImageCache(4.0)
    print(
        f"{'checkpoint':28} {'centered':>9} {'float32':>9} {'bfloat16':>9} {'':>7}",
        end="",
    )
    print("  over starts")
    for name, path in checkpoints.find(pool):
        backbone = checkpoints.load(path, name=name)
        found = {
            dtype: extract.extract(
                backbone,
                split,
                preprocess="vtab",
                dtype=dtype,
                batch_size=64,
                cache=cache,
            )
            for dtype in ("float32", "bfloat16")
        }
        results = {
            dtype: measures.compute(
                "nleep", each["features"], each["labels"], num_restarts=NUM_STARTS
            )
            for dtype, each in found.items()
        }
        exact, rounded = (found[d]["features"].astype(float) for d in found)
        cosine = _cosine(exact - exact.mean(0), rounded - rounded.mean(0))
        one, other = (result.score for result in results.values())
        spread = results["float32"].details["spread"]
        print(
            f"{name:28} {cosine:9.6f} {one:9.4f} {other:9.4f} {other - one:+7.4f} "
            f"{spread:7.4f}",
            flush=True,
        )


def _cosine(a, b):
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(axis=1) / norms).min())


if __name__ == "__main__":
    main()
