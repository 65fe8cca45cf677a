import pytest

from rankckpt_jax.devices import target, topologies
from rankckpt_jax.errors import InputError


@pytest.mark.parametrize(
    ("name", "count", "kind"),
    [
        ("v5e:2x4", 8, "TPU v5 lite"),
        ("v5e:1x1", 1, "TPU v5 lite"),
        ("v6e:4x4", 16, "TPU v6 lite"),
    ],
)
def test_load_returns_the_devices_of_a_slice(name, count, kind):
    pytest.importorskip("libtpu")
    devices = topologies.load(name)
    assert (len(devices), {d.device_kind for d in devices}) == (count, {kind})
    assert {d.platform for d in devices} == {"tpu"}


def test_load_returns_gpus():
    pytest.importorskip("jax_cuda12_plugin")
    devices = topologies.load("h200:8")
    assert len(devices) == 8
    with target.compile_for(devices):
        assert target.platform() == "gpu"


@pytest.mark.parametrize("name", ["v5e", "v5e:8", "v5e:1x8", "v9:2x2", "h200:0", "2x4"])
def test_load_rejects_unknown_topologies(name):
    pytest.importorskip("libtpu")
    with pytest.raises(InputError, match="Unknown topology"):
        topologies.load(name)


def test_load_names_the_package_to_install(monkeypatch):
    monkeypatch.setattr(topologies.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="libtpu"):
        topologies.load("v5e:2x4")
