"""Compare extraction that decodes images in each pass with the cache of images.

    python -m tests.benchmarks.image_cache                       # 2,000 drawn images
    python -m tests.benchmarks.image_cache --folder=DIR --network=mobilenet_v1_025

A pass stands for a checkpoint: it takes every image once. Without `--network` it only
counts the batches, which gives the rate of the input alone.

    images/s   of one pass
    CPU s      user and system time of the pass, all threads
    anonymous  memory of the process itself, after the pass
    mapped     pages of files, which the system may drop at any time

The first pass with the cache decodes the images and writes the file. The last lines
compare one image: decoding it, resizing its pixels, and reading it from the cache.
"""

import argparse
import pathlib
import resource
import tempfile
import time

import numpy as np

from rankckpt_jax.benchmark import demo
from rankckpt_jax.data import image_cache, pipeline, preprocess, stream, tasks
from rankckpt_jax.features import extract
from tests.benchmarks.pipeline import draw

RULE = "vtab"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", help="folder of a task; by default drawn images")
    parser.add_argument("--images", type=int, default=2000, help="images to draw")
    parser.add_argument("--checkpoints", type=int, default=5)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--network", default="")
    parser.add_argument("--cache", help="directory; by default a temporary one")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        if args.folder:
            split = tasks.from_folder(args.folder).splits["train"]
        else:
            split = draw(pathlib.Path(temporary, "drawn"), args.images)
        cache = image_cache.open_cache(args.cache or temporary)
        split.fingerprint  # noqa: B018 - Computed once for each run, before extraction.
        print(f"{split.num_examples} images of {args.size} px")
        print(f"{'':22} {'images/s':>9} {'CPU s':>7} {'anonymous':>10} {'mapped':>8}")
        one_pass = make_pass(split, args)
        one_pass(image_cache.ImageCache(None))  # Compiles, and starts threads.

        def measure_all(name, cache):
            return [
                measure(f"{name}, pass {i + 1}", one_pass, cache, split.num_examples)
                for i in range(args.checkpoints)
            ]

        decoding = measure_all("decoding", image_cache.ImageCache(None))
        cached = measure_all("cache", cache)
        for i, name in enumerate(("time", "CPU time")):
            before, after = (sum(p[i] for p in ps) for ps in (decoding, cached))
            print(
                f"{name}: {before:.1f} s decoding, {after:.1f} s with the cache "
                f"({before / after:.1f} times as fast; the last pass "
                f"{decoding[-1][i] / cached[-1][i]:.1f} times)"
            )
        compare_steps(split, cache, args.size)


def make_pass(split, args):
    if not args.network:

        def count(cache):
            for batch in pipeline.batches(
                split,
                size=args.size,
                preprocess=RULE,
                batch_size=args.batch,
                cache=cache,
            ):
                # Read every byte, as a copy to a device does.
                np.array(batch.images)

        return count
    backbone = demo.from_scratch(args.network, args.size, seed=0)

    def run(cache):
        extract.extract(
            backbone, split, preprocess=RULE, batch_size=args.batch, cache=cache
        )

    return run


def measure(name, one_pass, cache, count):
    """Return (seconds, CPU seconds) of a pass, and print them with the memory."""
    begun, cpu = time.perf_counter(), cpu_seconds()
    one_pass(cache)
    seconds, cpu = time.perf_counter() - begun, cpu_seconds() - cpu
    anonymous, mapped = memory()
    print(
        f"{name:22} {count / seconds:9.0f} {cpu:7.1f} {anonymous:7.2f} GB "
        f"{mapped:5.2f} GB",
        flush=True,
    )
    return seconds, cpu


def cpu_seconds():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def memory():
    """Return the resident (anonymous, mapped) memory of this process in GB."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return [int(fields[f].split()[0]) / 1e6 for f in ("RssAnon", "RssFile")]


def compare_steps(split, cache, size):
    """Print the CPU time per image of decoding, resizing and reading the cache."""
    every = range(0, split.num_examples, -(-split.num_examples // 1000))
    some = split.subset("some", np.asarray(every))
    examples = list(some.examples(None, 0, 1, 0))
    decoded = [example.read() for example in examples]
    images, _ = cache.get(split, size, RULE)

    def read():
        for start in range(0, len(images), 64):
            np.array(images[start : start + 64])

    def resize(image):
        return preprocess.resize(image, size, RULE)

    def decode_and_resize():
        for _ in stream.batches(some, size, RULE, batch_size=64, examples=examples):
            pass

    def resize_decoded():
        for _ in stream.map_ahead(resize, decoded, 64):
            pass

    for name, function, count in (
        ("decode and resize", decode_and_resize, None),
        ("resize decoded pixels", resize_decoded, None),
        ("read from the cache", read, len(images)),
    ):
        function()
        cpu = cpu_seconds()
        function()
        per_image = (cpu_seconds() - cpu) / (count or some.num_examples)
        print(f"{name:22} {1e3 * per_image:.3f} ms of CPU time per image")


if __name__ == "__main__":
    main()
