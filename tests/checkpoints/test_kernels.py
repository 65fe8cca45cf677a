import dataclasses

import numpy as np
import pytest

from rankckpt_jax import checkpoints
from rankckpt_jax.benchmark import demo
from rankckpt_jax.checkpoints.graphs.graph_apply import GraphApply, Graphs
from rankckpt_jax.checkpoints.kernels import kernels


@pytest.fixture(scope="module")
def native():
    return demo.from_scratch("mobilenet_v1_025", 32, seed=0)


def _shapes(backbone, params, batch_stats=None, **changes):
    arrays = {
        name: {
            key: value if isinstance(value, np.ndarray) else np.ones(value, np.float32)
            for key, value in layer.items()
        }
        if isinstance(layer, dict)
        else np.ones(layer, np.float32)
        for name, layer in (params | (batch_stats or {})).items()
    }
    variables = {
        "params": {name: arrays[name] for name in params},
        "batch_stats": {name: arrays[name] for name in batch_stats or {}},
    }
    changed = dataclasses.replace(backbone, variables=variables, **changes)
    return {name: value.shape for name, value in kernels(changed)}


def test_kernels_of_a_native_network(native):
    found = dict(kernels(native))
    # A convolution, then 13 depthwise and 13 pointwise ones.
    assert len(found) == 27
    assert not any("logits" in name for name in found)
    assert {value.shape[0] for value in found.values()} == {1, 9}
    assert sum(min(value.shape[-2:]) == 1 for value in found.values()) == 13
    total = sum(value.size for value in found.values())
    # The others are scales and offsets of batch norm.
    assert 0.9 * native.num_parameters < total < native.num_parameters


def test_kernels_of_a_flax_module_join_the_heads_of_attention(native):
    params = {
        "embedding": {"kernel": (4, 4, 3, 12), "bias": (12,)},
        "query": {"kernel": (12, 3, 5), "bias": (3, 5)},
        "out": {"kernel": (3, 5, 12), "bias": (12,)},
        "encoder": {"pos_embedding": (1, 16, 12), "cls_token": (1, 12)},
        "logits": {"kernel": (12, 4), "bias": (4,)},
    }
    assert _shapes(native, params, {"norm": {"constants": (6, 6)}}) == {
        "embedding/kernel": (16, 3, 12),
        "query/kernel": (12, 15),
        "out/kernel": (15, 12),
    }


def test_kernels_of_a_graph_count_without_trainable_variables(native):
    params = {"dense": {"w": (3, 4)}}
    batch_stats = {
        "conv": {"weights": (3, 3, 2, 5)},
        "norm": {"moving_mean": (5,)},
        "index": {"table": np.ones((4, 4), np.int32)},
        "position": {"relative_position_bias": (9, 2)},
    }
    graph = GraphApply(Graphs(None, None))
    found = _shapes(native, params, batch_stats, apply=graph)
    assert found == {"dense/w": (3, 4), "conv/weights": (9, 2, 5)}


def test_kernels_of_a_torch_network_in_jax_have_their_positions_first(native):
    params = {
        "embed.conv.weight": (8, 3, 2, 5),
        "attn.in_proj_weight": (30, 10),
        "attn.relative_position_bias_table": (49, 3),
        "pos_embed": (1, 16, 12),
        "norm.weight": (10,),
        "logits": {"kernel": (12, 4)},
    }
    assert _shapes(native, params, engine="jax") == {
        "embed/conv/weight": (10, 8, 3),
        "attn/in_proj_weight": (30, 10),
    }


@pytest.mark.torch
def test_kernels_of_a_torch_network_on_the_host_leave_the_classifier_out():
    torch = pytest.importorskip("torch", reason="needs the extra torch")
    torch.manual_seed(0)
    grouped = torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 10, 1, groups=2)
    pool = torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    module = torch.nn.Sequential(*grouped, *pool, torch.nn.Linear(10, 4))
    backbone = checkpoints.from_torch(
        module.eval(),
        image_size=24,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        name="net",
        engine="torch",
    )
    found = dict(kernels(backbone))
    shapes = {name: value.shape for name, value in found.items()}
    assert shapes == {"0/weight": (9, 8, 3), "1/weight": (1, 10, 4)}
    expected = grouped[0].weight.detach().numpy()[:, :, 1, 2]
    np.testing.assert_array_equal(found["0/weight"][5], expected)
