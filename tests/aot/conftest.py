"""Devices that are absent, one topology after the other."""

import contextlib

import pytest

from rankckpt_jax.devices import target, topologies


@pytest.fixture(scope="module")
def compile_for():
    """Return a function that makes programs for a topology until another is chosen.

    Changing the target drops all traces, so tests are ordered by their topology.
    """
    with contextlib.ExitStack() as stack:
        chosen = []

        def choose(name):
            if chosen != [name]:
                stack.close()
                pytest.importorskip(
                    "jax_cuda12_plugin" if name.startswith("h200") else "libtpu"
                )
                stack.enter_context(target.compile_for(topologies.load(name)))
                chosen[:] = [name]

        yield choose
