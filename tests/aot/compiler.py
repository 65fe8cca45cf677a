"""Compiles programs for devices that are absent, and measures them.

    python -m tests.aot.compiler v5e:2x4 transrate knn

prints CPU seconds and memory of the programs whose name contains one of the words.
"""

import dataclasses
import resource
import sys
import time

import jax

from rankckpt_jax.devices import target, topologies
from tests.aot import programs


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled program.

    Attributes:
      text: The optimized program.
      lowered_text: The program before optimization, in StableHLO.
      device_kinds: Kinds of the devices that it was compiled for.
      seconds: CPU time of compilation, without tracing.
      peak_bytes: Memory of one device, with arguments and results.
    """

    text: str
    lowered_text: str
    device_kinds: set[str]
    seconds: float
    peak_bytes: int


def compile_program(program: programs.Program) -> Compiled:
    """Compile a program within `target.compile_for`."""
    lowered = program.lower()
    before = cpu_seconds()
    compiled = lowered.compile()
    seconds = cpu_seconds() - before
    memory = compiled.memory_analysis()
    shardings = jax.tree.leaves(compiled.input_shardings)
    return Compiled(
        text=compiled.as_text(),
        lowered_text=lowered.as_text(),
        device_kinds={d.device_kind for s in shardings for d in s.device_set},
        seconds=seconds,
        peak_bytes=memory.peak_memory_in_bytes,
    )


def cpu_seconds() -> float:
    """Return the CPU time of this process and of the compilers that it has started."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(
            resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        )
    )


def main() -> None:
    name, *words = sys.argv[1:]
    with target.compile_for(topologies.load(name)):
        for program in programs.PROGRAMS:
            wanted = not words or any(word in str(program) for word in words)
            if not wanted or target.platform() not in program.platforms:
                continue
            start = time.monotonic()
            try:
                compiled = compile_program(program)
            except Exception as error:
                print(f"{program!s:70} {str(error).splitlines()[0]}", flush=True)
                continue
            wall = time.monotonic() - start
            print(
                f"{program!s:70} {compiled.seconds:7.1f} s {wall:7.1f} s "
                f"{compiled.peak_bytes / 1e6:9.1f} MB",
                flush=True,
            )


if __name__ == "__main__":
    main()
