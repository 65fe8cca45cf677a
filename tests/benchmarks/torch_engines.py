"""Extraction of PyTorch networks by both engines beside PyTorch alone.

    python -m tests.benchmarks.torch_engines                 # four networks
    python -m tests.benchmarks.torch_engines vit_tiny_patch16_224

Weights are random, images are in memory, and batches have 32 images of 224 pixels.
`torch` is PyTorch alone in a plain loop, with the channels last in memory. The ratios
are images per second by that. `compile` is the time of the first batch in JAX minus
that of a later one. CPU seconds are those of all threads.
"""

import sys
import time

import jax
import numpy as np
import timm
import torch

from rankckpt_jax.checkpoints.backbone import split_head
from rankckpt_jax.checkpoints.torch_modules import convert
from rankckpt_jax.checkpoints.torch_modules.spec import ModuleSpec

NETWORKS = (
    "resnet50",
    "vit_tiny_patch16_224",
    "convnext_atto",
    "tf_efficientnet_lite0",
)
BATCH, SIZE, REPEATS = 32, 224, 3


def main():
    print(
        f"{'network':24} {'torch':>7} {'engine torch':>12} {'engine jax':>10} "
        f"{'ratios':>11} {'compile':>7}  images/s; images per CPU second"
    )
    for name in sys.argv[1:] or NETWORKS:
        measure(name)


def measure(name):
    torch.manual_seed(0)
    module = timm.create_model(name, pretrained=False).eval()
    shape = (BATCH, SIZE, SIZE, 3)
    images = np.random.default_rng(0).uniform(size=shape).astype(np.float32)

    def backbone(engine):
        return convert.to_backbone(
            module,
            ModuleSpec("timm", name),
            name=name,
            image_size=SIZE,
            own_image_size=SIZE,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            fingerprint="",
            source=name,
            engine=engine,
        )

    host, device = backbone("torch"), backbone("jax")
    headless, _ = split_head(device.variables)
    headless = jax.device_put(headless)
    forward = jax.jit(lambda variables, x: device.apply(variables, x).features)
    start = time.perf_counter()
    jax.block_until_ready(forward(headless, images))
    first = time.perf_counter() - start
    plain = module.to(memory_format=torch.channels_last)

    def alone():
        with torch.inference_mode():
            tensor = torch.from_numpy(images * 2 - 1).permute(0, 3, 1, 2)
            plain.forward_head(plain.forward_features(tensor), pre_logits=True)

    def by_torch():
        host.apply({"params": {}}, images)

    def by_jax():
        jax.block_until_ready(forward(headless, images))

    rates = [fastest(run) for run in (alone, by_torch, by_jax)]
    walls, cpus = zip(*rates, strict=True)
    ratios = f"{walls[1] / walls[0]:.2f} {walls[2] / walls[0]:.2f}"
    compiling = first - BATCH / walls[2]
    print(
        f"{name:24} {walls[0]:7.1f} {walls[1]:12.1f} {walls[2]:10.1f} {ratios:>11} "
        f"{compiling:7.1f}  CPU: " + ", ".join(f"{cpu:.1f}" for cpu in cpus),
        flush=True,
    )


def fastest(run):
    """Return images per second, and per CPU second, of the fastest repetition."""
    run()
    walls, cpus = [], []
    for _ in range(REPEATS):
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return BATCH / min(walls), BATCH / min(cpus)


if __name__ == "__main__":
    main()
