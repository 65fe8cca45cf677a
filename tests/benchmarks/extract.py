"""Images per second of extraction, beside the same networks in TensorFlow.

    python -m tests.benchmarks.extract                       # every network
    python -m tests.benchmarks.extract --batch=32 resnet_v1_50 mobilenet_v2

Ours runs as the command line does, each core of the CPU being a device that takes its
share of the batch (`mapping.split_cpu_devices`); TensorFlow divides its operations
among the same cores. Both run in this process, with large pages of memory, on the same
weights and images, in turns, and the fastest of several turns counts: other work on the
machine slows both alike. `ours/TF` is the quotient of the rates; `of peak` the
network's FLOP/s over that of a large matrix product, measured here. On an accelerator
only ours is timed, in bfloat16.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from rankckpt_jax import models
from rankckpt_jax.checkpoints import backbone
from rankckpt_jax.data.lazy_tensorflow import tensorflow
from rankckpt_jax.devices import mapping
from tests.benchmarks import tensorflow_twin


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=models.names())
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--dtype", default="")
    args = parser.parse_args()
    mapping.split_cpu_devices()
    backend = jax.default_backend()
    dtype = args.dtype or ("float32" if backend == "cpu" else "bfloat16")
    peak = peak_flops(dtype)
    print(f"{backend}, {dtype}, batch {args.batch}: peak {peak / 1e9:,.0f} GFLOP/s")
    print(f"{'network':20} {'size':>4} {'GFLOP':>6} {'img/s':>8} {'TF':>8} ", end="")
    print(f"{'ours/TF':>7} {'of peak':>7} {'error':>8} {'compile':>8}")
    for name in args.names:
        row = measure(name, args.batch, args.turns, dtype, backend == "cpu")
        ours, theirs, ratio, flops, error, compile_seconds = row
        print(
            f"{name:20} {models.default_image_size(name):4} {flops / 1e9:6.2f} "
            f"{ours:8.1f} {theirs:8.1f} {ratio:7.2f} {ours * flops / peak:7.2f} "
            f"{error:8.1e} {compile_seconds:7.1f}s",
            flush=True,
        )


def measure(name, batch, turns, dtype, beside_tensorflow):
    """Rates, their quotient, FLOP of an image, error, and seconds to compile."""
    size = models.default_image_size(name)
    random = np.random.default_rng(0)
    images = random.uniform(-1, 1, (batch, size, size, 3)).astype(np.float32)
    variables = jax.jit(models.create(name).init)(jax.random.key(0), images[:1])
    apply = backbone.Apply(name, dtype)
    start = time.perf_counter()
    forward = mapping.map_devices(
        lambda variables, images: apply(variables, images).features,
        in_axes=(None, 0),
    )
    held, on_device = mapping.replicate(variables), mapping.shard(images)

    def ours():
        return mapping.unshard(forward(held, on_device))

    ours()
    compile_seconds = time.perf_counter() - start

    contenders = [ours]
    if beside_tensorflow:
        tf = tensorflow()
        host = jax.tree.map(np.asarray, variables)
        function, constant = tensorflow_twin.extractor(name, host), tf.constant(images)
        contenders.append(lambda: function(constant).numpy())
    results = [contender() for contender in contenders]
    scale = np.abs(results[-1]).max()
    error = float(np.abs(results[0] - results[-1]).max() / scale)
    seconds = [[] for _ in contenders]
    for _ in range(turns):
        for contender, times in zip(contenders, seconds, strict=True):
            start = time.perf_counter()
            contender()
            times.append(time.perf_counter() - start)
    rates = [batch / min(times) for times in seconds]
    # Paired, since a disturbance of a second or two meets both of a turn.
    ratio = (
        statistics.median(b / a for a, b in zip(*seconds, strict=True))
        if (beside_tensorflow)
        else float("nan")
    )
    theirs = rates[1] if beside_tensorflow else float("nan")
    return (
        rates[0],
        theirs,
        ratio,
        2 * models.multiply_adds(name),
        error,
        compile_seconds,
    )


def peak_flops(dtype, side=2048):
    """FLOP/s of a square matrix product."""
    matrix = jnp.ones((side, side), dtype)
    product = jax.jit(jnp.matmul)
    product(matrix, matrix).block_until_ready()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        product(matrix, matrix).block_until_ready()
        times.append(time.perf_counter() - start)
    return 2 * side**3 / min(times)


if __name__ == "__main__":
    main()
