"""Measure the share of extraction that is spent waiting for images.

    python -m tests.benchmarks.pipeline                  # 1, 2 and all threads
    python -m tests.benchmarks.pipeline --images=512 --threads 1 2 resnet_v1_50

JPEG files of 500 x 375 pixels, a usual size of ImageNet, are read by the pipeline of a
run with a given number of decoding threads. No image is cached between passes.

    decode    seconds per image in one thread, without other load
    alone     images per second of the pipeline without a network
    network   images per second of extraction from cached images
    extract   images per second of extraction with decoding
    waiting   share of time in which the device is idle: 1 - extract / network

On a CPU both use the same cores, so `waiting` includes the time taken by decoding.
"""

import argparse
import os
import pathlib
import tempfile
import time

import jax
import numpy as np
from PIL import Image

from rankckpt_jax.benchmark import demo
from rankckpt_jax.data import image_cache, pipeline, stream, tasks
from rankckpt_jax.features import extract

PREPROCESS = "vtab"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=["mobilenet_v2", "resnet_v1_50"])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=224)
    every = os.cpu_count() or 1
    parser.add_argument(
        "--threads", type=int, nargs="*", default=sorted({1, min(2, every), every})
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        split = draw(pathlib.Path(folder), args.images)
        seconds = decode_seconds(split, args.size)
        print(f"{jax.default_backend()}, {every} host threads, {args.images} images")
        print(f"decode and resize: {1e3 * seconds:.2f} ms an image in one thread")
        print(f"{'network':14} {'threads':>7} {'alone':>8} {'network':>8} ", end="")
        print(f"{'extract':>8} {'waiting':>8}")
        for name in args.names:
            backbone = demo.from_scratch(name, args.size, seed=0)
            network = rate(backbone, split, args.batch, image_cache.open_cache())
            for threads in args.threads:
                stream.THREADS = threads
                alone = split.num_examples / input_seconds(split, args)
                both = rate(backbone, split, args.batch, image_cache.ImageCache(None))
                waiting = max(0.0, 1 - both / network)
                print(
                    f"{name:14} {threads:7} {alone:8.1f} {network:8.1f} {both:8.1f} "
                    f"{waiting:8.1%}",
                    flush=True,
                )


def draw(folder, count):
    """Write JPEG files with smooth shapes and some noise; return their split."""
    random = np.random.default_rng(0)
    for i in range(count):
        small = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(small.resize((500, 375), Image.Resampling.BICUBIC), float)
        pixels = np.clip(smooth + random.normal(0, 8, smooth.shape), 0, 255)
        place = folder / "train" / f"class{i % 2}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(place / f"{i}.jpg", quality=90)
    return tasks.from_folder(folder).splits["train"]


def decode_seconds(split, size):
    """Return the seconds per image to decode and resize in one thread."""
    stream.THREADS = 1
    args = argparse.Namespace(size=size, batch=32)
    return min(input_seconds(split, args) for _ in range(3)) / split.num_examples


def input_seconds(split, args):
    begun = time.perf_counter()
    for _ in pipeline.batches(
        split,
        size=args.size,
        preprocess=PREPROCESS,
        batch_size=args.batch,
        cache=image_cache.ImageCache(None),
    ):
        pass
    return time.perf_counter() - begun


def rate(backbone, split, batch, cache):
    """Return the images per second of `extract.extract`, the fastest of three passes.

    A pass before them compiles, and decodes into `cache` if it has room.
    """
    seconds = []
    for _ in range(4):
        begun = time.perf_counter()
        extract.extract(
            backbone, split, preprocess=PREPROCESS, batch_size=batch, cache=cache
        )
        seconds.append(time.perf_counter() - begun)
    return split.num_examples / min(seconds[1:])


if __name__ == "__main__":
    main()
