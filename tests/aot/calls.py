"""A program that a run compiles: its function and the shapes of its arguments."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rankckpt_jax.devices import mapping

# Caltech101 with features of a ResNet-50.
IMAGES, CLASSES, WIDTH, SOURCE_CLASSES = 3060, 102, 2048, 1001
EXTRACTION_BATCH, TRAINING_BATCH = 256, 512


@dataclasses.dataclass(frozen=True)
class Call:
    """A function of `map_devices` or `jax.jit` and the shapes of its arguments."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    x64: bool = False


@dataclasses.dataclass(frozen=True)
class Program:
    """A program of the benchmark.

    Attributes:
      name: Module and name of the function, without the package's name.
      case: Which of its shapes.
      build: Returns the call; called within `target.compile_for`.
      kind: "network" (bfloat16), "training" or "statistics" (float32, exact).
      is_fast: Whether it compiles within a few seconds.
      platforms: Platforms on which it is compiled.
    """

    name: str
    case: str
    build: Callable[[], Call]
    kind: str
    is_fast: bool = True
    platforms: tuple[str, ...] = ("tpu", "gpu")

    def lower(self) -> jax.stages.Lowered:
        """Lower for the devices of `target.compile_for`."""
        call = self.build()
        assert name_of(call.function) == self.name
        # As in `measures.compute`.
        precision = "highest" if self.name.startswith("measures.") else None
        with jax.enable_x64(call.x64), jax.default_matmul_precision(precision):
            return mapping.lower(call.function, *call.args, **call.options)

    def __str__(self) -> str:
        return f"{self.name}[{self.case}]"


def name_of(function: Callable[..., Any]) -> str:
    if isinstance(function, mapping.MappedFunction):
        return function.name
    scope = f"{function.__module__}.{function.__qualname__}"
    return scope.removeprefix("rankckpt_jax.")


def floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def doubles(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float64)


def ints(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def simple(function: Callable[..., Any], *shapes: Any, **options: Any) -> Any:
    return lambda: Call(function, shapes, options)
