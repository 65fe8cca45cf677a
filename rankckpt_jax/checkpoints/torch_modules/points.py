"""Where the features of a PyTorch network are, and its classifier.

Features are what the classifier reads. timm's networks return them by
`forward_head(..., pre_logits=True)`. In other networks they are the input of the linear
layer that returns the network's output.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from rankckpt_jax.checkpoints.torch_modules import spec as spec_lib
from rankckpt_jax.errors import InputError, unknown_name

TOLERANCE = 1e-4
"""Largest difference, relative to the largest value, that counts as rounding. XLA and
PyTorch add in different orders; 82 networks of timm differed by at most 2e-5."""


@dataclasses.dataclass(frozen=True)
class Point:
    """A place in a network.

    Attributes:
      kind: "pre_logits" for timm's, or the "input" or "output" of a module.
      module: Dotted name of that module; "" for the whole network.
    """

    kind: str
    module: str = ""

    def __str__(self) -> str:
        """Return a phrase for the report, such as "input of fc"."""
        if self.kind == "pre_logits":
            return "pre-logits"
        return f"{self.kind} of {self.module}" if self.module else ""


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """A network that is divided into features and classifier.

    Attributes:
      point: Where the features are.
      features: float32 [B, D], of the images that it was divided with.
      logits: float32 [B, V] of PyTorch for the same images; None without a classifier.
      head: The classifier {"kernel" [D, V], "bias" [V]}; None without one.
      unused: Names of modules that the features do not need.
      warning: What could not be followed, or "".
    """

    point: Point
    features: np.ndarray
    logits: np.ndarray | None
    head: Mapping[str, np.ndarray] | None
    unused: tuple[str, ...] = ()
    warning: str = ""


class _Found(Exception):
    """Ends a forward pass when the features are known."""

    def __init__(self, tensor: Any):
        super().__init__()
        self.tensor = tensor


def compute(module: Any, point: Point, images: Any) -> Any:
    """Return the features of images [B, 3, H, W]: [B, D] or [B, D, h, w].

    Nothing behind the point is computed.
    """
    if point.kind == "pre_logits":
        return module.forward_head(module.forward_features(images), pre_logits=True)
    if not point.module:
        return first_tensor(module(images))

    def stop_before(_: Any, args: Any) -> None:
        raise _Found(args[0])

    def stop_after(_: Any, args: Any, output: Any) -> None:
        raise _Found(first_tensor(output))

    part = module.get_submodule(point.module)
    if point.kind == "input":
        hook = part.register_forward_pre_hook(stop_before)
    else:
        hook = part.register_forward_hook(stop_after)
    try:
        module(images)
    except _Found as found:
        return found.tensor
    finally:
        hook.remove()
    raise InputError(f"The network's forward pass does not call {point.module}")


def first_tensor(output: Any) -> Any:
    """Return the only or the main tensor of a module's output."""
    if hasattr(output, "logits"):
        return output.logits
    if isinstance(output, Mapping):
        return first_tensor(next(iter(output.values())))
    return first_tensor(output[0]) if isinstance(output, list | tuple) else output


def pool(features: Any) -> Any:
    """Average [B, D, h, w] over h and w; return [B, D] as it is.

    Raises:
      InputError: The features have another shape.
    """
    if features.ndim == 4:
        return features.mean((2, 3))
    if features.ndim != 2:
        raise InputError(
            "The features have an unknown layout",
            expected="[B, D], or [B, D, h, w] to be averaged over h and w",
            found=f"shape {list(features.shape)}",
            fix="name another layer with features=",
        )
    return features


