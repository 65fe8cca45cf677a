"""Images per second of a training step, beside the same networks in TensorFlow.

    python -m tests.benchmarks.train
    python -m tests.benchmarks.train --batch=32 resnet_v1_50

Both take the whole step, the forward and backward pass in training mode and the update
by SGD with momentum, on the CPU in this process, on the same weights and images, in
turns, and with large pages of memory, as the command line has them; the fastest of
several turns counts. `ours/TF` is the quotient of the rates. The gradient of a network
costs about twice its forward pass: `of peak` is three times its FLOP/s over that of a
large matrix product, measured here. On an accelerator only ours is timed, in bfloat16.
"""

import argparse
import statistics
import time

import jax
import numpy as np

from rankckpt_jax import finetune, models
from rankckpt_jax.benchmark import demo
from rankckpt_jax.devices import mapping
from rankckpt_jax.finetune import step
from tests.benchmarks import tensorflow_twin
from tests.benchmarks.extract import peak_flops

NAMES = ("resnet_v1_50", "mobilenet_v2", "inception_v3")
CLASSES = 102


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--size", type=int, default=0)
    parser.add_argument("--dtype", default="")
    args = parser.parse_args()
    mapping.split_cpu_devices()
    backend = jax.default_backend()
    dtype = args.dtype or ("float32" if backend == "cpu" else "bfloat16")
    peak = peak_flops(dtype)
    print(f"{backend}, {dtype}, batch {args.batch}: peak {peak / 1e9:,.0f} GFLOP/s")
    print(f"{'network':20} {'size':>4} {'GFLOP':>6} {'img/s':>8} {'TF':>8} ", end="")
    print(f"{'ours/TF':>7} {'of peak':>7} {'compile':>8}")
    for name in args.names:
        size = args.size or models.default_image_size(name)
        scale = (size / models.default_image_size(name)) ** 2
        flops = 6 * models.multiply_adds(name) * scale
        ours, theirs, ratio, compile_seconds = measure(
            name, size, args.batch, args.turns, dtype, backend == "cpu"
        )
        print(
            f"{name:20} {size:4} {flops / 1e9:6.2f} "
            f"{ours:8.2f} {theirs:8.2f} {ratio:7.2f} {ours * flops / peak:7.2f} "
            f"{compile_seconds:7.1f}s",
            flush=True,
        )


def measure(name, size, batch, turns, dtype, beside_tensorflow):
    """Rates of ours and TensorFlow's, their quotient, and seconds to compile."""
    random = np.random.default_rng(0)
    images = random.uniform(-1, 1, (batch, size, size, 3)).astype(np.float32)
    labels = (np.arange(batch) % CLASSES).astype(np.int32)
    backbone = demo.from_scratch(name, size, 0)
    recipe = finetune.Recipe(dtype=dtype, batch_size=batch)
    held = [step.initial_state(backbone, CLASSES)]
    run = step.train_step(step.step_spec(backbone, recipe))
    scaling = mapping.replicate((np.float32(0), np.float32(255), np.zeros(3, "f4")))
    data = mapping.shard((images, labels, np.arange(batch, dtype=np.int32)))
    hyper = step.hyperparameters(recipe, 1e-3, 0)

    def ours():
        held[0], loss = run(held[0], scaling, hyper, data)
        loss.block_until_ready()
        jax.block_until_ready(held[0])

    start = time.perf_counter()
    ours()
    compile_seconds = time.perf_counter() - start
    contenders = [ours]
    if beside_tensorflow:
        head = {
            "kernel": np.zeros((backbone.feature_dim, CLASSES), np.float32),
            "bias": np.zeros(CLASSES, np.float32),
        }
        twin = tensorflow_twin.Trainer(name, backbone.variables, head)
        fixed = twin.tf.constant(images), twin.tf.constant(labels)
        contenders.append(lambda: twin.step(*fixed, 1e-3)[0].numpy())
    for contender in contenders:
        contender()
    seconds = [[] for _ in contenders]
    for _ in range(turns):
        for contender, times in zip(contenders, seconds, strict=True):
            start = time.perf_counter()
            contender()
            times.append(time.perf_counter() - start)
    rates = [batch / min(times) for times in seconds]
    if not beside_tensorflow:
        return rates[0], float("nan"), float("nan"), compile_seconds
    # Paired, since a disturbance of a second or two meets both of a turn.
    ratio = statistics.median(b / a for a, b in zip(*seconds, strict=True))
    return rates[0], rates[1], ratio, compile_seconds


if __name__ == "__main__":
    main()
