"""The networks of the standard pools exist in the installed libraries."""

import pytest

from rankckpt_jax.benchmark import standard
from rankckpt_jax.checkpoints.sources import hf_hub, torchvision
from rankckpt_jax.checkpoints.sources import timm as timm_source

timm = pytest.importorskip("timm", reason="needs the extra torch")
models = pytest.importorskip("torchvision.models", reason="needs the extra torch")

pytestmark = pytest.mark.torch


def names(pool, scheme):
    loads = [entry.load.partition(":") for entry in standard.checkpoints(pool)]
    return [rest for start, _, rest in loads if start == scheme]


def test_networks_of_torchvision_have_these_weights_and_accuracies():
    assert len(names("sfda_group1", "torchvision")) == 11
    for entry in standard.checkpoints("sfda_group1"):
        name, _, weights = entry.load.removeprefix("torchvision:").partition(".")
        found = models.get_model_weights(name)[weights]
        assert entry.weights == found.url and entry.name == name
        metrics = found.meta["_metrics"]["ImageNet-1K"]
        assert entry.source_accuracy == metrics["acc@1"]


def test_networks_resolve_through_their_schemes():
    for scheme, pool, count in (
        (torchvision, "sfda_group1", 11),
        (timm_source, "hf", 40),
        (hf_hub, "hf", 3),
    ):
        given = names(pool, scheme.SCHEME)
        assert len(given) == count
        assert all(scheme.names(name) == (name,) for name in given)


def test_networks_of_timm_have_weights():
    known = set(timm.list_pretrained())
    found = names("hf", "timm")
    assert len(found) == 40 and set(found) <= known
    assert len(names("hf", "hf-hub")) == 3