def split(module: Any, features: str, images: Any) -> Split:
    """Find the features and the classifier of a network.

    Args:
      module: The network in evaluation mode, with its weights.
      features: Name of the module whose output holds the features; "" for the input of
        the classifier.
      images: Tensor [B, 3, H, W] to try it with.

    Raises:
      InputError: There is no such module, or features of an unknown layout.
    """
    torch = spec_lib.import_library("torch")
    names = {id(part): name for name, part in module.named_modules()}
    with torch.no_grad():
        if features:
            if features not in names.values():
                known = [name for name in names.values() if name]
                raise unknown_name("layer", features, known, "features")
            point = Point("output", features)
            values = pool(compute(module, point, images)).float().numpy()
            return Split(point, values, None, None)
        with _calls(module) as calls:
            logits = first_tensor(module(images))
        if _is_timm(module):
            point, parts = Point("pre_logits"), _flatten(module.get_classifier())
        else:
            # The layer whose output is the network's own.
            linear = (c for c in calls if isinstance(c[0], torch.nn.Linear))
            parts = [part for part, output in linear if output is logits]
            point = Point("input", names[id(parts[-1])]) if parts else Point("output")
        with _calls(module) as calls:
            values = pool(compute(module, point, images)).float().numpy()
        logits = pool(logits).float().numpy()
        used = {id(part) for part, _ in calls}
        # Some of timm's networks return a part of the head, behind its batch norm.
        above = [names[id(part)].rpartition(".")[0] for part in parts]
        heads_above = [module.get_submodule(name) for name in above if name]
        parts += [h for h in heads_above if not any(id(p) in used for p in h.modules())]
        # Others return a head that contains the pooling.
        parts = [p for part in parts for p in part.modules() if id(p) not in used]
        heads = [_as_head(part, values.shape[1]) for part in parts]
    unused = tuple(names[id(part)] for part in parts)
    # A network without a classifier may have an identity in its place.
    if np.array_equal(values, logits):
        return Split(point, values, None, None, unused)
    found = [head for head in heads if head is not None]
    # Distilled networks average two classifiers.
    for head in (*found, *map(_average, itertools.combinations(found, 2))):
        if _agree(head, values, logits):
            return Split(point, values, logits, head, unused)
    warning = (
        "The classifier is not a linear layer on the features, so it is left out and "
        "measures of logits have no score"
    )
    return Split(point, values, None, None, unused, warning)


@contextlib.contextmanager
def _calls(module: Any) -> Iterator[list[tuple[Any, Any]]]:
    """Collect (submodule, output) of each call, in order."""
    found: list[tuple[Any, Any]] = []
    hooks = [
        part.register_forward_hook(lambda part, _, output: found.append((part, output)))
        for part in module.modules()
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _is_timm(module: Any) -> bool:
    """Return whether a network has timm's methods."""
    if not hasattr(module, "forward_features") or not hasattr(module, "get_classifier"):
        return False
    head = getattr(module, "forward_head", None)
    return head is not None and "pre_logits" in inspect.signature(head).parameters


def _flatten(classifier: Any) -> list[Any]:
    """Return the modules of a classifier that may be a module, a tuple or None."""
    if isinstance(classifier, list | tuple):
        return [part for item in classifier for part in _flatten(item)]
    return [] if classifier is None else [classifier]


def _as_head(part: Any, width: int) -> dict[str, np.ndarray] | None:
    """Return a layer that is linear on features [B, D] as {"kernel", "bias"}.

    None for a layer that does not take features. Whether it is linear is not tested.
    """
    torch = spec_lib.import_library("torch")
    if isinstance(part, torch.nn.Linear):
        kernel, bias = part.weight.T, part.bias
    elif isinstance(part, torch.nn.Conv2d) and part.weight[0, 0].numel() == 1:
        kernel, bias = part.weight[:, :, 0, 0].T, part.bias
    else:
        try:
            bias = part(torch.zeros(1, width)).flatten()
            kernel = part(torch.eye(width)) - bias
        except Exception:
            return None
    if kernel.ndim != 2 or kernel.shape[0] != width:
        return None
    bias = torch.zeros(kernel.shape[1]) if bias is None else bias
    # Copies, because the layer itself is dropped.
    return {
        "kernel": np.array(kernel.float().numpy(), order="C"),
        "bias": np.array(bias.float().numpy()),
    }


def _average(heads: Any) -> dict[str, np.ndarray]:
    one, other = heads
    if one["kernel"].shape != other["kernel"].shape:
        return one
    return {key: (one[key] + other[key]) / 2 for key in one}


def _agree(
    head: Mapping[str, np.ndarray], features: np.ndarray, logits: np.ndarray
) -> bool:
    expected = features @ head["kernel"] + head["bias"]
    return expected.shape == logits.shape and difference(expected, logits) <= TOLERANCE


def difference(values: np.ndarray, reference: np.ndarray) -> float:
    """Return the largest difference relative to the reference's largest value."""
    largest = np.abs(reference).max(initial=0)
    distance = np.abs(values - reference).max(initial=0)
    return float(distance / largest) if largest else float(distance)
