import math
import types

import jax
import pytest

from rankckpt_jax.devices import memory, peaks, target
from rankckpt_jax.devices.work import KINDS, Work


def peak(kind):
    return peaks.Peak(kind, *peaks.PUBLISHED[kind])


def test_seconds_is_the_longer_of_arithmetic_and_memory():
    v5e = peak("TPU v5 lite")
    assert v5e.seconds(Work({"bfloat16": 197e12})) == pytest.approx(1)
    # Six passes in bfloat16.
    assert v5e.seconds(Work({"float32 highest": 197e12})) == pytest.approx(6)
    assert v5e.seconds(Work({"bfloat16": 197e12}, 819e9 * 2)) == pytest.approx(2)
    both = Work({"bfloat16": 197e12, "float32 default": 197e12})
    assert v5e.seconds(both) == pytest.approx(2)
    assert v5e.seconds(Work()) == 0


@pytest.mark.parametrize(
    ("kind", "teraflops", "gigabytes_per_second", "gib"),
    [
        # Of one device, which is half of a chip for v4.
        ("TPU v4", 137.5, 614, 16),
        ("TPU v5", 459, 2765, 95),
        ("TPU v5 lite", 197, 819, 16),
        ("TPU v6 lite", 918, 1638, 32),
        ("NVIDIA H200", 989, 4800, 140.4),
    ],
)
def test_published_has_the_peaks_of_one_device(
    kind, teraflops, gigabytes_per_second, gib
):
    known = peak(kind)
    assert known.flops["bfloat16"] == pytest.approx(teraflops * 1e12)
    assert known.bandwidth == pytest.approx(gigabytes_per_second * 1e9)
    assert 0.7 * gib * 2**30 < known.memory < gib * 2**30


def test_published_rates_are_complete():
    for kind in peaks.PUBLISHED:
        rates = [peak(kind).flops[name] for name in KINDS]
        assert all(rate >= 0 for rate in rates)
        # More precise products are not faster.
        assert rates[:4] == sorted(rates[:4], reverse=True)


def test_of_target_distinguishes_v5e_and_v5p(monkeypatch):
    for kind, rate in (("TPU v5 lite", 197e12), ("TPU v5", 459e12)):
        device = types.SimpleNamespace(device_kind=kind, memory_stats=lambda: None)
        monkeypatch.setattr(target, "local_devices", lambda device=device: [device])
        assert peaks.of_target().flops["bfloat16"] == rate


def test_of_target_reads_the_memory_of_a_device_that_is_there(monkeypatch):
    stats = {"bytes_limit": 5e9}
    device = types.SimpleNamespace(
        device_kind="NVIDIA H100 80GB HBM3", memory_stats=lambda: stats
    )
    monkeypatch.setattr(target, "local_devices", lambda: [device])
    assert peaks.of_target().memory == 5e9


def test_of_target_measures_a_cpu():
    measured = peaks.of_target()
    assert measured.is_measured and measured.name == "cpu"
    assert 1e8 < measured.flops["float32 highest"] < 1e14
    assert 1e7 < measured.bandwidth < 1e13
    count = jax.local_device_count()
    assert measured.memory == pytest.approx(memory.of_machine() / count)
    assert not math.isinf(measured.seconds(Work({"float64": 1.0}, 1)))
