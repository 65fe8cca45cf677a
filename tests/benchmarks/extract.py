"""Images per second of extraction, compared with the same networks in TensorFlow.

    python -m tests.benchmarks.extract                       # every network
    python -m tests.benchmarks.extract --batch=32 resnet_v1_50 mobilenet_v2

Our side runs as on the command line: each core of the CPU is a device that takes its
share of the batch (`mapping.split_cpu_devices`). TensorFlow divides its operations
among the same cores. Both run in this process, in turns, on the same weights and
images, and the fastest of several turns counts. `ours/TF` is the median quotient of the
rates; `of peak` is the network's FLOP/s over that of a large matrix product. On an
accelerator only our side is timed, in bfloat16.
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
    backend, dtype, peak = prepare(args)
    print(f"{'network':20} {'size':>4} {'GFLOP':>6} {'img/s':>8} {'TF':>8} ", end="")
    print(f"{'ours/TF':>7} {'of peak':>7} {'error':>8} {'compile':>8}")
    for name in args.names:
        size = models.get(name).image_size
        flops = 2 * models.multiply_adds(name)
        measured = measure(name, size, args.batch, args.turns, dtype, backend == "cpu")
        ours, theirs, ratio, error, compile_seconds = measured
        print(
            f"{name:20} {size:4} {flops / 1e9:6.2f} "
            f"{ours:8.1f} {theirs:8.1f} {ratio:7.2f} {ours * flops / peak:7.2f} "
            f"{error:8.1e} {compile_seconds:7.1f}s",
            flush=True,
        )


def prepare(args):
    """Create the devices; return the backend, the dtype and the peak FLOP/s."""
    mapping.split_cpu_devices()
    backend = jax.default_backend()
    dtype = args.dtype or ("float32" if backend == "cpu" else "bfloat16")
    peak = peak_flops(dtype)
    print(f"{backend}, {dtype}, batch {args.batch}: peak {peak / 1e9:,.0f} GFLOP/s")
    return backend, dtype, peak


def measure(name, size, batch, turns, dtype, beside_tensorflow):
    """Return both rates, their quotient, the error, and seconds to compile."""
    random = np.random.default_rng(0)
    images = random.uniform(-1, 1, (batch, size, size, 3)).astype(np.float32)
    variables = draw_variables(name)
    apply = backbone.Apply(name, dtype)
    start = time.perf_counter()
    forward = mapping.map_devices(
        lambda variables, images: apply(variables, images).features,
        in_axes=(None, 0),
    )
    replicated, sharded = mapping.replicate(variables), mapping.shard(images)

    def ours():
        return mapping.unshard(forward(replicated, sharded))

    ours()
    compile_seconds = time.perf_counter() - start

    contenders = [ours]
    if beside_tensorflow:
        tf = tensorflow()
        function = tensorflow_twin.extractor(name, variables)
        constant = tf.constant(images)
        contenders.append(lambda: function(constant).numpy())
    results = [contender() for contender in contenders]
    scale = np.abs(results[-1]).max()
    error = float(np.abs(results[0] - results[-1]).max() / scale)
    seconds, _ = alternate(contenders, turns)
    rates = [batch / min(times) for times in seconds]
    if not beside_tensorflow:
        return rates[0], np.nan, np.nan, error, compile_seconds
    # Paired, because a disturbance of a second or two affects both times of a turn.
    ratio = statistics.median(b / a for a, b in zip(*seconds, strict=True))
    return *rates, ratio, error, compile_seconds


def alternate(contenders, turns):
    """Call functions in turns; return wall and CPU seconds as [contender][turn].

    One call of each is a warm-up.
    """
    wall, used = ([[] for _ in contenders] for _ in range(2))
    for turn in range(turns + 1):
        for i, contender in enumerate(contenders):
            start = time.perf_counter(), time.process_time()
            contender()
            if turn:
                wall[i].append(time.perf_counter() - start[0])
                used[i].append(time.process_time() - start[1])
    return wall, used


def draw_variables(name):
    """Draw variables by He et al.'s rule with NumPy; compiling `init` takes minutes."""
    random = np.random.default_rng(0)

    def draw(path, leaf):
        kind = path[-1].key
        if kind in ("var", "scale"):
            return np.ones(leaf.shape, np.float32)
        if "kernel" not in kind:
            return np.zeros(leaf.shape, np.float32)
        inputs = leaf.shape[:2] if kind == "depthwise_kernel" else leaf.shape[:-1]
        values = random.normal(0, np.sqrt(2 / np.prod(inputs)), leaf.shape)
        return values.astype(np.float32)

    size = models.get(name).minimum_image_size
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    shapes = jax.eval_shape(models.create(name).init, jax.random.key(0), image)
    return jax.tree_util.tree_map_with_path(draw, dict(shapes))


def peak_flops(dtype, side=2048):
    """Return the FLOP/s of a square matrix product."""
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
