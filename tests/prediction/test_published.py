"""The prior that the package has."""

import json

import pytest

from rankckpt_jax.prediction import predictor, published
from tests.benchmarks import prediction as benchmark
from tests.benchmarks import prediction_pools


@pytest.fixture(scope="module")
def data():
    return json.loads(benchmark.PRIOR.read_text())


def test_published_relations_are_read_without_loss(data):
    relations = published.published_relations()
    assert published.to_plain(relations) == data["relations"]
    assert relations.num_tasks == sum(map(len, data["tasks"].values())) >= 32


def test_default_settings_are_those_chosen_on_published_tasks(data):
    assert data["settings"] == [predictor.SHRINKAGE, predictor.RIDGE]


def test_published_relations_are_those_of_the_published_tables(data, shared):
    pools = prediction_pools.read_pools(shared / "data")
    used = [pool for pool in pools if pool.name in data["tasks"]]
    known = {pool.name: [task.name for task in pool.tasks] for pool in used}
    # The public pool may have more tasks by now.
    known.pop("public_pool", None)
    assert known == {k: v for k, v in data["tasks"].items() if k != "public_pool"}
    if len(used) == len(data["tasks"]):
        found = published.to_plain(benchmark.all_relations(shared / "data", used))
        for key, value in data["relations"]["correlations"].items():
            # The file has four digits.
            assert found["correlations"][key] == pytest.approx(value, abs=2e-4)
