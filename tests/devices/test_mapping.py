import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rankckpt_jax import finetune
from rankckpt_jax.benchmark import demo
from rankckpt_jax.data import image_cache, tasks
from rankckpt_jax.devices import mapping, target, topologies


def test_map_devices_averages_over_the_axis():
    mean = mapping.map_devices(
        lambda scale, x: jax.lax.pmean(scale * x.sum(), mapping.AXIS),
        in_axes=(None, 0),
        out_axes=None,
    )
    devices = mapping.local_device_count()
    x = np.arange(4 * devices, dtype=np.float32)
    result = mean(mapping.replicate(jnp.float32(2)), mapping.shard(x))
    assert float(result) == pytest.approx(2 * x.sum() / devices)


def test_unshard_undoes_shard():
    devices = mapping.local_device_count()
    tree = {"a": np.arange(12 * devices).reshape(-1, 3), "b": np.arange(4 * devices)}
    back = mapping.unshard(mapping.shard(tree))
    for name, value in tree.items():
        np.testing.assert_array_equal(back[name], value)


@pytest.mark.parametrize(("size", "devices", "expected"), [(1, 4, 4), (8, 4, 8)])
def test_round_up_to_devices(size, devices, expected, monkeypatch):
    monkeypatch.setattr(mapping, "local_device_count", lambda: devices)
    assert mapping.round_up_to_devices(size) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("JAX_NUM_CPU_DEVICES", "3"),
        ("XLA_FLAGS", "--xla_force_host_platform_device_count=3"),
    ],
)
def test_split_cpu_devices_respects_the_environment(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(jax.config, "update", lambda *_: pytest.fail("changed"))
    mapping.split_cpu_devices()


def test_lower_maps_over_the_devices_of_a_topology():
    pytest.importorskip("libtpu")
    double = mapping.map_devices(
        lambda x: jax.lax.psum(2 * x, mapping.AXIS), out_axes=None
    )
    shape = jax.ShapeDtypeStruct((8, 256), jnp.float32)
    with target.compile_for(topologies.load("v5e:2x4")):
        compiled = mapping.lower(double, shape).compile()
        single = mapping.lower(jax.jit(lambda x, n: n * x), shape, 2).compile()
    for program in compiled, single:
        assert "T(8,128)" in program.as_text() or "T(256)" in program.as_text()
    assert "all-reduce" in compiled.as_text()
    devices = mapping.local_device_count()
    result = double(np.ones((devices, 1), np.float32))
    assert float(result[0]) == 2 * devices


def train():
    """Train for four steps; return the losses, batch statistics and the head."""
    images = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)
    split = tasks.array_split("train", images, np.arange(16) % 2)
    backbone = demo.from_scratch("mobilenet_v1_025", 64, seed=0)
    recipe = finetune.Recipe(
        0.01, num_steps=4, batch_size=8, batch_norm_decay=0.9, random_flip=True
    )
    losses = []
    state, _, _ = finetune.train(
        backbone,
        finetune.initial_state(backbone, 2),
        split,
        recipe,
        preprocess="vtab",
        cache=image_cache.open_cache(),
        on_losses=lambda step, values, rate: losses.extend(values[0]),
    )
    stats = [np.asarray(x).ravel() for x in jax.tree.leaves(state.batch_stats)]
    return {
        "losses": np.asarray(losses),
        "stats": np.concatenate(stats),
        "head": np.asarray(state.params["head"]["kernel"]),
    }


FOUR_DEVICES = """
import sys
import jax, numpy as np
from rankckpt_jax.devices import mapping
mapping.num_cores = lambda: 4
mapping.split_cpu_devices()
assert jax.local_device_count() == 4
from tests.devices.test_mapping import train
np.savez(sys.argv[1], **train())
"""


@pytest.mark.multiprocess
def test_training_does_not_depend_on_the_number_of_devices(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}
    with subprocess.Popen(
        [sys.executable, "-c", FOUR_DEVICES, tmp_path / "four.npz"], env=environment
    ) as process:
        one = train()
    assert process.returncode == 0 and jax.local_device_count() != 4
    four = np.load(tmp_path / "four.npz")
    assert len(one["losses"]) == 4
    np.testing.assert_allclose(four["losses"], one["losses"], rtol=1e-4)
    for name in ("stats", "head"):
        scale = np.abs(one[name]).max()
        np.testing.assert_allclose(four[name], one[name], atol=2e-3 * scale)
