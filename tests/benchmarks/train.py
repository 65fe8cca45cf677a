"""Images per second of a training step, compared with the same networks in TensorFlow.

    python -m tests.benchmarks.train
    python -m tests.benchmarks.train --batch=32 resnet_v1_50
    python -m tests.benchmarks.train --without=depthwise_conv mobilenet_v2

A step is the forward and backward pass in training mode and the update by SGD with
momentum. Both sides run in this process, in turns, on the same weights and images, and
the fastest of several turns counts. `ours/TF` is the median quotient of the rates. The
gradient of a network costs about twice its forward pass, so `of peak` is three times
the forward FLOP/s over that of a large matrix product. On an accelerator only our step
is timed, in bfloat16.

With `--without`, the other side is our step without one of the forms in
`models/cpu.py`. The quotient uses CPU time, which other work on the machine hardly
changes.
"""

import argparse
import statistics
import time

import jax
import numpy as np

from rankckpt_jax import finetune, models
from rankckpt_jax.checkpoints import backbone as backbone_lib
from rankckpt_jax.devices import mapping
from rankckpt_jax.finetune import step
from rankckpt_jax.models import cpu
from tests.benchmarks import tensorflow_twin
from tests.benchmarks.extract import alternate, draw_variables, prepare

NAMES = ("resnet_v1_50", "mobilenet_v2", "inception_v3")
CLASSES = 102


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--size", type=int, default=0)
    parser.add_argument("--dtype", default="")
    parser.add_argument("--without", default="", choices=["", *sorted(cpu.FORMS)])
    args = parser.parse_args()
    backend, dtype, peak = prepare(args)
    other = f"without {args.without}" if args.without else "TensorFlow"
    print(
        f"{'network':20} {'size':>4} {'GFLOP':>6} {'img/s':>8} {'quotient':>8} ", end=""
    )
    print(f"{'of peak':>7} {'compile':>8}  (quotient: rate over that of {other})")
    for name in args.names:
        size = args.size or models.get(name).image_size
        flops = 6 * models.multiply_adds(name, size)
        data = batch(size, args.batch)
        start = time.perf_counter()
        contenders = [trainer(name, data, dtype)]
        compile_seconds = time.perf_counter() - start
        if args.without:
            contenders.append(trainer(name, data, dtype, args.without))
        elif backend == "cpu":
            contenders.append(tensorflow_trainer(name, data))
        wall, used = alternate(contenders, args.turns)
        rate = args.batch / min(wall[0])
        times = used if args.without else wall
        quotients = [b / a for a, b in zip(times[0], times[-1], strict=True)]
        print(
            f"{name:20} {size:4} {flops / 1e9:6.2f} {rate:8.2f} "
            f"{statistics.median(quotients):8.2f} {rate * flops / peak:7.2f} "
            f"{compile_seconds:7.1f}s",
            flush=True,
        )


def batch(size, count):
    """Images [B, S, S, 3] in [-1, 1] and labels [B]."""
    images = np.random.default_rng(0).uniform(-1, 1, (count, size, size, 3))
    return images.astype(np.float32), (np.arange(count) % CLASSES).astype(np.int32)


def trainer(name, data, dtype, without=""):
    """Compile our step; return a function that takes one."""
    images, labels = data
    backbone = backbone_lib.create(
        name, draw_variables(name), name=name, fingerprint="", source=""
    )
    # Steps are cached by their settings. The network's own momentum, given explicitly,
    # changes nothing except the key.
    momentum = models.create(name).momentum if without else 0.0
    recipe = finetune.Recipe(
        dtype=dtype, batch_size=len(images), batch_norm_decay=momentum
    )
    state = step.initial_state(backbone, CLASSES)
    run = step.train_step(step.step_spec(backbone, recipe))
    scaling = mapping.replicate((np.float32(0), np.float32(255), np.zeros(3, "f4")))
    rows = np.arange(len(images), dtype=np.int32)
    sharded = mapping.shard((images, labels, rows))
    hyper = step.hyperparameters(recipe, 1e-3, 0)

    def take():
        nonlocal state
        state, _ = run(state, scaling, hyper, sharded)
        jax.block_until_ready(state)

    forms = cpu.FORMS
    cpu.FORMS = forms - {without}
    take()
    cpu.FORMS = forms
    return take


def tensorflow_trainer(name, data):
    """Build TensorFlow's step; return a function that takes one."""
    width = models.get(name).feature_dim
    head = {
        "kernel": np.zeros((width, CLASSES), np.float32),
        "bias": np.zeros(CLASSES, np.float32),
    }
    twin = tensorflow_twin.Trainer(name, draw_variables(name), head)
    images, labels = map(twin.tf.constant, data)
    return lambda: twin.step(images, labels, 1e-3)[0].numpy()


if __name__ == "__main__":
    main()
