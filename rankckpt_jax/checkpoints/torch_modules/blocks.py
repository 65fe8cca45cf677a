"""The last blocks of a PyTorch network, whose pooled outputs can be features too.

timm's networks return the outputs of their stages, or of a transformer's blocks, by
`forward_intermediates`. In other networks a stage ends with the last layer of a
resolution, among the layers of the least depth at which three resolutions occur. A
network without feature maps has the last of its longest sequence of modules of one
class with equal outputs [B, T, D].
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from rankckpt_jax.checkpoints.torch_modules import points
from rankckpt_jax.checkpoints.torch_modules.points import Point
from rankckpt_jax.models.architecture import NUM_BLOCKS


def find(module: Any, point: Point, images: Any) -> tuple[str, ...]:
    """Return the names of a network's last blocks, in order; () if it shows none.

    Args:
      module: The network in evaluation mode.
      point: Where its features are. Layers behind it do not count.
      images: Tensor [B, 3, H, H] to try it with.
    """
    if _is_timm(module, point):
        # A dictionary per stage, as a list or timm's `FeatureInfo`.
        names = [str(stage["module"]) for stage in module.feature_info]
        return tuple(names[-NUM_BLOCKS:])
    found: list[tuple[str, tuple[int, ...]]] = []

    def note(name: str, output: Any) -> None:
        with contextlib.suppress(StopIteration, IndexError):
            tensor = points.first_tensor(output)
            found.append((name, tuple(getattr(tensor, "shape", ()))))

    names = [name for name, _ in module.named_modules() if name]
    with _watched(module, names, note):
        points.compute(module, point, images)
    return _stages(found) or _sequence(module, found)


def compute(
    module: Any, point: Point, names: Sequence[str], images: Any
) -> tuple[Any, list[Any]]:
    """Return the features and the pooled outputs of blocks in one forward pass.

    Args:
      module: The network.
      point: Where its features are.
      names: Names of its last blocks, as `find` returns them, or none.
      images: Tensor [B, 3, H, H].

    Returns:
      What `points.compute` returns, and float32 [B, D] of each block.
    """
    if not names:
        return points.compute(module, point, images), []
    if _is_timm(module, point):
        final, outputs = module.forward_intermediates(images, indices=len(names))
        return module.forward_head(final, pre_logits=True), list(map(_pool, outputs))
    found = {}

    def keep(name: str, output: Any) -> None:
        # Now, because a later layer may change the output in place.
        found[name] = _pool(points.first_tensor(output))

    with _watched(module, names, keep):
        features = points.compute(module, point, images)
    return features, [found[name] for name in names]


def _pool(output: Any) -> Any:
    """Average the output of a block over its positions: float32 [B, D].

    Args:
      output: Tensor [B, D, h, h], [B, h, h, D], [B, T, D] or [B, D].
    """
    output = output.float()
    if output.ndim == 4:
        return output.mean((1, 2) if _is_channels_last(output.shape) else (2, 3))
    return output.mean(1) if output.ndim == 3 else output


def _is_timm(module: Any, point: Point) -> bool:
    return point.kind == "pre_logits" and hasattr(module, "forward_intermediates")


@contextlib.contextmanager
def _watched(module: Any, names: Sequence[str], call: Any) -> Iterator[None]:
    """Call `call(name, output)` after each call of the named submodules."""

    def hook(name: str) -> Any:
        return lambda part, args, output: call(name, output)

    hooks = [
        module.get_submodule(name).register_forward_hook(hook(name)) for name in names
    ]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


def _stages(found: Sequence[tuple[str, tuple[int, ...]]]) -> tuple[str, ...]:
    """Return the last layer of each of the last resolutions."""
    maps = [
        (name, shape[1] if _is_channels_last(shape) else shape[-1])
        for name, shape in found
        if _is_map(shape)
    ]
    for depth in range(max((name.count(".") for name, _ in maps), default=-1) + 1):
        ends: dict[int, str] = {}
        for name, side in maps:
            if name.count(".") <= depth:
                # The last resolution comes last, also if it occurred before.
                ends.pop(side, None)
                ends[side] = name
        if len(ends) >= NUM_BLOCKS:
            return tuple(ends.values())[-NUM_BLOCKS:]
    return ()


def _sequence(
    module: Any, found: Sequence[tuple[str, tuple[int, ...]]]
) -> tuple[str, ...]:
    """Return the last of the longest sequence of equal modules."""
    sequences: dict[Any, list[str]] = {}
    for name, shape in found:
        if len(shape) == 3:
            parent, kind = name.rpartition(".")[0], type(module.get_submodule(name))
            sequences.setdefault((parent, kind, shape), []).append(name)
    longest = max(sequences.values(), key=len, default=[])
    return tuple(longest[-NUM_BLOCKS:]) if len(longest) >= NUM_BLOCKS else ()


def _is_map(shape: Sequence[int]) -> bool:
    return len(shape) == 4 and (shape[2] == shape[3] > 1 or _is_channels_last(shape))


def _is_channels_last(shape: Sequence[int]) -> bool:
    return len(shape) == 4 and shape[1] == shape[2] > 1 and shape[2] != shape[3]
