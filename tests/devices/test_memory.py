import math

import pytest

from rankckpt_jax.devices import memory


@pytest.mark.parametrize(
    ("peak", "expected"),
    [(0, "FITS"), (90, "FITS"), (90.1, "TIGHT"), (100, "TIGHT"), (100.1, "OOM")],
)
def test_verdict_compares_with_the_memory(peak, expected):
    assert memory.verdict(peak, 100) == expected


def test_verdict_of_unknown_memory_is_oom():
    assert memory.verdict(math.inf, 100) == "OOM"


class Compiler:
    """A program of `fixed` bytes and `each` per image, refused above the memory."""

    def __init__(self, fixed, each, limit=math.inf):
        self.fixed, self.each, self.limit = fixed, each, limit
        self.batches = []

    def __call__(self, batch):
        self.batches.append(batch)
        peak = self.fixed + self.each * batch
        return peak if peak <= self.limit else math.inf


def test_largest_batch_extrapolates_and_verifies_once():
    compiler = Compiler(fixed=100, each=10)
    found = memory.largest_batch(compiler, 1024, 8, memory=6000)
    # (6000 - 100) / 10 = 590, rounded down to a multiple of 8.
    assert (found.size, found.is_verified) == (584, True)
    assert compiler(584) <= 6000 < compiler(592)
    assert sorted(set(compiler.batches[:-2])) == [128, 256, 584]


def test_largest_batch_looks_at_smaller_batches_if_a_quarter_is_refused():
    compiler = Compiler(fixed=100, each=10, limit=1000)
    found = memory.largest_batch(compiler, 1024, 8, memory=1000)
    assert (found.size, found.is_verified) == (88, True)


def test_largest_batch_is_below_one_that_does_not_fit():
    """Memory that grows in a jump is not linear."""

    def peak_of(batch):
        return 10 * batch + (5000 if batch > 300 else 0)

    found = memory.largest_batch(peak_of, 1024, 8, memory=6000)
    assert not found.is_verified
    assert 256 <= found.size < 600 and found.size % 8 == 0


@pytest.mark.parametrize(("each", "size"), [(10, 8), (1000, 0)])
def test_largest_batch_of_the_smallest_batch(each, size):
    found = memory.largest_batch(Compiler(0, each), 16, 8, memory=100)
    assert (found.size, found.is_verified) == (size, True)


def test_of_machine_is_that_of_its_container(tmp_path, monkeypatch):
    whole = memory.of_machine()
    (tmp_path / "memory.max").write_text("4000000\n")
    monkeypatch.setattr(memory, "_CONTAINER_LIMITS", [str(tmp_path / "memory.max")])
    assert memory.of_machine() == 4_000_000 < whole
