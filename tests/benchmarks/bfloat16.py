"""Effect of bfloat16 on features and on NLEEP.

    python -m tests.benchmarks.bfloat16
    python -m tests.benchmarks.bfloat16 --checkpoints=DIR --images=DIR

The first command draws weights and images for every network. It prints the cosine
similarity of the pooled features in bfloat16 and in float32, before and after their
mean over the images is subtracted (measures center the features). Each is the minimum
over the images. The second command extracts a folder's training images with real
checkpoints. It prints NLEEP in both dtypes, and its standard deviation over random
initializations.
"""

import argparse

import flax.traverse_util
import jax
import numpy as np

from rankckpt_jax import checkpoints, measures, models
from rankckpt_jax.checkpoints import backbone as backbone_lib
from rankckpt_jax.checkpoints.sources import slim
from rankckpt_jax.data import image_cache, tasks
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
    """Return the minimum cosine of the features and of the centered features."""
    variables = flax.traverse_util.unflatten_dict(
        {
            v.path: slim_golden.draw(slim_name, v.slim_shape).reshape(v.shape)
            for slim_name, v in slim.variables_of(models.get(name)).items()
        }
    )
    images = slim_golden.images(models.get(name).image_size, batch)
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
    """Print NLEEP of each checkpoint of a pool in both dtypes."""
    split = tasks.from_folder(images).splits["train"]
    cache = image_cache.open_cache()
    print(
        f"{'checkpoint':28} {'centered':>9} {'float32':>9} {'bfloat16':>9} {'':>7}",
        end="",
    )
    print("  over starts")
    for name, path in checkpoints.find(pool):
        backbone = checkpoints.load(path, name=name)
        extracted = {
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
            for dtype, each in extracted.items()
        }
        exact, rounded = (each["features"].astype(float) for each in extracted.values())
        cosine = _cosine(exact - exact.mean(0), rounded - rounded.mean(0))
        one, other = (result.score for result in results.values())
        spread = np.std(results["float32"].details["scores"], ddof=1)
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
