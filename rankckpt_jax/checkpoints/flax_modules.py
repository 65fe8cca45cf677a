"""Flax linen modules in memory become backbones."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rankckpt_jax.checkpoints import flax_apply
from rankckpt_jax.checkpoints.backbone import Backbone, digest_weights
from rankckpt_jax.checkpoints.flax_apply import (
    CALL,
    MODULE,
    FlaxApply,
    Path,
    Selection,
)
from rankckpt_jax.checkpoints.pixels import standardize
from rankckpt_jax.checkpoints.sources import check_image_size
from rankckpt_jax.errors import InputError, suggest
from rankckpt_jax.models import layers
from rankckpt_jax.storage import files


def from_flax(
    module: nn.Module,
    variables: Mapping[str, Any],
    *,
    name: str,
    image_size: int,
    input_range: tuple[float, float] = (0.0, 1.0),
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    features: str = "",
) -> Backbone:
    """Return the `Backbone` of a Flax linen module and its variables.

    Training mode is set by an argument of the module's method, or by an attribute of
    the module, named train, training, is_training, deterministic or
    use_running_average.

    Example:
      >>> import flax.linen as nn, jax, numpy as np
      >>> from rankckpt_jax import checkpoints
      >>> class Net(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         x = nn.relu(nn.Conv(6, (3, 3), strides=2)(x))
      ...         return nn.Dense(10)(x.mean((1, 2)))
      >>> images = np.zeros((1, 32, 32, 3))
      >>> variables = Net().init(jax.random.key(0), images)
      >>> net = checkpoints.from_flax(Net(), variables, image_size=32, name="net")
      >>> net.feature_dim, net.num_source_classes
      (6, 10)

    Args:
      module: The module. It maps float images [B, H, W, 3] to an array, or to a
        dictionary, tuple or dataclass of arrays. Its attributes can be hashed.
      variables: {"params": ...} and other collections, such as "batch_stats", as
        `module.init` returns them. Float32.
      name: Name of its row.
      image_size: Side of the images in pixels.
      input_range: Values that the pixels 0 and 255 become.
      mean: Mean per channel that is subtracted afterwards, [3].
      std: Standard deviation per channel that divides afterwards, [3].
      features: What to use as features: a method of the module, a submodule
        ("encoder/norm"), a value that is sown into "intermediates", or a part of the
        output ("pre_logits"), by its path or by the last name of it. [B, h, w, D] is
        averaged over h and w. By default the input of the `nn.Dense` that returns the
        module's output, which is then its classifier. Without such a layer the output.

    Returns:
      The backbone. Its fingerprint changes with the weights, the module and
      `features`.

    Raises:
      InputError: The module cannot be applied to such images, or there is no such
        feature.
    """
    where = f"from_flax, {name!r}"
    if not isinstance(module, nn.Module):
        raise InputError(
            "Not a Flax linen module",
            where=where,
            expected="flax.linen.Module",
            found=f"{type(module).__module__}.{type(module).__qualname__}",
            fix="a module of flax.nnx cannot be used; extract its features and call "
            "rank_features",
        )
    _check_hashable(module, where)
    check_image_size(image_size, f"image_size of {where}")
    collections = _collections(variables, where)
    pixels = standardize(mean, std, where)
    images = jax.ShapeDtypeStruct((2, image_size, image_size, 3), jnp.float32)
    try:
        selection = _select(module, collections, images, features, where)
        params, head = _split(collections.pop("params"), selection.classifier)
        apply = FlaxApply(module, selection, pixels)
        without_head = {"params": {MODULE: params}, "batch_stats": collections}
        shape = jax.eval_shape(apply, without_head, images).features.shape
    except InputError:
        raise
    except Exception as error:  # Modules raise errors of many types.
        lines = str(error).strip().splitlines()
        raise InputError(
            "The Flax module cannot be applied",
            where=where,
            found=f"{type(error).__name__}: {lines[0] if lines else ''}",
            fix=f"module.apply(variables, images) must work for images [B, {image_size}"
            f", {image_size}, 3]",
        ) from error
    if len(shape) != 2:
        raise InputError(
            "The output cannot be used as features",
            where=where,
            expected="[B, D] or [B, h, w, D]",
            found=str(list(shape)),
            fix="name another value: features=NAME",
        )
    low, high = map(float, input_range)
    heads = {} if head is None else {layers.HEAD: head}
    return Backbone(
        name=name,
        architecture=type(module).__name__,
        variables={**without_head, "params": {MODULE: params, **heads}},
        apply=apply,
        image_size=image_size,
        input_range=(low, high),
        input_mean=(0.0, 0.0, 0.0),
        feature_dim=int(shape[1]),
        num_source_classes=0 if head is None else head["bias"].shape[-1],
        num_parameters=sum(leaf.size for leaf in jax.tree.leaves(params)),
        fingerprint=files.digest(
            type(module).__module__,
            # Functions among the attributes have another address in each process.
            re.sub(r" at 0x[0-9a-f]+", "", repr(module)),
            repr((selection, pixels)),
            digest_weights({"params": params, **heads, "rest": collections}),
        ),
        source=f"Flax module {type(module).__name__} in memory",
        feature_tensor=_describe(selection),
        own_image_size=image_size,
    )


def _check_hashable(module: nn.Module, where: str) -> None:
    try:
        hash(module)
    except TypeError as error:
        raise InputError(
            "The attributes of the Flax module cannot be hashed, so that its program "
            "could not be shared",
            where=where,
            expected="numbers, strings, functions, modules, and tuples of these",
            found=" ".join(repr(module).split())[:200],
            fix="use tuples instead of lists, and flax.core.freeze for dictionaries",
        ) from error


def _collections(variables: Mapping[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(variables, Mapping) or "params" not in variables:
        found = type(variables).__name__
        if isinstance(variables, Mapping):
            found = "a mapping of " + (", ".join(map(str, variables)) or "nothing")
        raise InputError(
            "The variables have no collection `params`",
            where=where,
            expected='{"params": ...} and other collections, such as "batch_stats"',
            found=found,
            fix='for parameters alone, {"params": parameters}',
        )
    return {
        collection: jax.tree.map(_to_array, nn.unbox(flax.core.unfreeze(values)))
        for collection, values in variables.items()
        if collection != "intermediates"
    }


def _to_array(leaf: Any) -> np.ndarray:
    """Return an array on the host, with float32 instead of other floats."""
    array = np.asarray(leaf)
    is_float = jnp.issubdtype(array.dtype, jnp.floating)
    return array.astype(np.float32) if is_float else array


def _select(
    module: nn.Module,
    collections: Mapping[str, Any],
    images: jax.ShapeDtypeStruct,
    features: str,
    where: str,
) -> Selection:
    """Trace the module, without computing, to find its features and classifier.

    Raises:
      InputError: No value, or more than one, has the name `features`.
    """
    if features and callable(getattr(type(module), features, None)):
        shapes = jax.eval_shape(
            lambda *given: flax_apply.apply(
                module, features, given[0], given[1], False
            ),
            collections,
            images,
        )
        outputs = flax_apply.output_values(shapes)
        if len(outputs) != 1:
            raise _no_value("", outputs, where)
        return Selection(features, path=next(iter(outputs)))
    dense: list[tuple[Path, jax.Array, jax.Array]] = []
    found: list[Selection] = []

    def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        result = call(*args, **kwargs)
        if type(context.module) is nn.Dense and context.method_name == CALL:
            dense.append((context.module.path, args[0], result))
        return result

    def trace(collections: Any, images: jax.Array) -> None:
        with nn.intercept_methods(intercept):
            output, updated = flax_apply.apply(
                module,
                CALL,
                collections,
                images,
                False,
                mutable=["intermediates"],
                capture_intermediates=bool(features),
            )
        # The layer whose very result is the output.
        last = next((d for d in reversed(dense) if d[2] is output), None)
        outputs = flax_apply.output_values(output)
        if not features:
            if last is not None and last[1].ndim == 2:
                found.append(Selection(kind="input", classifier=last[0]))
                return
            if len(outputs) != 1:
                raise _no_value("", outputs, where)
            found.append(Selection(path=next(iter(outputs))))
            return
        values = flax_apply.intermediate_values(updated.get("intermediates", {}))
        for kind, paths in ("intermediate", values), ("output", outputs):
            if path := _find(features, paths, where):
                # Also its input, if it is a classifier's.
                is_input = last is not None and paths[path] is last[1]
                classifier = last[0] if last is not None and is_input else None
                found.append(Selection(CALL, kind, path, classifier))
                return
        raise _no_value(features, [*values, *outputs], where)

    jax.eval_shape(trace, collections, images)
    return found[0]


def _find(name: str, paths: Iterable[Path], where: str) -> Path | None:
    """Return the path that a name means: all of it, or the last part of one path."""
    shown = {_show(path): path for path in paths}
    if name in shown:
        return shown[name]
    ends = [path for path in shown if path.endswith(f"/{name}")]
    if len(ends) > 1:
        raise InputError(
            f"Several values are named {name!r}",
            where=where,
            expected="one of " + ", ".join(ends),
            found=name,
            fix=f"for example features={ends[0]!r}",
        )
    return shown[ends[0]] if ends else None


def _show(path: Path) -> str:
    """Return a path as users write it; a submodule stands for its output."""
    parts = path[:-1] if path[-1:] == (CALL,) else path
    return "/".join(parts)


def _no_value(name: str, paths: Iterable[Path], where: str) -> InputError:
    known = [shown for shown in map(_show, paths) if shown]
    return InputError(
        f"The module has no value {name!r}"
        if name
        else "The module has several outputs",
        where=where,
        expected="a method of one output, or one of " + ", ".join(known),
        found=name or f"{len(known)} outputs",
        fix=suggest(name, known) if name else "name one: features=NAME",
    )


def _split(params: Any, path: Path | None) -> tuple[Any, Any]:
    """Return (the parameters without the classifier, the classifier or None)."""
    if path is None:
        return params, None
    params = dict(params)
    if len(path) > 1:
        params[path[0]], head = _split(params[path[0]], path[1:])
        return params, head
    head = dict(params.pop(path[0]))
    kernel = head["kernel"]
    return params, {
        "kernel": kernel,
        "bias": head.get("bias", np.zeros(kernel.shape[-1], kernel.dtype)),
    }


def _describe(selection: Selection) -> str:
    if selection.kind == "input":
        assert selection.classifier is not None
        return f"input of the removed classifier {_show(selection.classifier)}"
    name = _show(selection.path) or "output"
    return name if selection.method == CALL else f"{name} of {selection.method}"
