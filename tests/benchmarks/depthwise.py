"""Images per second of networks of depthwise convolutions, with and without our form.

    python -m tests.benchmarks.depthwise
    python -m tests.benchmarks.depthwise --size=96 keras:MobileNetV2 mobilenet_v2

A name is one of `models`, or `keras:` and one of `keras.applications`, or `timm:` and
one of timm. Weights are random. For each network, a pass of extraction and a step of
fine-tuning (forward, backward, SGD) are compiled with XLA's form of a depthwise
convolution ("before") and as the sum of shifted products of `models/cpu.py` ("after").
Both take turns on one device. The rate is images per CPU second, the best of the turns,
which other work on the machine hardly changes. `compile` is in CPU seconds.
"""

import argparse
import time

import jax
import numpy as np

from rankckpt_jax import checkpoints, finetune
from rankckpt_jax.checkpoints import backbone as backbone_lib
from rankckpt_jax.devices import mapping
from rankckpt_jax.finetune import step
from rankckpt_jax.models import cpu
from tests.benchmarks.extract import alternate, draw_variables

NAMES = ("mobilenet_v2", "keras:MobileNetV2", "timm:mobilenetv3_small_100")
CLASSES = 102


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args()
    print(f"batches of {args.batch} images of {args.size} pixels, float32")
    print(f"{'network':26} {'job':10} {'before':>8} {'after':>8} {'gain':>6}  compile")
    for name in args.names:
        network = load(name, args.size)
        for job, make in (("extraction", extraction), ("training", training)):
            contenders, seconds = [], []
            for forms in (cpu.FORMS - {"depthwise_conv"}, cpu.FORMS):
                start = time.process_time()
                contenders.append(compiled(make, network, args, forms))
                seconds.append(time.process_time() - start)
            _, used = alternate(contenders, args.turns)
            before, after = (args.batch / min(times) for times in used)
            print(
                f"{name:26} {job:10} {before:8.1f} {after:8.1f} {after / before:6.2f} "
                f"{seconds[0]:5.1f} -> {seconds[1]:4.1f} s",
                flush=True,
            )


def load(name, size):
    """Build a network with random weights."""
    library, _, rest = name.rpartition(":")
    if library == "keras":
        import keras

        keras.utils.set_random_seed(0)
        application = getattr(keras.applications, rest)
        shape = (size, size, 3)
        model = application(
            input_shape=shape, weights=None, include_top=False, pooling="avg"
        )
        return checkpoints.from_keras(model, name=rest)
    if library == "timm":
        import timm

        module = timm.create_model(rest, num_classes=10)
        pixels = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
        return checkpoints.from_torch(
            module, image_size=size, name=rest, engine="jax", **pixels
        )
    return backbone_lib.create(
        name, draw_variables(name), name=name, fingerprint="", source=""
    )


def compiled(make, network, args, forms):
    """Return a job that was called once, with the forms."""
    original, cpu.FORMS = cpu.FORMS, forms
    step.train_step.cache_clear()
    try:
        run = make(network, args)
        run()
        return run
    finally:
        cpu.FORMS = original


def extraction(network, args):
    """Compile a forward pass; return a function that takes it."""
    images = mapping.shard(batch(args))
    forward = mapping.map_devices(
        lambda variables, images: network.apply(variables, images).features,
        in_axes=(None, 0),
    )
    variables = mapping.replicate(network.variables)
    return lambda: jax.block_until_ready(forward(variables, images))


def training(network, args):
    """Compile a training step; return a function that takes one."""
    recipe = finetune.Recipe(batch_size=args.batch)
    state = step.initial_state(network, CLASSES)
    run = step.train_step(step.step_spec(network, recipe))
    scaling = mapping.replicate((np.float32(0), np.float32(255), np.zeros(3, "f4")))
    labels = np.arange(args.batch, dtype=np.int32)
    data = mapping.shard((batch(args), labels % CLASSES, labels))
    hyper = step.hyperparameters(recipe, 1e-3, 0)

    def take():
        nonlocal state
        state, _ = run(state, scaling, hyper, data)
        jax.block_until_ready(state)

    return take


def batch(args):
    """Return float32 images [B, S, S, 3] in [-1, 1]."""
    shape = (args.batch, args.size, args.size, 3)
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


if __name__ == "__main__":
    main()
