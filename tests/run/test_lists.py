import pytest

from rankckpt_jax import measures
from rankckpt_jax.benchmark import neucrab
from rankckpt_jax.run import lists


@pytest.mark.parametrize(
    ("name", "items"),
    [
        ("checkpoints", [entry.name for entry in neucrab.CHECKPOINTS]),
        ("measures", measures.names()),
        ("networks", ["resnet_v1_50", "inception_v3"]),
        ("tasks", list(neucrab.TASKS)),
    ],
)
def test_lists_contain_every_name_with_a_description(name, items):
    lines = [line.split() for line in lists.LISTS[name]().splitlines() if line]
    firsts = [line[0] for line in lines]
    assert all(item in firsts for item in items)
    assert all(len(line) > 2 for line in lines if line[0] in items)
