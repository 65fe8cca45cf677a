import os
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rankckpt_jax.devices import mapping
from tests.processes import with_devices


def test_one_device_is_the_same_path():
    mean = mapping.map_devices(
        lambda scale, x: jax.lax.pmean(scale * x.sum(), mapping.AXIS),
        in_axes=(None, 0),
        out_axes=None,
    )
    devices = mapping.local_device_count()
    x = np.arange(4 * devices, dtype=np.float32)
    found = mean(mapping.replicate(jnp.float32(2)), mapping.shard(x))
    assert float(found) == pytest.approx(2 * x.sum() / devices)


def test_unsharding_undoes_sharding():
    tree = {"a": np.arange(12).reshape(4, 3), "b": np.arange(4)}
    devices = mapping.local_device_count()
    tree = {k: np.repeat(v, devices, 0) for k, v in tree.items()}
    back = mapping.unshard(mapping.shard(tree))
    for key, value in tree.items():
        np.testing.assert_array_equal(back[key], value)


@pytest.mark.parametrize(("size", "devices", "expected"), [(1, 4, 4), (8, 4, 8)])
def test_batches_are_rounded_up_to_the_devices(size, devices, expected, monkeypatch):
    monkeypatch.setattr(mapping, "local_device_count", lambda: devices)
    assert mapping.round_up_to_devices(size) == expected


TRAINING = """
import sys, numpy as np, jax
from rankckpt_jax import finetune
from rankckpt_jax.benchmark import demo
from rankckpt_jax.data import pipeline, tasks
images = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)
split = tasks.array_split("train", images, np.arange(16) % 2)
backbone = demo.from_scratch("mobilenet_v1_025", 64, seed=0)
recipe = finetune.Recipe(0.01, num_steps=4, batch_size=8, batch_norm_decay=0.9,
                         random_flip=True)
curve = []
state, _, _ = finetune.train(
    backbone, finetune.initial_state(backbone, 2), split, recipe,
    preprocess="vtab", cache=pipeline.ImageCache(1.0),
    watch=lambda step, losses, rate: curve.extend(losses[0]))
stats = [np.asarray(x).ravel() for x in jax.tree.leaves(state.batch_stats)]
np.savez(sys.argv[1], loss=curve, stats=np.concatenate(stats),
         head=np.asarray(state.params["head"]["kernel"]))
"""


def test_cores_become_devices_unless_the_environment_says_how_many():
    program = (
        "import jax\n"
        "from rankckpt_jax.devices import mapping, processes\n"
        "mapping.split_cpu_devices()\n"
        "print(jax.local_device_count(), min(mapping.num_cores(), 8))\n"
    )
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    for name, value in (
        ("", ""),
        ("JAX_NUM_CPU_DEVICES", "3"),
        ("XLA_FLAGS", "--xla_force_host_platform_device_count=3"),
    ):
        told = subprocess.run(
            [sys.executable, "-c", program],
            env={**environment, name: value} if name else environment,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        devices, cores = map(int, told.split())
        assert devices == (3 if name else cores)


@pytest.mark.multiprocess
def test_any_number_of_devices_gives_the_same_loss_curve(tmp_path):
    found = []
    for devices in (1, 2, 4):
        file = str(tmp_path / f"{devices}.npz")
        subprocess.run(
            [sys.executable, "-c", TRAINING, file],
            check=True,
            env=with_devices(devices),
        )
        found.append(dict(np.load(file)))
    one, *others = found
    assert len(one["loss"]) == 4
    for several in others:
        np.testing.assert_allclose(several["loss"], one["loss"], rtol=1e-4)
        for name in ("stats", "head"):
            scale = np.abs(one[name]).max()
            np.testing.assert_allclose(several[name], one[name], atol=2e-3 * scale)


MAPPED = """
import sys, numpy as np
from rankckpt_jax.devices import mapping, processes
file, mapping.MAPPING, coordinator, count, process = sys.argv[1:]
if coordinator:
    processes.join(coordinator, int(count), int(process))
from rankckpt_jax import finetune, measures
from rankckpt_jax.benchmark import demo
from rankckpt_jax.data import pipeline, tasks
images = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)
split = tasks.array_split("train", images, np.arange(16) % 2)
backbone = demo.from_scratch("mobilenet_v1_025", 64, seed=0)
cache = pipeline.ImageCache(1.0)
recipe = finetune.Recipe(0.001, num_steps=3, batch_size=8, batch_norm_decay=0.9)
curve = []
state, _, _ = finetune.train(
    backbone, finetune.initial_state(backbone, 2), split, recipe, preprocess="vtab",
    cache=cache, watch=lambda step, losses, rate: curve.extend(losses[0]))
random = np.random.default_rng(1)
points, labels = random.normal(size=(120, 12)), np.arange(120) % 3
points[:, 0] += 3 * labels
nleep = measures.compute("nleep", points, labels, components_per_class=2)
if processes.is_main_process():
    np.savez(file, loss=curve, head=np.asarray(state.params["head"]["kernel"]),
             nleep=nleep.score)
"""


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("processes", "devices"), [(1, 2), pytest.param(2, 1, marks=pytest.mark.slow)]
)
def test_shard_map_gives_what_pmap_gives(processes, devices, tmp_path):
    """The same programs over the same devices; sums may be ordered otherwise."""
    found = {}
    for kind in ("pmap", "shard_map"):
        file = str(tmp_path / f"{kind}.npz")
        coordinator = ""
        if processes > 1:
            with socket.socket() as bound:
                bound.bind(("localhost", 0))
                coordinator = f"localhost:{bound.getsockname()[1]}"
        environment = with_devices(devices, JAX_PLATFORMS="cpu")
        given = [sys.executable, "-c", MAPPED, file, kind, coordinator]
        running = [
            subprocess.Popen(
                [*given, str(processes), str(process)],
                env=environment,
                stderr=subprocess.PIPE,
                text=True,
            )
            for process in range(processes)
        ]
        told = [process.communicate(timeout=300)[1] for process in running]
        assert not any(process.returncode for process in running), told
        found[kind] = dict(np.load(file))
    for name, value in found["pmap"].items():
        scale = np.abs(value).max()
        np.testing.assert_allclose(
            found["shard_map"][name], value, rtol=0, atol=1e-5 * scale, err_msg=name
        )
