"""Effect of rounding resized images to bytes on features and scores.

    python -m tests.benchmarks.rounding --checkpoints=DIR --images=DIR

Each checkpoint extracts a folder's training images twice: rounded, as in a run, and
resized without rounding, as VTAB does.

    features  |rounded - exact| / |exact| of all features
    centered  |rounded - exact| / |exact - mean|: measures center the features
    MEASURE   the score of the exact images, and its change by rounding
    spread    standard deviation of NLEEP over random initializations

The last lines compare the orders of the checkpoints by each measure.
"""

import argparse

import numpy as np

from rankckpt_jax import checkpoints, measures
from rankckpt_jax.data import image_cache, tasks
from rankckpt_jax.data.lazy_tensorflow import tensorflow
from rankckpt_jax.features import extract

MEASURES = {"nleep": {"num_restarts": 5}, "leep": {}, "logme": {}}


class Exact(image_cache.ImageCache):
    """The images of a split in float32, resized by VTAB's rule, in memory."""

    def __init__(self):
        super().__init__(None)
        self._images = {}

    def get(self, split, size, preprocess, process=0, count=1):
        assert preprocess == "vtab"
        if size not in self._images:
            tf = tensorflow()

            def resize(example):
                square = tf.image.resize(example.read(), [size, size])
                return tf.cast(square, tf.float32).numpy(), example.label

            examples = split.examples(None, 0, 1, 0)
            images, labels = zip(*map(resize, examples), strict=True)
            self._images[size] = np.stack(images), np.asarray(labels, np.int32)
        images, labels = self._images[size]
        return images[process::count], labels[process::count]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoints", required=True)
    parser.add_argument("--images", required=True)
    args = parser.parse_args()
    split = tasks.from_folder(args.images).splits["train"]
    caches = {"exact": Exact(), "rounded": image_cache.open_cache()}
    columns = "".join(f" {name:>9} {'change':>8}" for name in MEASURES)
    print(f"{'checkpoint':28} {'features':>8} {'centered':>8}{columns} {'spread':>7}")
    scores = {kind: [] for kind in caches}
    for name, path in checkpoints.find(args.checkpoints):
        backbone = checkpoints.load(path, name=name)
        extracted = {
            kind: extract.extract(
                backbone, split, preprocess="vtab", batch_size=64, cache=cache
            )
            for kind, cache in caches.items()
        }
        results = {kind: score(arrays) for kind, arrays in extracted.items()}
        for kind, each in results.items():
            scores[kind].append([result.score for result in each.values()])
        exact, rounded = (x["features"].astype(float) for x in extracted.values())
        error = np.linalg.norm(rounded - exact)
        relative = error / np.linalg.norm(exact)
        centered = error / np.linalg.norm(exact - exact.mean(0))
        columns = "".join(
            f" {results['exact'][m].score:9.4f} "
            f"{results['rounded'][m].score - results['exact'][m].score:+8.4f}"
            for m in MEASURES
        )
        spread = np.std(results["exact"]["nleep"].details["scores"], ddof=1)
        print(
            f"{name:28} {relative:8.2%} {centered:8.2%}{columns} {spread:7.4f}",
            flush=True,
        )
    exact, rounded = (np.argsort(-np.array(scores[kind]), axis=0).T for kind in scores)
    for measure, before, after in zip(MEASURES, exact, rounded, strict=True):
        same = "same order" if (before == after).all() else f"{before} became {after}"
        print(f"{measure}: {same}")


def score(arrays):
    """Return the result of each measure."""
    return {
        name: measures.compute(
            name, arrays["features"], arrays["labels"], arrays["logits"], **options
        )
        for name, options in MEASURES.items()
    }


if __name__ == "__main__":
    main()
