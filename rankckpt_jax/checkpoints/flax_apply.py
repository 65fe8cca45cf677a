"""The forward function of a Flax linen module that somebody else wrote."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp

from rankckpt_jax.checkpoints import backbone as backbone_lib
from rankckpt_jax.checkpoints.pixels import Pixels
from rankckpt_jax.models import cpu, layers

MODULE = "module"
"""The key of the module's own parameters in `params`, beside the classifier."""

CALL = "__call__"

Path = tuple[str, ...]

# Arguments and attributes by which modules are put into training mode, with their
# values (in training, in evaluation).
_MODES = {
    "train": (True, False),
    "training": (True, False),
    "is_training": (True, False),
    "deterministic": (False, True),
    "use_running_average": (False, True),
}


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which value of a module its features are.

    Attributes:
      method: Method of the module that is applied to the images.
      kind: "output" for a value of the method's output, "intermediate" for the output
        of a submodule or a value that is sown, "input" for the classifier's input.
      path: Of the value in the output or among the intermediates.
      classifier: Path of the `nn.Dense` that returns the method's output. It is not
        computed, and its parameters are `params["logits"]`. None if there is none.
    """

    method: str = CALL
    kind: str = "output"
    path: Path = ()
    classifier: Path | None = None


@dataclasses.dataclass(frozen=True)
class FlaxApply:
    """Forward function of a Flax module, as `backbone.Apply` is of those in `models`.

    Instances with equal modules are equal, so that a function is compiled once for
    them. `params` holds the module's parameters as `MODULE`; `batch_stats` holds all
    its other collections.

    Attributes:
      module: The module, whose attributes can be hashed.
      selection: The features.
      pixels: Preprocessing within the network.
      dtype: "float32" or "bfloat16". It replaces the attribute `dtype` of a module that
        has one. Parameters and images of another module are cast.
      axis_name: Mapped axis over which `nn.BatchNorm` averages moments in training.
      decay: Momentum of `nn.BatchNorm` in training; None for its own.
      precision: Precision of float32 products, "highest" or "default".
    """

    module: nn.Module
    selection: Selection = Selection()
    pixels: Pixels = Pixels()
    dtype: str = "float32"
    axis_name: str | None = None
    decay: float | None = None
    precision: str = "highest"

    def __call__(
        self,
        variables: backbone_lib.Variables,
        images: jax.Array,
        train: bool = False,
        key: jax.Array | None = None,
    ) -> Any:
        """Apply the module; see `backbone.Apply`.

        Args:
          variables: {"params": {MODULE: ..., "logits": ...}, "batch_stats": ...}; the
            classifier is optional.
          images: float [B, H, W, 3] in the backbone's input range.
          train: Whether the module is in training mode.
          key: Key of dropout and of other random operations in training; by default
            always the same one.
        """
        precision = self.precision if self.dtype == "float32" else self.dtype
        head = variables["params"].get(layers.HEAD)
        collections = {
            "params": variables["params"][MODULE],
            **variables["batch_stats"],
        }
        with jax.default_matmul_precision(precision):
            images = self.pixels(jnp.asarray(images, jnp.float32))
            if not train:
                run = functools.partial(self._evaluate, collections)
                return layers.make_output(cpu.map_parts(run, images), head)
            mutable = list(variables["batch_stats"])
            key = jax.random.key(0) if key is None else key
            # Streams without a key of their own take that of "params".
            rngs = {"params": key}
            value, updated = self._run(
                collections, images, True, mutable=mutable, rngs=rngs
            )
            stats = {**variables["batch_stats"], **updated}
            return layers.make_output(layers.pool(value), head), jax.lax.stop_gradient(
                stats
            )

    def _evaluate(self, collections: Any, images: jax.Array) -> jax.Array:
        return layers.pool(self._run(collections, images, False)[0])

    def _run(
        self,
        collections: Mapping[str, Any],
        images: jax.Array,
        train: bool,
        mutable: list[str] | None = None,
        **options: Any,
    ) -> tuple[Any, Any]:
        """Return (the selected value, the updated collections)."""
        module, collections, images = self._cast(collections, images)
        selection = self.selection
        inputs: list[jax.Array] = []

        def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            layer = context.module
            if isinstance(layer, nn.BatchNorm) and train:
                _set_batch_norm(layer, self.axis_name, self.decay)
            if context.method_name == CALL and layer.path == selection.classifier:
                inputs.append(args[0])
                return jnp.zeros((*args[0].shape[:-1], layer.features), args[0].dtype)
            return call(*args, **kwargs)

        intermediates = selection.kind == "intermediate"
        with nn.intercept_methods(intercept):
            output, updated = apply(
                module,
                selection.method,
                collections,
                images,
                train,
                mutable=[*(mutable or []), *(["intermediates"] * intermediates)],
                capture_intermediates=_captures(selection.path)
                if intermediates
                else False,
                **options,
            )
        updated = dict(updated)
        captured = updated.pop("intermediates", {})
        if selection.kind == "input":
            return inputs[-1], updated
        if intermediates:
            return intermediate_values(captured)[selection.path], updated
        return output_values(output)[selection.path], updated

    def _cast(
        self, collections: Mapping[str, Any], images: jax.Array
    ) -> tuple[nn.Module, Mapping[str, Any], jax.Array]:
        if "dtype" in {field.name for field in dataclasses.fields(self.module)}:
            module = self.module.clone(dtype=jnp.dtype(self.dtype))
            return module, collections, images
        if self.dtype == "float32":
            return self.module, collections, images

        def cast(leaf: jax.Array) -> jax.Array:
            is_float = jnp.issubdtype(leaf.dtype, jnp.floating)
            return leaf.astype(self.dtype) if is_float else leaf

        params = jax.tree.map(cast, collections["params"])
        return self.module, {**collections, "params": params}, cast(images)


def apply(
    module: nn.Module,
    method: str,
    collections: Mapping[str, Any],
    images: jax.Array,
    train: bool,
    **options: Any,
) -> Any:
    """Apply a method of a module in training or evaluation mode.

    The mode is an argument of the method or an attribute of the module with one of the
    usual names: train, training, is_training, deterministic, use_running_average.

    Returns:
      The output; (output, updated collections) with the option `mutable`.
    """
    modes: dict[str, Any] = {n: v[0 if train else 1] for n, v in _MODES.items()}
    attributes = {f.name for f in dataclasses.fields(module)} & set(modes)
    if attributes:
        module = module.clone(**{name: modes[name] for name in attributes})
    parameters = inspect.signature(getattr(type(module), method)).parameters
    arguments = {name: modes[name] for name in parameters if name in modes}
    return module.apply(collections, images, method=method, **arguments, **options)


def output_values(output: Any) -> dict[Path, Any]:
    """Return the arrays of a module's output by their paths; () for a single array."""
    return {
        tuple(jax.tree_util.keystr((part,), simple=True) for part in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(output)
    }


def intermediate_values(intermediates: Mapping[str, Any]) -> dict[Path, Any]:
    """Return the arrays of the collection "intermediates" by their paths.

    Flax keeps a tuple of all values of a name. The last one is returned.
    """
    return {
        (*path, *inner): value
        for path, values in flax.traverse_util.flatten_dict(dict(intermediates)).items()
        for inner, value in output_values(values[-1]).items()
    }


def _captures(path: Path) -> Any:
    """Return a filter for Flax: capture the one output that is selected."""

    def capture(module: nn.Module, method: str) -> bool:
        return path[: len(module.path) + 1] == (*module.path, method)

    return capture


def _set_batch_norm(
    layer: nn.BatchNorm, axis_name: str | None, decay: float | None
) -> None:
    """Average moments over an axis, and set the momentum, for one application.

    A bound module is a copy that Flax makes for this application. It refuses plain
    assignments.
    """
    object.__setattr__(layer, "axis_name", axis_name)
    if decay is not None:
        object.__setattr__(layer, "momentum", decay)
