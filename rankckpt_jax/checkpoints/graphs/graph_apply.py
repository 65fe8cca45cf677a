"""The forward function of a network without a Flax module."""

from __future__ import annotations

import dataclasses
import functools
import re
from operator import getitem
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp

from rankckpt_jax.checkpoints import backbone as backbone_lib
from rankckpt_jax.checkpoints.graphs import jax_function
from rankckpt_jax.checkpoints.graphs.pure_graph import Path, PureGraph
from rankckpt_jax.checkpoints.pixels import Pixels
from rankckpt_jax.devices import mapping
from rankckpt_jax.errors import InputError
from rankckpt_jax.models import cpu, layers

# Names of batch norm's moving averages in TensorFlow and Keras.
_MOVING = re.compile(r"(moving_|running_)?(mean|variance|var)\d*")
# Precision of matrix products, by dtype.
_DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Graphs:
    """A network's graphs.

    Attributes:
      evaluation: The graph in which batch norm uses the moving averages.
      training: The graph in which batch norm uses and updates batch statistics. None if
        the checkpoint has none: training then leaves batch norm unchanged.
      pixels: Preprocessing within the network.
      batch_size: The only batch size of the graphs; 0 for any.
    """

    evaluation: PureGraph
    training: PureGraph | None
    pixels: Pixels = Pixels()
    batch_size: int = 0


@dataclasses.dataclass(frozen=True)
class GraphApply:
    """Forward function of a graph, as `backbone.Apply` is of a Flax network.

    Instances with equal graphs are equal, so that a function is compiled once for them.

    Attributes:
      graphs: The graphs to apply.
      dtype: "float32", or "bfloat16" for matrix products and convolutions only.
      axis_name: Mapped axis over which batch moments are averaged in training.
      decay: Decay of batch norm's moving averages per training step. None means the
        graph's own.
      precision: Precision of float32 products, "highest" or "default".
    """

    graphs: Graphs = dataclasses.field(repr=False)
    dtype: str = "float32"
    axis_name: str | None = None
    decay: float | None = None
    precision: str = "highest"

    def __post_init__(self) -> None:
        """Raise `InputError` for an unsupported dtype."""
        if self.dtype not in _DTYPES:
            raise InputError(
                f"A TensorFlow graph cannot be computed in {self.dtype}",
                where="config.dtype",
                expected=" or ".join(_DTYPES),
                found=self.dtype,
            )

    def __call__(
        self,
        variables: backbone_lib.Variables,
        images: jax.Array,
        train: bool = False,
        key: jax.Array | None = None,
    ) -> Any:
        """Apply the network; see `backbone.Apply`.

        Random operations such as dropout draw from `key` in training.
        """
        # Otherwise the precision of float32 products differs between TPUs and GPUs.
        precision = self.precision if self.dtype == "float32" else self.dtype
        with jax.default_matmul_precision(precision):
            images = self.graphs.pixels(jnp.asarray(images, jnp.float32))
            head = variables["params"].get(layers.HEAD)
            if not train:
                forward = functools.partial(self._evaluate, variables)
                return layers.make_output(cpu.map_parts(forward, images), head)
            key = jax.random.key(0) if key is None else key
            features, batch_stats = self._train(variables, images, key)
            return layers.make_output(features, head), batch_stats

    def _evaluate(
        self, variables: backbone_lib.Variables, images: jax.Array
    ) -> jax.Array:
        graph, size = self.graphs.evaluation, self.graphs.batch_size
        function = _function(graph, None)
        values, key = _values(graph, variables), jax.random.key(0)

        def forward(images: jax.Array) -> jax.Array:
            return function(values, images, key)[0]

        if not size:
            return layers.pool(forward(images))
        batch = images.shape[0]
        padded = jnp.pad(images, ((0, -batch % size), (0, 0), (0, 0), (0, 0)))
        parts = padded.reshape(-1, size, *images.shape[1:])
        features = jax.lax.map(forward, parts)
        return layers.pool(features.reshape(-1, *features.shape[2:]))[:batch]

    def _train(
        self, variables: backbone_lib.Variables, images: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, Any]:
        graph = self.graphs.training
        if graph is None:
            return self._evaluate(variables, images), variables["batch_stats"]
        if self.graphs.batch_size:
            raise InputError(
                "The training graph has a fixed batch size",
                expected="any batch size",
                found=str(self.graphs.batch_size),
                fix="export it again with a batch size of None",
            )
        function = _function(graph, self.axis_name)
        stats = flax.traverse_util.flatten_dict(variables["batch_stats"])
        moved = {path[1:]: stats[path[1:]] for path, _ in graph.updates}
        seeds = _seeds(moved, key)
        moved = {**moved, **seeds}

        def step(moved: Any) -> tuple[jax.Array, Any]:
            now = flax.traverse_util.unflatten_dict({**stats, **moved})
            values = _values(graph, {**variables, "batch_stats": now})
            features, updated = function(values, images, key)
            return features, {path[1:]: value for path, value in updated.items()}

        if self.decay is None:
            features, updated = step(moved)
        else:
            features, updated = _with_decay(step, moved, self.decay)
        updated = {p: value for p, value in updated.items() if p not in seeds}
        updated = jax.lax.stop_gradient(updated)
        return (
            layers.pool(features),
            flax.traverse_util.unflatten_dict({**stats, **updated}),
        )


