import re

import pytest

from rankckpt_jax import measures, usage
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


def test_list_names_lists_what_a_pattern_names(tmp_path):
    for name in ("b.keras", "a.keras"):
        (tmp_path / name).touch()
    text = lists.list_names("checkpoints", f"{tmp_path}/*")
    assert text.splitlines() == [f"{tmp_path}/a.keras", f"{tmp_path}/b.keras"]
    assert lists.list_names("tasks") == lists.tasks()


def test_measures_fit_100_columns_and_show_the_records():
    lines = lists.measures().splitlines()
    assert max(map(len, lines)) <= 100
    table = {cells[0]: cells for line in lines[2:] if (cells := re.split("  +", line))}
    assert table["etran"][1:4] == ["yes", "yes", "C"]
    assert table["nleep"][1:6] == ["no", "no", "C L", "N D^2 + EM", "0.48"]
    assert table["knn"][3] == "C L N"
    assert table["knn"][5] == "-"


def test_lists_are_those_that_the_command_names():
    assert set(lists.LISTS) == set(usage.LISTS)
