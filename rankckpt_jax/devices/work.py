"""The work of a program, before it runs: its FLOP, its memory traffic and its memory.

FLOP are counted in the traced function and not in the compiled program. XLA counts the
body of a loop once, and its CUDA compiler counts nothing.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from rankckpt_jax.devices import mapping

KINDS = ("bfloat16", "float32 default", "float32 high", "float32 highest", "float64")
"""Kinds of products: the dtype of the operands, and the precision of float32."""


@dataclasses.dataclass(frozen=True)
class Work:
    """Work of one device.

    Attributes:
      flop: FLOP of convolutions and matrix products, by one of KINDS. Other operations
        take little time, because they read what a product has just written.
      bytes: Bytes read from and written to memory.
    """

    flop: Mapping[str, float] = dataclasses.field(default_factory=dict)
    bytes: float = 0.0

    @property
    def total_flop(self) -> float:
        """FLOP of all kinds."""
        return sum(self.flop.values())

    def __add__(self, other: Work) -> Work:
        """Return the work of both."""
        flop = collections.Counter(self.flop)
        flop.update(other.flop)
        return Work(dict(flop), self.bytes + other.bytes)

    def __mul__(self, times: float) -> Work:
        """Return the work of several runs."""
        flop = {kind: count * times for kind, count in self.flop.items()}
        return Work(flop, self.bytes * times)


@dataclasses.dataclass(frozen=True)
class Analysis:
    """A compiled program.

    Attributes:
      work: Its work on one device.
      peak_bytes: The largest memory of one device, with arguments and results. For a
        program that the compiler refused it is the memory that it named, or infinite.
      is_refused: Whether the compiler refused the program for its memory.
    """

    work: Work
    peak_bytes: float
    is_refused: bool = False


def analyze(function: Callable[..., Any], *args: Any) -> Analysis:
    """Compile a function for the devices of `target`, without running it.

    Memory traffic is the compiler's count, which respects fusion but not loops, or that
    of `count` if it is larger.

    Args:
      function: A function of `map_devices` or `jax.jit`.
      *args: Pytrees of arrays or `jax.ShapeDtypeStruct`.
    """
    work = count(function, *args)
    try:
        compiled = mapping.lower(function, *args).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Analysis(work, _named_memory(str(error)), is_refused=True)
    memory: Any = compiled.memory_analysis()
    parts = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )
    peak = max(getattr(memory, "peak_memory_in_bytes", 0), parts)
    costs = compiled.cost_analysis() or {}
    traffic = max(costs.get("bytes accessed", 0.0), work.bytes)
    return Analysis(dataclasses.replace(work, bytes=traffic), peak)


def _named_memory(message: str) -> float:
    """Return the bytes in "total memory required for HLO temporaries (18.26G)"."""
    found = re.search(r"required.*?\(([\d.]+)([KMGT])\)", message)
    return float(found[1]) * 1024 ** (1 + "KMGT".index(found[2])) if found else math.inf


def count(function: Callable[..., Any], *args: Any) -> Work:
    """Count the products of a function; each operand and result is moved once.

    The body of a scan counts as often as it runs. The body of a while loop counts once.

    Args:
      function: Any function that JAX can trace. Of a mapped one, the work of one device
        is counted.
      *args: Pytrees of arrays or `jax.ShapeDtypeStruct`.
    """
    total = Work()
    for equation, times in _products(mapping.trace(function, *args).jaxpr, 1):
        shapes = [*equation.invars, *equation.outvars]
        moved = sum(math.prod(v.aval.shape) * v.aval.dtype.itemsize for v in shapes)
        total += Work({_kind(equation): _flop(equation)}, moved) * times
    return total


def _products(jaxpr: Any, times: int) -> Iterator[tuple[Any, int]]:
    """Yield the convolutions and matrix products, and how often each one runs."""
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name in ("dot_general", "conv_general_dilated"):
            yield equation, times
            continue
        repeats = equation.params["length"] if name == "scan" else 1
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                # A closed one holds the other.
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from _products(inner, times * repeats)


def _flop(equation: Any) -> float:
    left, right = (variable.aval.shape for variable in equation.invars[:2])
    outputs = math.prod(equation.outvars[0].aval.shape)
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return 2.0 * outputs * math.prod(left[axis] for axis in contracted)
    numbers = equation.params["dimension_numbers"]
    window = math.prod(right) / right[numbers.rhs_spec[0]]
    # The zeros between the pixels of a dilated image, as in gradients of strides.
    dilation = math.prod(equation.params["lhs_dilation"])
    return 2.0 * outputs * window / dilation


def _kind(equation: Any) -> str:
    dtype = np.dtype(equation.invars[0].aval.dtype)
    if dtype.itemsize < 4:
        return "bfloat16"
    if dtype.itemsize > 4:
        return "float64"
    precision = equation.params["precision"]
    if isinstance(precision, tuple):
        precision = precision[0]
    name = "default" if precision is None else precision.name.lower()
    return f"float32 {name}"