def _seeds(moved: dict[Path, Any], key: jax.Array) -> dict[Path, jax.Array]:
    """Draw states for the random generators among the variables that training updates.

    Keras and `tf.random.Generator` keep their state in an integer vector. Left to
    itself, it would be the same on all devices. An integer scalar is a counter.
    """
    paths = [
        path
        for path, value in moved.items()
        if jnp.ndim(value) and jnp.issubdtype(value.dtype, jnp.integer)
    ]
    keys = jax.random.split(key, len(paths))
    return {
        path: jax.random.bits(key, moved[path].shape).astype(moved[path].dtype)
        for path, key in zip(paths, keys, strict=True)
    }


def _with_decay(step: Any, moved: Any, decay: float) -> tuple[jax.Array, Any]:
    """Run a training step with another decay than the graph's.

    The graph computes new = d * old + (1 - d) * moment. Its derivative with respect to
    `old` is d, from which the moment follows, with a relative rounding error of about
    1e-7 / (1 - d).
    """
    chosen = {
        path: jnp.ones_like(value)
        if _MOVING.fullmatch(path[-1])
        else jnp.zeros_like(value)
        for path, value in moved.items()
        if jnp.issubdtype(value.dtype, jnp.floating)
    }
    rest = {path: value for path, value in moved.items() if path not in chosen}

    def differentiable(part: Any) -> tuple[Any, jax.Array]:
        features, updated = step({**part, **rest})
        return updated, features

    part = {path: moved[path] for path in chosen}
    updated, slopes, features = jax.jvp(
        differentiable, (part,), (chosen,), has_aux=True
    )
    decayed = dict(updated)
    for path, old in part.items():
        if not _MOVING.fullmatch(path[-1]):
            continue
        own = jax.lax.stop_gradient(slopes[path])
        kept = own >= 1
        moment = (updated[path] - own * old) / jnp.where(kept, 1, 1 - own)
        new = decay * old + (1 - decay) * moment
        decayed[path] = jnp.where(kept, updated[path], new)
    return features, decayed


@mapping.bounded_cache
def _function(graph: PureGraph, axis_name: str | None) -> Any:
    return jax_function.convert(graph, axis_name)


def _values(graph: PureGraph, variables: backbone_lib.Variables) -> list[jax.Array]:
    """Return the variables that a graph reads, in its order."""
    paths = (path for _, path in graph.variables)
    return [jnp.asarray(functools.reduce(getitem, path, variables)) for path in paths]
